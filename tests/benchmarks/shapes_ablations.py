"""The paper in miniature: the recipes of recipes/shapes over bases and seeds.

    python tests/benchmarks/shapes_ablations.py

First every recipe's learning rate is chosen on ``validate.jsonl`` (base-0, a seed that the table
does not use), then the rows are trained and measured on ``evaluate.jsonl``, whose compositions RL
never saw. A run has one thread, so results do not depend on the number of workers; seconds are
processor seconds of training. Writes shapes_ablations.json beside this file after every run, takes
up from it when started again, and puts the table between its markers of recipes/README.md.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HERE, README, Row, provenance

MAIN = ("", "_ar", "_p1_plain", "_p2", "_kl")
"""Every base and every seed."""
MORE = (
    "_no_filter", "_filter", "_first_steps", "_last_steps", "_random_steps", "_stratified_steps",
    "_fewer_steps", "_all_steps", "_random_reward", "_shuffled_reward",
)  # fmt: skip
"""Every base, the first seed."""
BASES = ("base-0", "base-1", "base-4")
SEEDS = (1, 2, 3)
RATES = (2.5e-5, 5e-5, 1e-4)
AS_PARENT = ("_all_steps", "_random_reward", "_shuffled_reward")
"""Too long, or nothing to choose by: they take the rate of mask_grpo."""
CHOOSING_SEED = 100
CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
LONGER = "shapes/longer_base"
SHORT = 12
"""Iterations of the runs that CI repeats."""
SHORT_RUNS = ("", "_shuffled_reward", "_random_reward")
PROMPTS = HERE.parents[1] / "recipes" / "shapes" / "prompts"
RESULTS = HERE / "shapes_ablations.json"


@dataclass(frozen=True)
class Task:
    """One training run and its measurements; ``rate`` 0 for the untouched base."""

    recipe: str
    base: str
    seed: int
    rate: float
    choosing: bool = False
    sweep: bool = False
    short: bool = False

    @property
    def key(self) -> str:
        name = f"{self.recipe} {self.base} {self.seed} {self.rate:g}"
        return f"{name} {SHORT} iterations" if self.short else name


def name_of(variant: str) -> str:
    """``_p2`` as a recipe."""
    return f"shapes/mask_grpo{variant}"


def run_task(task: Task) -> tuple[Task, dict[str, Row]]:
    """Train and measure in this process: what was sampled how -> figures."""
    import torch

    from genrl_core.recipe.recipe import load_recipe
    from genrl_core.run.assembly import build_trainer

    torch.set_num_threads(1)
    prompts = "validate" if task.choosing else "evaluate"
    measuring = "shapes/mask_grpo" if task.recipe in ("base", LONGER) else task.recipe
    fixed = [f"run.seed={task.seed}", "run.device=cpu", f"policy.weights={task.base}"]
    own = [f"prompts.evaluate={PROMPTS / prompts}.jsonl"]
    own += [f"train.learning_rate={task.rate}"] if task.rate else []
    own += [f"train.iterations={SHORT}"] if task.short else []
    recipe = load_recipe(measuring, [*fixed, *own])
    trainer = build_trainer(recipe)
    trained, training = trainer, trainer
    if task.recipe == LONGER:
        training = build_trainer(load_recipe(LONGER, fixed))
    start, drift = time.process_time(), 0.0
    for _ in range(training.parts.train.iterations if task.recipe != "base" else 0):
        drift = max(drift, training.step().metrics.get("drift", 0.0))
    seconds = time.process_time() - start
    if training is not trained:
        trained.parts.policy.network.load_state_dict(training.parts.policy.network.state_dict())
    rows = {} if task.short else {"": measured(trained)}
    if not task.choosing:
        rows["12 steps"] = measured(trained, num_inference_steps=12)
    for row in rows.values():
        row |= {"seconds": seconds, "drift": drift}
    if task.sweep:
        for field, values in recipe.evaluate.baseline_sweep.items():
            for value in values:
                rows[f"{field} {value:g}"] = measured(trained, **{field: value})
    return task, rows


def measured(trainer: Any, **overrides: Any) -> Row:
    """Strict and judged shares of right images, by category, and what the objects' places say."""
    found = trainer.evaluate(**overrides)
    names = [(label, c) for label in ("strict", "judge") for c in ("", *CATEGORIES)]
    row = {f"{a}/{c}".rstrip("/"): found.metrics[f"{a}/{c}".rstrip("/")] for a, c in names}
    row["reward"] = found.metrics["reward/shapes_verifier"]
    return row | understood(found) | {"distinct": distinct(found)}


