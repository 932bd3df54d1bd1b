"""What the benchmarks share: one training run measured, provenance, and tables between markers."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parents[1] / "recipes" / "README.md"
MEASURES = ("judge", "frechet", "diversity")

Row = dict[str, float]


@dataclass(frozen=True)
class Task:
    """One training run, or with ``base`` only the untrained model and its sweep."""

    label: str
    recipe: str
    seed: int
    overrides: tuple[str, ...] = ()
    base: bool = False


def run_task(task: Task) -> tuple[Task, dict[str, Row]]:
    """Train and measure in this process, on one thread: label -> figures."""
    import torch

    from genrl_core.recipe.recipe import load_recipe
    from genrl_core.run.assembly import build_trainer

    torch.set_num_threads(1)
    fixed = [f"run.seed={task.seed}", "run.threads=1", "run.device=cpu"]
    recipe = load_recipe(task.recipe, [*fixed, *task.overrides])
    trainer = build_trainer(recipe)

    def measured(**overrides: Any) -> Row:
        found = trainer.evaluate(**overrides).metrics
        known = {key: found[key] for key in MEASURES}
        return known | {"reward": found["reward/digit_classifier"]}

    if task.base:
        rows = {task.label: measured()}
        for field, values in recipe.evaluate.baseline_sweep.items():
            for value in values:
                rows[f"{task.label}, {field} {value:g}"] = measured(**{field: value})
        return task, rows
    start, drift = time.perf_counter(), 0.0
    for _ in range(recipe.train.iterations):
        drift = max(drift, trainer.step().metrics.get("drift", 0.0))
    seconds = time.perf_counter() - start
    return task, {task.label: measured() | {"seconds": seconds, "drift": drift}}


def run_all(tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, dict[str, Row]]]:
    """Bases first, so that no two workers train the same one; results as they come, in order."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes) as pool:
        for kind in (True, False):
            yield from pool.map(run_task, [task for task in tasks if task.base is kind])


def best_of_base(rows: dict[str, dict[str, Row]], base: str) -> dict[str, Row]:
    """Of a base and its sweep (``evaluate.baseline_sweep``) the most accurate, for every seed."""
    best = dict(rows[base])
    for name, seeds in rows.items():
        if name.startswith(f"{base}, "):
            for seed, found in seeds.items():
                best[seed] = max(best[seed], found, key=lambda row: row["judge"])
    return best


def provenance(command: str, seeds: Sequence[int], start: float) -> dict[str, Any]:
    """Where the figures come from; ``start`` is ``time.perf_counter()`` at the beginning."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE, check=False).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "command": command, "commit": commit.strip(),
        "hardware": f"{os.cpu_count()} cores of {cpu or platform.processor()}",
        "python": sys.version.split()[0], "seeds": list(seeds),
        "minutes": (time.perf_counter() - start) / 60,
    }  # fmt: skip


def publish(results: dict[str, Any], name: str, table: Callable[[dict[str, Any]], str]) -> None:
    """Write digits_NAME.json, and the table between its markers of recipes/README.md."""
    (HERE / f"digits_{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    begin, end = f"<!-- digits {name}: begin -->", f"<!-- digits {name}: end -->"
    text = README.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    seeds = ", ".join(map(str, results["seeds"]))
    note = (
        f"`{results['command']}`, seeds {seeds}, {results['hardware']}, one thread a run, two runs "
        f"at a time, commit `{results['commit']}`, {results['minutes']:.0f} minutes in all."
    )
    for commit in sorted(set(results.get("again", {}).values())):
        labels = [f"`{label}`" for label, at in results["again"].items() if at == commit]
        note += f" At `{commit}` again: {', '.join(labels)}."
    README.write_text(f"{before}{begin}\n{table(results)}\n\n{note}\n{end}{after}")


def known(name: str) -> dict[str, Any]:
    """The committed results of a table."""
    found: dict[str, Any] = json.loads((HERE / f"digits_{name}.json").read_text())
    return found
