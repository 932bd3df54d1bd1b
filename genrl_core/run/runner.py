"""A run from end to end: the trainer, its run folder, its checkpoints, its evaluations."""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from genrl_core.errors import CheckpointError, GenRLError, RecipeError
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.trainer import Record, Trainer
from genrl_core.recipe.check import CheckedRecipe, check_recipe
from genrl_core.recipe.identity import changes, refusal
from genrl_core.recipe.recipe import Recipe, flat
from genrl_core.run import checkpoint, saving
from genrl_core.run.api import open_run
from genrl_core.run.assembly import build_trainer
from genrl_core.run.baseline import Measured, measure_baseline
from genrl_core.run.console import metrics_line
from genrl_core.run.dry_run import dry_run as run_dry
from genrl_core.run.folder import RunFolder
from genrl_core.run.signals import Signals
from genrl_core.run.trackers import missing
from genrl_core.text import format_value

DONE, STOPPED = 0, 75


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
    if absent := missing(checked.recipe.run.trackers):
        raise RecipeError("; ".join(absent))
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
        self._recorder: RunFolder | None = None
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
        before = flat(open_run(folder, recipe.registry).recipe.resolved)
        for snapshot in checkpoint.snapshots(folder, skipped):
            if why := refusal(snapshot.state.get("recipe"), recipe, snapshot.iteration):
                raise RecipeError(
                    f"{folder} cannot be resumed: {why}. Resume without that, or start a new run "
                    f"with policy.weights={folder}"
                )
            trainer = trainer or self._build()
            try:
                saving.check(trainer, recipe, snapshot)
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
            return trainer, snapshot
        found = "; ".join(skipped) or "there is no checkpoint"
        raise RecipeError(f"{folder} cannot be resumed: {found}")

    def _record_in(self, folder: Path, json: bool, quiet: bool) -> RunFolder:
        """The recorder of a new run in the folder of all runs, or of the run that is resumed."""
        recipe, total = self._recipe, self._recipe.train.iterations
        seed, ranks = recipe.run.seed, self._runtime.world_size
        info = {"seed": seed, "world_size": ranks, "recipe": recipe.name}
        if self._resumed is None:
            return RunFolder.create(
                folder, recipe.run.name, recipe.name, recipe.given, recipe.to_yaml(), info, total,
                json, quiet,
            )  # fmt: skip
        done = self._resumed[1].iteration
        return RunFolder.resume(folder, done, info, total, json, quiet, recipe.to_yaml())

    def _build(self) -> Trainer:
        return build_trainer(
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
        if self._recorder:
            self._recorder.track(self._recipe.run.trackers, self._recipe.resolved)
        self._note("note", f"loading {self._recipe.name}; run folder: {self._folder}")
        trainer = self._resumed[0] if self._resumed else self._build()
        results = self._measure_base(trainer)
        if self._resumed:
            saving.restore(trainer, self._recipe, self._resumed[1])
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
            saved = checkpoint.saved_steps(self._folder)
            if not saved:
                raise GenRLError("ended by a second signal before there was a checkpoint") from None
            reason = f"a second signal; the last checkpoint is {saved[-1].name}"
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
        if due and trainer.parts.evaluator.prompts:
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
                saving.save(trainer, self._recipe, self._folder)
        except CheckpointError as error:
            self._note("warning", f"{error}; training goes on")
        else:
            self._note("save", f"checkpoint after iteration {trainer.iteration}")
        self._saved = time.monotonic()

    def _measure_base(self, trainer: Trainer) -> dict[str, Measured]:
        if not trainer.parts.evaluator.prompts:
            return {}
        measure, note = partial(self._measured, trainer), partial(self._note, "note")
        return measure_baseline(self._recipe, trainer, measure, note)

    def _measured(self, trainer: Trainer, title: str, **overrides: Any) -> Measured:
        """An evaluation, which is said at once: a run of days must not keep it to its end."""
        start = time.monotonic()
        found = Measured(title, trainer.evaluate(**overrides))
        seconds = time.monotonic() - start
        line = f"{title}: {metrics_line(found.evaluation.metrics)}  {seconds:.1f} s"
        self._note("note", line, results=found.row())
        return found

    def _conclude(self, trainer: Trainer, results: dict[str, Measured]) -> None:
        if trainer.parts.evaluator.prompts and trainer.iteration:  # else it is the base still
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