def understood(found: Any) -> Row:
    """Of the images with the right objects: the share that stands as asked (chance .375 where the
    cells are drawn at random), and that gives each object its own colour (chance .5).
    """
    from genrl_shapes.grammar import request_of
    from genrl_shapes.verifier import pixels_of, see, to_palette

    right: dict[str, list[bool]] = {"position": [], "attribution": []}
    seen = see(to_palette(pixels_of(found.media)))
    for scene, prompt in zip(seen, found.prompts, strict=True):
        request = request_of(prompt)
        asked, shown = request.wishes, scene.things
        same = sorted(w.shape for w in asked) == sorted(t.shape for t in shown) and not scene.junk
        if request.category == "position" and same:
            right["position"].append(_strict(scene, request))
        coloured = sorted(str(w.colour) for w in asked) == sorted(t.colour for t in shown)
        if request.category == "attribution" and same and coloured:
            right["attribution"].append(_strict(scene, request))
    return {
        name: value
        for kind, answers in right.items()
        for name, value in (
            (f"right {kind}", statistics.mean(answers) if answers else 0.0),
            (f"asked {kind}", float(len(answers))),
        )
    }


def _strict(scene: Any, request: Any) -> bool:
    from genrl_shapes.verifier import dense

    return bool(dense(scene, request) == 1)


def distinct(found: Any) -> float:
    """Different images among those of one prompt, as a share; the mean over prompts."""
    size = found.num_generations
    pixels = found.media.pixels.flatten(1)
    groups = pixels.split(size)
    return statistics.mean(len(group.unique(dim=0)) / size for group in groups)


def choose(rows: dict[str, Any]) -> dict[str, float]:
    """The learning rate of every variant: of RATES the one with the most right on ``validate``."""
    chosen = {}
    for variant in (*MAIN, *MORE):
        name = name_of(variant)
        if variant in AS_PARENT:
            chosen[name] = chosen[name_of("")]
            continue
        tried = {rate: rows[Task(name, "base-0", CHOOSING_SEED, rate).key] for rate in RATES}
        chosen[name] = max(tried, key=lambda rate: float(tried[rate][""]["strict"]))
    return chosen


def choosing_tasks() -> list[Task]:
    """Every variant that has its own."""
    variants = [v for v in (*MAIN, *MORE) if v not in AS_PARENT]
    return [
        Task(name_of(v), "base-0", CHOOSING_SEED, rate, choosing=True)
        for v in variants
        for rate in RATES
    ]


def row_tasks(chosen: dict[str, float]) -> list[Task]:
    """Bases, main rows, the rest."""
    tasks = [Task("base", b, s, 0.0, sweep=s == SEEDS[0]) for b in BASES for s in SEEDS]
    tasks += [
        Task(name_of(v), b, s, chosen[name_of(v)], sweep=not v and s == SEEDS[0])
        for s in SEEDS for v in MAIN for b in BASES
    ]  # fmt: skip
    tasks += [Task(name_of(v), b, SEEDS[0], chosen[name_of(v)]) for v in MORE for b in BASES]
    tasks += [Task(LONGER, b, SEEDS[0], 0.0) for b in BASES]
    return tasks + [short_task(name_of(v), chosen) for v in SHORT_RUNS]


def short_task(recipe: str, chosen: dict[str, float]) -> Task:
    """The run of a recipe that CI repeats."""
    return Task(recipe, BASES[0], SEEDS[0], chosen[recipe], short=True)


def run_all(tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, dict[str, Row]]]:
    """In processes of one thread, as they are asked for."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_task, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget the runs in the JSON")
    parser.add_argument("--table-only", action="store_true", help="rewrite the table from the JSON")
    given = parser.parse_args()
    results: dict[str, Any] = {"rows": {}, "minutes": 0.0}
    if RESULTS.is_file() and not given.fresh:
        results = json.loads(RESULTS.read_text())
    if not given.table_only:
        results = measure(results, given.processes)
    publish(results)


def measure(results: dict[str, Any], processes: int) -> dict[str, Any]:
    """Run what the results lack, first for the choice of learning rates and then for the table."""
    spent = results["minutes"]
    start = time.perf_counter() - 60 * spent
    rows = results["rows"]

    def run(tasks: Sequence[Task]) -> None:
        nonlocal results
        lacking = [task for task in tasks if task.key not in rows]
        for task, found in run_all(lacking, processes):
            rows[task.key] = found
            first = next(iter(found.values()))
            said = {name: round(first[name], 3) for name in ("strict", "seconds")}
            print(f"{task.key:60}", said, flush=True)
            command = f"python tests/benchmarks/{Path(__file__).name}"
            results = {**results, **provenance(command, SEEDS, start), "rows": rows}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    run(choosing_tasks())
    results["chosen"] = choose(rows)
    run(row_tasks(results["chosen"]))
    return {**results, "rows": rows}


def publish(results: dict[str, Any]) -> None:
    """The JSON, and the table between its markers of recipes/README.md."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    begin, end = "<!-- shapes ablations: begin -->", "<!-- shapes ablations: end -->"
    text = README.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    note = (
        f"`{results['command']}`, {', '.join(BASES)}, seeds {', '.join(map(str, SEEDS))}, "
        f"{results['hardware']}, commit `{results['commit']}`, {results['minutes']:.0f} minutes."
    )
    README.write_text(f"{before}{begin}\n{table(results)}\n\n{note}\n{end}{after}")


