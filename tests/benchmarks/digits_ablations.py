"""Recipes on the digits over the same seeds: the tables of recipes/README.md.

    python tests/benchmarks/digits_ablations.py                      every Mask-GRPO recipe
    python tests/benchmarks/digits_ablations.py --table paradigms    one recipe per paradigm

Each (recipe, seed) runs in a worker with one thread, so results do not depend on the number of
workers. The base of a seed is trained once and cached. Writes digits_TABLE.json beside this file
and the table between its markers of recipes/README.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parents[1] / "recipes" / "README.md"
VARIANTS = [
    "", "_p1", "_p1_plain", "_p2", "_ar", "_kl", "_fewer_steps", "_step_subset", "_filter",
    "_released", "_shuffled_reward",
]  # fmt: skip
TABLES = {
    "ablations": [f"digits/mask_grpo{variant}" for variant in VARIANTS],
    "paradigms": ["digits/flow_grpo", "digits/dance_grpo", "digits/grpo"],
}
BASES = {
    "digits/mask_grpo": "base", "digits/flow_grpo": "diffusion base",
    "digits/grpo": "autoregressive base",
}  # fmt: skip
"""The recipe that also measures the base of its paradigm, and how the table calls that."""
SHOWN = ("judge", "frechet", "diversity", "reward")


def one(task: tuple[str, int]) -> dict[str, Any]:
    """Train one recipe under one seed and measure it: ``{"recipe", "seed", "rows"}``."""
    import torch

    from genrl_core.recipe import load_recipe
    from genrl_core.trainer import Trainer

    name, seed = task
    torch.set_num_threads(1)
    recipe = load_recipe(name, [f"run.seed={seed}", "run.threads=1", "run.device=cpu"])
    trainer = Trainer(recipe)
    rows: dict[str, dict[str, float]] = {}

    def measure(row: str, **overrides: Any) -> None:
        found = trainer.evaluate(**overrides).metrics
        known = {key: found[key] for key in ("judge", "frechet", "diversity")}
        rows[row] = known | {"reward": found["reward/digit_classifier"]}

    if name in BASES:
        measure(BASES[name])
        for temperature in recipe.evaluate.base_sweep["temperature"]:
            measure(f"{BASES[name]}, temperature {temperature:g}", temperature=temperature)
    start = time.perf_counter()
    drift = 0.0
    for _ in range(recipe.train.iterations):
        drift = max(drift, trainer.step().metrics.get("drift", 0.0))
    seconds = time.perf_counter() - start
    measure(name)
    rows[name] |= {"seconds": seconds, "drift": drift}
    return {"recipe": name, "seed": seed, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """The markdown table: mean and spread over seeds, the smallest accuracy, seconds."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, seeds in results["rows"].items():
        base = next((b for b in BASES.values() if name.startswith(f"{b}, ")), None)
        if base is None:
            rows[name] = seeds
            continue
        best = rows.setdefault(f"{base}, each seed's best temperature", dict(rows[base]))
        for seed, found in seeds.items():
            best[seed] = max(best[seed], found, key=lambda metrics: metrics["judge"])
    head = "| recipe | judge mean ± sd | min | reward | Frechet | diversity | seconds |"
    lines = [head, "|-|-|-|-|-|-|-|"]
    for name, seeds in rows.items():
        column = {key: [found[key] for found in seeds.values()] for key in SHOWN}
        spread = {key: statistics.stdev(v) if len(v) > 1 else 0.0 for key, v in column.items()}
        mean = {key: statistics.mean(values) for key, values in column.items()}
        seconds = [found["seconds"] for found in seeds.values() if "seconds" in found]
        lines.append(
            f"| `{name}` | {mean['judge']:.3f} ± {spread['judge']:.3f} "
            f"| {min(column['judge']):.3f} "
            f"| {mean['reward']:.3f} | {mean['frechet']:.0f} ± {spread['frechet']:.0f} "
            f"| {mean['diversity']:.1f} | "
            + (f"{statistics.median(seconds):.0f} |" if seconds else "|")
        )
    return "\n".join(lines)


def write(results: dict[str, Any], name: str) -> None:
    (HERE / f"digits_{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    begin, end = f"<!-- digits {name}: begin -->", f"<!-- digits {name}: end -->"
    text = README.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    seeds = ", ".join(map(str, results["seeds"]))
    note = (
        f"`{results['command']}`, seeds {seeds}, {results['hardware']}, one thread a run, two runs "
        f"at a time, commit `{results['commit']}`, {results['minutes']:.0f} minutes in all."
    )
    README.write_text(f"{before}{begin}\n{table(results)}\n\n{note}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--table", choices=TABLES, default="ablations")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table-only", action="store_true", help="rewrite the table from the JSON")
    given = parser.parse_args()
    if given.table_only:
        known = (HERE / f"digits_{given.table}.json").read_text()
        write(json.loads(known), given.table)
        return
    start = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    # Bases first, so that no two workers train the same one.
    recipes = TABLES[given.table]
    first = [(name, seed) for name in recipes if name in BASES for seed in given.seeds]
    rest = [(name, seed) for name in recipes if name not in BASES for seed in given.seeds]
    with ProcessPoolExecutor(given.processes) as pool:
        for tasks in (first, rest):
            for result in pool.map(one, tasks):
                for row, found in result["rows"].items():
                    rows.setdefault(row, {})[str(result["seed"])] = found
                    rounded = {key: round(value, 4) for key, value in found.items()}
                    print(row, result["seed"], rounded, flush=True)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE, check=False).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    command = f"python tests/benchmarks/{Path(__file__).name}"
    command += "" if given.table == "ablations" else f" --table {given.table}"
    write({
        "command": command, "commit": commit.strip(),
        "hardware": f"{os.cpu_count()} cores of {cpu or platform.processor()}",
        "python": sys.version.split()[0], "seeds": given.seeds,
        "minutes": (time.perf_counter() - start) / 60, "rows": rows,
    }, given.table)  # fmt: skip


if __name__ == "__main__":
    main()
