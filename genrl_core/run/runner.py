"""A run from end to end: the trainer, its run folder, its checkpoints, its evaluations."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from genrl_core.errors import CheckpointError, GenRLError, RecipeError
from genrl_core.interfaces.media import Prompt
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.evaluate import Evaluation
from genrl_core.loop.generate import draw
from genrl_core.loop.plan import plan_of
from genrl_core.loop.trainer import Record, Trainer
from genrl_core.recipe.check import CheckedRecipe, check_recipe
from genrl_core.recipe.identity import changes, refusal
from genrl_core.recipe.problems import raise_if
from genrl_core.recipe.prompts import unread
from genrl_core.recipe.recipe import RESOLVED_FILE, Recipe, flat, load_recipe
from genrl_core.run import checkpoint
from genrl_core.run.console import metrics_line
from genrl_core.run.dry_run import dry_run as run_dry
from genrl_core.run.folder import Recorder
from genrl_core.run.pictures import Column, sheet
from genrl_core.run.signals import Signals
from genrl_core.text import format_value

DONE, STOPPED = 0, 75


@dataclass(frozen=True)
class Measured:
    """An evaluation under the name that tables and pictures give it."""

    title: str
    evaluation: Evaluation

    def row(self) -> dict[str, Any]:
        return {"title": self.title, **self.evaluation.metrics}

    def column(self) -> Column:
        found = self.evaluation
        return Column(self.title, found.media, found.prompts, found.metrics)


def run(
    recipe: Recipe | CheckedRecipe, runs: Path, *, resume: Path | None = None,
    stop_after: int | None = None, dry_run: bool = False, json: bool = False, quiet: bool = False,
) -> int:  # fmt: skip
    """Train a recipe and keep everything under ``runs``.

    Args:
        recipe: what to train; with ``resume`` the run's own resolved recipe.
        runs: the folder of all run folders.
        resume: a run folder to continue from its newest valid checkpoint.
        stop_after: save and stop, resumable, after this many iterations.
        dry_run: build everything, draw and learn from one iteration, write nothing.
        json, quiet: how to show progress.

    Returns:
        0 when done, 75 when stopped and resumable.

    Raises:
        GenRLError: with the reason; the last good checkpoint stays.
    """
    checked = check_recipe(recipe)
    runtime = Runtime(checked.recipe.run.device)
    code = DONE
    try:
        if dry_run:
            run_dry(checked, runtime, json, quiet)
        else:
            code = _Run(checked, runs, resume, stop_after, runtime, json, quiet).go()
    except _Interrupted:
        runtime.close(together=False)
        return STOPPED
    except SystemExit as ending:  # no part of a run may end the process as if it were done
        runtime.close(together=False)
        message = f"a component called sys.exit({ending.code!r}); raise an error with the reason"
        raise GenRLError(message) from ending
    except BaseException:
        runtime.close(together=False)
        raise
    runtime.close()
    return code


class _Interrupted(Exception):  # noqa: N818  # no error: the run can be resumed
    """A second signal, and there is a checkpoint."""


class _Run:
    def __init__(
        self, checked: CheckedRecipe, runs: Path, resume: Path | None, stop_after: int | None,
        runtime: Runtime, json: bool, quiet: bool,
    ):  # fmt: skip
        self._checked, self._recipe = checked, checked.recipe
        self._runtime, self._stop_after = runtime, stop_after
        self._started = self._saved = time.monotonic()
        self._signals = Signals()
        self._empty = 0
        self._recorder: Recorder | None = None
        self._early: list[tuple[str, str, dict[str, Any]]] = []
        # All that could refuse a resume comes before its folder is touched.
        self._resumed = None if resume is None else self._accepted(resume)
        if runtime.main:
            self._recorder = self._record_in(runs if resume is None else resume, json, quiet)
        for kind, message, data in self._early:
            self._note(kind, message, **data)
        folders = runtime.collect(self._recorder.folder if self._recorder else None)
        self._folder: Path = next(folder for folder in folders if folder is not None)

    def _accepted(self, folder: Path) -> tuple[Trainer, checkpoint.Snapshot]:
        """A trainer, and the newest checkpoint of a run folder that it can continue.

        Raises:
            RecipeError: there is none, or the recipe is another; the folder is as it was.
        """
        recipe, skipped = self._recipe, list[str]()
        trainer: Trainer | None = None
        before = flat(resumable(folder, registry=recipe.registry).resolved)
        for snapshot in checkpoint.snapshots(folder, skipped):
            if why := refusal(snapshot.state.get("recipe"), recipe, snapshot.iteration):
                raise RecipeError(
                    f"{folder} cannot be resumed: {why}. Resume without that, or start a new run "
                    f"with policy.weights={folder}"
                )
            trainer = trainer or self._build()
            try:
                trainer.check(snapshot)
            except CheckpointError as error:
                skipped.append(f"passed over: {error}")
                continue
            for message in skipped:
                self._note("warning", message)
            changed = changes(before, flat(recipe.resolved))
            words = [
                f"{key} {format_value(new)} (was {format_value(old)})"
                for key, (old, new) in changed.items()
            ]
            if words:
                self._note("note", f"resumed with {', '.join(words)}", changed=changed)
            trainer.check_prompts()
            return trainer, snapshot
        found = "; ".join(skipped) or "there is no checkpoint"
        raise RecipeError(f"{folder} cannot be resumed: {found}")

    def _record_in(self, folder: Path, json: bool, quiet: bool) -> Recorder:
        """The recorder of a new run in the folder of all runs, or of the run that is resumed."""
        recipe, total = self._recipe, self._recipe.train.iterations
        seed, ranks = recipe.run.seed, self._runtime.world_size
        info = {"seed": seed, "world_size": ranks, "recipe": recipe.name}
        if self._resumed is None:
            return Recorder.create(
                folder, recipe.run.name, recipe.name, recipe.given, recipe.to_yaml(), info, total,
                json, quiet,
            )  # fmt: skip
        done = self._resumed[1].iteration
        return Recorder.resume(folder, done, info, total, json, quiet, recipe.to_yaml())

    def _build(self) -> Trainer:
        return Trainer(
            self._checked, runtime=self._runtime, notify=lambda text: self._note("note", text),
            warn=lambda text: self._note("warning", text),
        )  # fmt: skip

    def go(self) -> int:
        context: AbstractContextManager[Any] = self._recorder or nullcontext()
        with context, self._signals.noted():
            try:
                return self._go()
            except KeyboardInterrupt:
                self._interrupted()
                raise _Interrupted from None

    def _go(self) -> int:
        self._note("note", f"loading {self._recipe.name}; run folder: {self._folder}")
        trainer = self._resumed[0] if self._resumed else self._build()
        results = self._measure_base(trainer)
        if self._resumed:
            trainer.restore(self._resumed[1])
        code = self._iterate(trainer)
        if code == DONE:
            trainer.check_learned()
            self._conclude(trainer, results)
        return code

    def _interrupted(self) -> None:
        """Say what a second signal left behind.

        Raises:
            GenRLError: there is no checkpoint to go on from.
        """
        with self._signals.spared():
            saved = checkpoint.newest(self._folder)
            if saved is None:
                raise GenRLError("ended by a second signal before there was a checkpoint") from None
            reason = f"a second signal; the last checkpoint is {saved.name}"
            if self._recorder:
                self._recorder.finish("stopped", f"{reason}; {self._way_on()}", {})

    def _way_on(self) -> str:
        return f"continue with: genrl run --resume {self._folder}"

    def _iterate(self, trainer: Trainer) -> int:
        recipe, begin = self._recipe, trainer.iteration
        self._saved = time.monotonic()
        while trainer.iteration < recipe.train.iterations:
            record = trainer.step()
            self._record(trainer, record)
            due = recipe.save.every and record.iteration % recipe.save.every == 0
            limit = self._stop_after is not None and record.iteration - begin >= self._stop_after
            asked, late = self._asked()
            last = record.iteration == recipe.train.iterations
            if due or late or last or limit or asked:
                self._save(trainer)
            if (limit or asked) and not last:
                reason = "--stop-after" if limit else "a signal"
                if self._recorder:
                    self._recorder.finish("stopped", f"{reason}; {self._way_on()}", {})
                return STOPPED
        return DONE

    def _asked(self) -> tuple[bool, bool]:
        """Whether a signal came to any rank, and whether rank 0 says that it is time to save."""
        limit = self._recipe.save.minutes * 60
        late = self._runtime.main and 0 < limit <= time.monotonic() - self._saved
        answers = self._runtime.collect((self._signals.seen > 0, late))
        return any(asked for asked, _ in answers), any(late for _, late in answers)

    def _record(self, trainer: Trainer, record: Record) -> None:
        every, number = self._recipe.evaluate.every, record.iteration
        metrics: dict[str, float] = dict(record.metrics)
        due = bool(every) and number % every == 0 and number < self._recipe.train.iterations
        if due and trainer.held_out:
            found = trainer.evaluate()
            metrics |= {f"evaluate/{name}": value for name, value in found.metrics.items()}
            if self._recorder:
                self._recorder.samples(number, found.media, found.prompts)
        if self._recorder:
            if record.problem:
                self._recorder.event("warning", f"optimizer step skipped: {record.problem}")
            if record.empty:
                self._empty += 1
                if self._empty.bit_count() == 1:  # the 1st, 2nd, 4th, ...: metrics count them all
                    self._recorder.event(
                        "warning",
                        f"iteration {number} moved nothing: {record.empty} ({self._empty} so far)",
                    )
            self._recorder.iteration(metrics)

    def _save(self, trainer: Trainer) -> None:
        try:
            with self._signals.spared():
                trainer.save(self._folder)
        except CheckpointError as error:
            self._note("warning", f"{error}; training goes on")
        else:
            self._note("save", f"checkpoint after iteration {trainer.iteration}")
        self._saved = time.monotonic()

    def _measure_base(self, trainer: Trainer) -> dict[str, Measured]:
        """The policy before training: as recipes sample it, and at the best of "
        "``baseline_sweep``.
        """
        if not trainer.held_out:
            return {}
        found = {"before": self._measured("base", trainer)}
        best: Measured | None = None
        headline = _headline(self._recipe, found["before"].evaluation)
        for field, values in self._recipe.evaluate.baseline_sweep.items():
            for value in values:
                swept = self._measured(f"base, {field} {value:g}", trainer, **{field: value})
                score = swept.evaluation.metrics[headline]
                if best is None or score > best.evaluation.metrics[headline]:
                    best = swept
        if best is not None:
            found["best_base"] = best
        return found

    def _measured(self, title: str, trainer: Trainer, **overrides: Any) -> Measured:
        """An evaluation, which is said at once: a run of days must not keep it to its end."""
        start = time.monotonic()
        found = Measured(title, trainer.evaluate(**overrides))
        seconds = time.monotonic() - start
        line = f"{title}: {metrics_line(found.evaluation.metrics)}  {seconds:.1f} s"
        self._note("note", line, results=found.row())
        return found

    def _conclude(self, trainer: Trainer, results: dict[str, Measured]) -> None:
        if trainer.held_out and trainer.iteration:  # else it is the base still
            results["after"] = Measured("tuned", trainer.evaluate())
        if not self._recorder:
            return
        if results:
            last = results["after" if trainer.iteration else "before"].evaluation
            self._recorder.samples(trainer.iteration, last.media, last.prompts)
            self._recorder.before_after(
                [measured.column() for measured in results.values()], self._recipe.name
            )
        self._recorder.plots()
        seconds = time.monotonic() - self._started
        rows = {name: measured.row() for name, measured in results.items()}
        self._recorder.finish("done", None, rows | {"seconds": round(seconds, 1)})

    def _note(self, kind: str, message: str, **data: Any) -> None:
        if self._recorder:
            self._recorder.event(kind, message, **data)
        elif self._runtime.main:
            self._early.append((kind, message, data))


def _headline(recipe: Recipe, found: Evaluation) -> str:
    name = recipe.evaluate.primary_metric or next(iter(found.metrics), "")
    if recipe.evaluate.baseline_sweep and name not in found.metrics:
        known = ", ".join(found.metrics)
        raise RecipeError(f"evaluate.primary_metric: {name!r} is not measured; there are {known}")
    return name


def _newest(folder: Path) -> tuple[checkpoint.Snapshot, list[str]]:
    path, skipped = checkpoint.latest(folder)
    if path is None:
        found = "; ".join(skipped) or "there is no checkpoint"
        raise CheckpointError(f"{folder} cannot be resumed: {found}")
    return checkpoint.load(path), skipped


def resumable(folder: Path, **lookup: Any) -> Recipe:
    """The recipe of a run folder, as it was resolved.

    Raises:
        RecipeError: the folder is no run folder.
    """
    path = folder / RESOLVED_FILE
    if not path.is_file():
        raise RecipeError(f"{folder} is no run folder: it has no {RESOLVED_FILE}")
    return load_recipe(path, **lookup)


def sample(
    source: str | Path, prompts: Sequence[str], num: int, out: Path, *, seed: int | None = None,
    overrides: Sequence[str] = (), registry: Any = None, columns: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Draw from the policy of a run folder (its newest checkpoint) or of a recipe.

    Images become one PNG with a row per prompt, each at its own size unless that is tiny; texts
    one text file. Neither rewards nor measures are built.

    Raises:
        GenRLError: there is nothing to draw from.
        RecipeError: ``out`` exists, or it cannot be written.
    """
    if out.exists():
        raise RecipeError(f"{out} exists: choose another --out")
    if not out.parent.is_dir():
        raise RecipeError(f"there is no folder {out.parent}: make it, or choose another --out")
    folder = Path(source)
    is_run = (folder / RESOLVED_FILE).is_file()
    recipe = load_recipe(folder / RESOLVED_FILE if is_run else source, overrides, registry)
    runtime = Runtime(recipe.run.device)
    unmeasured = recipe.evaluate.model_copy(update={"primary_metric": None, "baseline_sweep": {}})
    trainer = Trainer(
        replace(recipe, metrics={}, evaluate=unmeasured), rewards={}, runtime=runtime,
        notify=lambda text: print(text, flush=True),
    )  # fmt: skip
    if is_run:
        trainer.restore(_newest(folder)[0], to_learn=False)
    asked = [Prompt(f"{i}", text, columns=columns or {}) for i, text in enumerate(prompts)]
    chosen = recipe.run.seed if seed is None else seed
    plan = plan_of(chosen, 0, 0, asked, num, runtime.device)
    sampler = recipe.sampler_for().build()
    refused, cuts = unread(asked, {"the policy": partial(sampler.reading, trainer.policy)})
    raise_if(refused)
    for cut in cuts:
        print(cut, flush=True)
    with trainer.in_use() as policy:
        _, media = draw(policy, sampler, plan, recipe.train.rollout_batch_size)
    if media.pixels is None:
        pairs = zip(plan.sample_prompts(), media.texts, strict=True)
        out.write_text("".join(f"{p.text}\t{t}\n" for p, t in pairs), encoding="utf-8")
    else:
        column = Column(recipe.name, media, plan.sample_prompts(), {})
        try:
            sheet([column], recipe.name, len(asked), num, largest=None).save(out)
        except (OSError, ValueError) as error:
            message = f"{out} cannot be written: {error}; choose an --out that ends in .png"
            raise RecipeError(message) from error
    return out
