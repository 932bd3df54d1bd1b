"""Every objective on the digits of every paradigm, over the same seeds: which of them learn?

    python tests/benchmarks/digits_objectives.py
    python tests/benchmarks/digits_objectives.py --only masked/gspo diffusion/nft --seeds 10

A seed counts as learned where the judge's accuracy rose by .10 or more over the base, and above the
base at its best temperature. Settings were chosen on the seeds 0 to 2. A row is a recipe of the
folder, or its paradigm's parent with the overrides that the JSON names. Writes
digits_objectives.json beside this file and the tables between their markers of recipes/README.md.
With --only, the rows named are run and printed; with --write too they replace what the JSON has of
them, which keeps the commit of each such row under "again".
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from cells import CELLS, PARENTS
from common import Row, Task, best_of_base, known, provenance, publish, run_all

GAIN = 0.10


def learned(row: Row, base: Row, best: Row) -> bool:
    """Whether one seed meets the criterion of the table."""
    return row["judge"] >= base["judge"] + GAIN and row["judge"] > best["judge"]


def learned_seeds(rows: dict[str, dict[str, Row]], label: str) -> int:
    """On how many seeds the row ``paradigm/objective`` learned."""
    base = f"{label.partition('/')[0]} base"
    best = best_of_base(rows, base)
    return sum(learned(row, rows[base][seed], best[seed]) for seed, row in rows[label].items())


def table(results: dict[str, Any]) -> str:
    """One markdown table per paradigm."""
    return "\n\n".join(_paradigm(results["rows"], paradigm) for paradigm in PARENTS)


def _paradigm(rows: dict[str, dict[str, Row]], paradigm: str) -> str:
    base, cells = f"{paradigm} base", CELLS[paradigm]
    head = f"| {paradigm} | judge mean ± sd | min | learned | Frechet | diversity | seconds | as |"
    lines = [head, "|-|-|-|-|-|-|-|-|", _line("base", rows[base], "", "")]
    best = best_of_base(rows, base)
    lines.append(_line("base, each seed's best temperature", best, "", ""))
    for objective, cell in cells.items():
        label = f"{paradigm}/{objective}"
        if label in rows:
            name, _, algorithm = objective.partition(" ")
            count = f"{learned_seeds(rows, label)} of {len(rows[label])}"
            shown = "overrides" if cell.overrides else f"`{cell.recipe}`"
            lines.append(_line(f"`{name}` {algorithm}".strip(), rows[label], count, shown))
    return "\n".join(lines)


def _line(name: str, seeds: dict[str, Row], count: str, shown: str) -> str:
    column = {
        key: [row[key] for row in seeds.values()] for key in ("judge", "frechet", "diversity")
    }
    mean = {key: statistics.mean(values) for key, values in column.items()}
    spread = statistics.stdev(column["judge"]) if len(seeds) > 1 else 0.0
    taken = [row["seconds"] for row in seeds.values() if "seconds" in row]
    seconds = f"{statistics.median(taken):.0f}" if taken else ""
    return (
        f"| {name} | {mean['judge']:.3f} ± {spread:.3f} | {min(column['judge']):.3f} | {count} "
        f"| {mean['frechet']:.0f} | {mean['diversity']:.1f} | {seconds} | {shown} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--only", nargs="+", default=[], metavar="PARADIGM/OBJECTIVE")
    parser.add_argument("--write", action="store_true", help="with --only: replace these rows")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table-only", action="store_true", help="rewrite the table from the JSON")
    given = parser.parse_args()
    if given.table_only:
        publish(known("objectives"), "objectives", table)
        return
    start = time.perf_counter()
    tasks = _tasks(given.seeds, set(given.only))
    rows: dict[str, dict[str, Any]] = {}
    for task, measured in run_all(tasks, given.processes):
        for row, figures in measured.items():
            rows.setdefault(row, {})[str(task.seed)] = figures
            rounded = {key: round(value, 4) for key, value in figures.items()}
            print(row, task.seed, rounded, flush=True)
    if given.only and not given.write:
        return
    settings = {
        f"{paradigm}/{objective}": {"recipe": cell.recipe, "overrides": list(cell.overrides)}
        for paradigm, cells in CELLS.items()
        for objective, cell in cells.items()
    }
    command = f"python tests/benchmarks/{Path(__file__).name}"
    found = provenance(command, given.seeds, start)
    if given.only:
        older = known("objectives")
        again = older.get("again", {}) | dict.fromkeys(rows, found["commit"])
        rows, found = older["rows"] | rows, older | {"again": again}
    publish(found | {"settings": settings, "rows": rows}, "objectives", table)


def _tasks(seeds: list[int], only: set[str]) -> list[Task]:
    tasks = [
        Task(f"{paradigm} base", parent, seed, base=True)
        for paradigm, parent in PARENTS.items()
        for seed in seeds
        if not only
    ]
    for paradigm, cells in CELLS.items():
        for objective, cell in cells.items():
            label = f"{paradigm}/{objective}"
            if not only or label in only:
                tasks += [Task(label, cell.recipe, seed, cell.overrides) for seed in seeds]
    return tasks


if __name__ == "__main__":
    main()