def table(results: dict[str, Any]) -> str:
    """The markdown tables: what is right, and what the models know of places and colours."""
    shown = [(label, runs) for label, runs in table_rows(results) if runs]
    more = " | ".join(CATEGORIES)
    head = f"| | right | gain | {more} | judge | 12 steps | rate | s | runs |"
    lines = [head, "|-" * (len(CATEGORIES) + 8) + "|"]
    for label, runs in shown:
        cells = [spread(runs, "strict"), spread(runs, "gain")]
        cells += [mean(runs, f"strict/{category}", ".2f") for category in CATEGORIES]
        cells += [mean(runs, "judge", ".3f"), mean(runs, "few", ".3f"), mean(runs, "rate", "g")]
        cells += [mean(runs, "seconds", ".0f"), str(len(runs))]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| | stands as asked | has its own colour | different images |", "|-|-|-|-|"]
    for label, runs in shown:
        if "," not in label:
            known = [mean(runs, key, ".2f") for key in ("right position", "right attribution")]
            lines.append(f"| {label} | {' | '.join(known)} | {mean(runs, 'distinct', '.2f')} |")
    return "\n".join(lines)


def mean(runs: list[Row], key: str, form: str) -> str:
    """The mean over the runs that have a figure; empty where none has it."""
    values = [run[key] for run in runs if key in run]
    return f"{statistics.mean(values):{form}}" if values else ""


def spread(runs: list[Row], key: str) -> str:
    """Mean and deviation over the runs; empty where they have no such figure."""
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def table_rows(results: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Label and runs of every row, in the table's order."""
    rows, chosen, own = results["rows"], results["chosen"], name_of("")

    def base_mean(base: str) -> float:
        return statistics.mean(rows[Task("base", base, s, 0.0).key][""]["strict"] for s in SEEDS)

    def runs(recipe: str, rate: float, how: str = "") -> list[Row]:
        """With the gain over the mean of the same base, the rate, and the figure for 12 steps."""
        found = []
        for base, seed in ((b, s) for b in BASES for s in SEEDS):
            row = rows.get(Task(recipe, base, seed, rate).key, {})
            if how in row:
                more = {"few": row["12 steps"]["strict"], "rate": rate} if not how else {}
                figures = row[how] | more | {"gain": row[how]["strict"] - base_mean(base)}
                bare = {LONGER: {"rate"}, "base": {"rate", "gain", "seconds"}}.get(recipe, set())
                found.append({name: v for name, v in figures.items() if name not in bare})
        return found

    def sampled(label: str, recipe: str, rate: float) -> list[tuple[str, list[Row]]]:
        every = rows[Task(recipe, BASES[0], SEEDS[0], rate).key]
        names = [name for name in every if name not in ("", "12 steps")]
        return [(f"{label}, {name.replace('_', ' ')}", runs(recipe, rate, name)) for name in names]

    def best(found: list[tuple[str, list[Row]]]) -> list[Row]:
        """Of every base the best sampler, chosen on these very images."""
        kept = [
            max(runs, key=lambda row: row["strict"])
            for runs in zip(*(r for _, r in found), strict=True)
        ]
        return [
            row | {"gain": row["strict"] - base_mean(base)}
            for row, base in zip(kept, BASES, strict=True)
        ]

    swept = sampled("base", "base", 0.0)
    table: list[tuple[str, list[Row]]] = [("base", runs("base", 0.0)), *swept]
    table += [("base, each one's best of these", best(swept))]
    table += [("base pre-trained longer", runs(LONGER, 0.0))]
    table += [(f"`{name}`", runs(name, chosen[name])) for name in map(name_of, (*MAIN, *MORE))]
    return table + sampled(f"`{own}`", own, chosen[own])


if __name__ == "__main__":
    main()
