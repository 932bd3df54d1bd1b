"""The Mask-GRPO recipes on the digits over the same seeds: the first table of recipes/README.md.

    python tests/benchmarks/digits_ablations.py

Each (recipe, seed) runs in a worker with one thread, so results do not depend on the number of
workers. The base of a seed is trained once and cached. Writes digits_ablations.json beside this
file and the table between its markers of recipes/README.md.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from common import Task, best_of_base, known, provenance, publish, run_all

VARIANTS = [
    "", "_p1", "_p1_plain", "_p2", "_ar", "_kl", "_fewer_steps", "_step_subset", "_filter",
    "_released", "_shuffled_reward",
]  # fmt: skip
RECIPES = [f"digits/mask_grpo{variant}" for variant in VARIANTS]
SHOWN = ("judge", "frechet", "diversity", "reward")


def table(results: dict[str, Any]) -> str:
    """The markdown table: mean and spread over seeds, the smallest accuracy, seconds."""
    found = results["rows"]
    rows = {"base": found["base"]}
    rows["base, each seed's best temperature"] = best_of_base(found, "base")
    rows |= {name: seeds for name, seeds in found.items() if not name.startswith("base")}
    head = "| recipe | judge mean ± sd | min | reward | Frechet | diversity | seconds |"
    lines = [head, "|-|-|-|-|-|-|-|"]
    for name, seeds in rows.items():
        column = {key: [row[key] for row in seeds.values()] for key in SHOWN}
        spread = {key: statistics.stdev(v) if len(v) > 1 else 0.0 for key, v in column.items()}
        mean = {key: statistics.mean(values) for key, values in column.items()}
        seconds = [row["seconds"] for row in seeds.values() if "seconds" in row]
        lines.append(
            f"| `{name}` | {mean['judge']:.3f} ± {spread['judge']:.3f} "
            f"| {min(column['judge']):.3f} "
            f"| {mean['reward']:.3f} | {mean['frechet']:.0f} ± {spread['frechet']:.0f} "
            f"| {mean['diversity']:.1f} | "
            + (f"{statistics.median(seconds):.0f} |" if seconds else "|")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table-only", action="store_true", help="rewrite the table from the JSON")
    given = parser.parse_args()
    if given.table_only:
        publish(known("ablations"), "ablations", table)
        return
    start = time.perf_counter()
    tasks = [Task("base", RECIPES[0], seed, base=True) for seed in given.seeds]
    tasks += [Task(name, name, seed) for name in RECIPES for seed in given.seeds]
    rows: dict[str, dict[str, Any]] = {}
    for task, measured in run_all(tasks, given.processes):
        for row, figures in measured.items():
            rows.setdefault(row, {})[str(task.seed)] = figures
            rounded = {key: round(value, 4) for key, value in figures.items()}
            print(row, task.seed, rounded, flush=True)
    command = f"python tests/benchmarks/{Path(__file__).name}"
    publish(provenance(command, given.seeds, start) | {"rows": rows}, "ablations", table)


if __name__ == "__main__":
    main()
