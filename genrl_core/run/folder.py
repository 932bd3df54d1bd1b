"""The run folder: what a run leaves behind, complete at every moment, and its progress on screen.

runs/<name>/  run.json  recipe.yaml  recipe.resolved.yaml  environment.json
              metrics.jsonl  events.jsonl  samples/  plots/  before_after.png  checkpoints/
"""

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run import files
from genrl_core.run.console import Display
from genrl_core.run.environment import command_line, commit, environment, versions
from genrl_core.run.lock import RunLock
from genrl_core.run.pictures import ImageColumn, image_grid, plots
from genrl_core.run.trackers import Trackers

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REFRESH = 10.0
"""Seconds between updates of ``run.json`` while a run goes on."""
_WRITTEN = (
    "run.json", "metrics.jsonl", "events.jsonl", "samples", "plots", "before_after.png",
    "tensorboard", "wandb", "mlflow", "mlflow.db",
)  # fmt: skip


class RunFolder:
    """Writes one run folder; on rank 0 only.

    As a context manager it closes itself, and notes an exception as the reason of the end; where a
    ``RecipeError`` comes before the first iteration it takes a new folder back, so that the name is
    free for the corrected recipe. A picture that cannot be drawn is a warning, metrics that cannot
    be written are one warning: neither stops the run.

    Attributes:
        folder: where it lies.
    """

    def __init__(
        self, folder: Path, lock: RunLock, run: dict[str, Any], info: Mapping[str, Any],
        display: Display,
    ):  # fmt: skip
        """Use ``create`` or ``resume``."""
        self.folder = folder
        self._lock, self._display = lock, display
        self._trackers = Trackers((), folder, "", {}, self._warn)
        fresh: dict[str, Any] = {"status": "running", "reason": None, "finished": None}
        fresh |= {"command": command_line(sys.argv), "commit": commit(), "versions": versions()}
        self._run = {"results": {}} | run | dict(info) | fresh
        self._complained: set[str] = set()
        self._metrics = files.JsonlWriter(folder / "metrics.jsonl")
        self._events = files.JsonlWriter(folder / "events.jsonl")
        self._write_run()
        if lock.stale is not None:
            self._warn(f"took over the lock of process {lock.stale}, which is dead")

    @classmethod
    def create(
        cls, runs: Path, name: str | None, default_name: str, given: str, resolved_yaml: str,
        info: Mapping[str, Any], total: int, json_lines: bool = False, quiet: bool = False,
    ) -> Self:  # fmt: skip
        """Start a new run folder.

        Args:
            runs: the folder of all runs; made if absent.
            name: ``run.name``; None takes the first free one of default_name, default_name-2, ...
            default_name: the recipe's name; characters that no folder may have become ``-``.
            given, resolved_yaml: the recipe as given and as resolved.
            info: more for ``run.json``: seeds, plugin versions, world size.
            total: iterations that the run is to have.
            json_lines, quiet: how to show progress: JSON lines, or not at all.

        Raises:
            RecipeError: the name is no name, or the run folder exists.
            GenRLError: the folder cannot be written.
        """
        with _writing(runs):
            runs.mkdir(parents=True, exist_ok=True)
            folder = _claim(runs.resolve(), name, default_name)
            lock = RunLock(folder)
            (folder / "recipe.yaml").write_text(given, encoding="utf-8")
            (folder / "recipe.resolved.yaml").write_text(resolved_yaml, encoding="utf-8")
            files.write_json(folder / "environment.json", environment())
            run = {"name": folder.name, "started": _now(), "iterations": total, "iteration": 0}
            return cls(folder, lock, run, info, Display(total, json_lines, quiet))

    @classmethod
    def resume(
        cls, folder: Path, iteration: int, info: Mapping[str, Any], total: int,
        json_lines: bool = False, quiet: bool = False, resolved_yaml: str | None = None,
    ) -> Self:  # fmt: skip
        """Continue a run folder after ``iteration``, the checkpoint's: what was logged later goes.

        Args:
            folder: the run folder.
            iteration: what is complete.
            info, total, json_lines, quiet: as for ``create``.
            resolved_yaml: the recipe that it has from now on; None leaves the one that it has.

        Raises:
            RecipeError: it is no run folder, or another process is writing it.
            GenRLError: the folder cannot be written.
        """
        folder = folder.resolve()
        if not (folder / "run.json").exists() and not (folder / "metrics.jsonl").exists():
            raise RecipeError(f"{folder} is no run folder: run.json and metrics.jsonl are missing")
        _refuse_links(folder)
        with _writing(folder):
            lock = RunLock(folder)
            logs = (folder / "metrics.jsonl", folder / "events.jsonl")
            dropped = [files.drop_later(log, iteration) for log in logs]
            if resolved_yaml is not None:
                files.write_atomically(folder / "recipe.resolved.yaml", resolved_yaml)
            run, damage = _read_run(folder)
            resumed = [*run.get("resumed", []), {"time": _now(), "iteration": iteration}]
            run |= {"name": folder.name, "resumed": resumed}
            run |= {"iterations": total, "iteration": iteration}
            found = cls(folder, lock, run, info, Display(total, json_lines, quiet))
        if damage:
            found._warn(damage)
        later, broken = (sum(counts) for counts in zip(*dropped, strict=True))
        found.event("resume", f"resumed after iteration {iteration}", later=later, broken=broken)
        return found

    def track(self, names: Sequence[str], config: Mapping[str, Any]) -> None:
        """Log to these trackers as well; ``config`` is the resolved recipe.

        Raises:
            RecipeError: one of them is not installed.
        """
        run_id = self.folder.name + re.sub(r"\D", "", f"-{self._run.get('started')}")[:15]
        self._trackers = Trackers(names, self.folder, run_id, config, self._warn)

    def iteration(self, metrics: Mapping[str, float | int | None]) -> None:
        """Log one iteration; ``metrics`` holds its number under ``iteration``."""
        number = int(metrics["iteration"] or 0)
        record: dict[str, Any] = {"iteration": 0, **metrics} | {"iteration": number}
        lost = [n for n, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
        if lost:
            record["non_finite"] = lost
        self._run["iteration"] = number
        with self._reported("metrics"):
            self._metrics.append(record)
        self._display.iteration(record)
        self._trackers.log(record, number)
        if time.monotonic() - self._written > REFRESH:
            self._write_run()

    def event(self, kind: str, message: str, **data: Any) -> None:
        """Log what is no number; kinds ``warning``, ``error`` and ``note`` are shown as well."""
        record = {"time": _now(), "iteration": self._run["iteration"], "kind": kind}
        record |= {"message": message, **({"data": data} if data else {})}
        with self._reported("events"):
            self._events.append(record)
        self._display.message(kind, message, data)

    def samples(self, iteration: int, media: Media, prompts: Sequence[Prompt]) -> None:
        """Write ``samples/iter_<iteration>``: ``index.jsonl`` and, of pixels, ``grid.png``."""
        with self._drawing(f"the samples of iteration {iteration}"):
            folder = self.folder / "samples" / f"iter_{iteration:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            texts = media.texts or [None] * len(media)
            lines = [
                {"index": i, "prompt_id": prompt.id, "prompt": files.one_line(prompt.text)}
                | ({} if text is None else {"text": files.one_line(text)})
                for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            ]
            files.write_jsonl(folder / "index.jsonl", lines)
            if media.pixels is not None:
                column = ImageColumn("samples", media, prompts, {})
                grid = image_grid([column], f"iteration {iteration}", 32, 12)
                grid.save(folder / "grid.png")
                self._trackers.image("samples", np.asarray(grid), iteration)

    def before_after(self, columns: Sequence[ImageColumn], title: str) -> None:
        """Write ``before_after.png``: a row per prompt, a column per policy."""
        if all(column.media.pixels is not None for column in columns):
            with self._drawing("before_after.png"):
                image_grid(columns, title).save(self.folder / "before_after.png")

    def plots(self) -> None:
        """Write ``plots/*.png`` from everything logged so far."""
        with self._drawing("plots"):
            plots(files.read_jsonl(self.folder / "metrics.jsonl")[0], self.folder / "plots")

    def finish(
        self, status: str, reason: str | None = None, results: Mapping[str, Any] | None = None
    ) -> None:
        """Note how the run ended and show its results.

        Args:
            status: ``done``, ``stopped`` (resumable) or ``failed``.
            reason: why, unless it is done.
            results: ``before``, ``best_base``, ``after``, each metric -> number; a row may bring
                its own ``title``.
        """
        self._run |= {"status": status, "reason": reason, "finished": _now()}
        if results is not None:
            self._run["results"] = results
        self._write_run()
        self._display.finish(self._run, str(self.folder))
        rows = [(row, n) for row, n in (results or {}).items() if isinstance(n, Mapping)]
        ends = {f"{row}/{name}": value for row, named in rows for name, value in named.items()}
        self._trackers.log(ends, self._run["iteration"])

    def close(self) -> None:
        """Give everything back; a run that nobody finished is noted as failed."""
        if self._run["status"] == "running":
            self.finish("failed", "ended without a reason")
        self._trackers.close()
        self._display.close()
        self._metrics.close()
        self._events.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        running = self._run["status"] == "running"
        fresh = running and "resumed" not in self._run and not self._run["iteration"]
        if kind is not None and issubclass(kind, RecipeError) and fresh:
            self._display.message("note", f"nothing was trained: {self.folder} is taken back", {})
            self._run["status"] = "failed"  # so that close has nothing to finish
            self.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        if kind is not None and running:
            stopped = issubclass(kind, KeyboardInterrupt)
            known = issubclass(kind, GenRLError)
            reason = f"{error}" if known else f"{kind.__name__}: {error}".rstrip(": ")
            self.finish("stopped" if stopped else "failed", reason)
        self.close()

    def _warn(self, message: str) -> None:
        self.event("warning", message)

    def _write_run(self) -> None:
        self._written = time.monotonic()
        with self._reported("run.json"):
            files.write_json(self.folder / "run.json", self._run)

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Warn once per file, and on screen if the events are what cannot be written."""
        try:
            yield
        except (OSError, ValueError) as error:
            if what in self._complained:
                return
            self._complained.add(what)
            message = f"{what} cannot be written to {self.folder}: {error}; the run goes on"
            if what == "events":
                self._display.message("warning", message, {})
            else:
                self._warn(message)

    @contextmanager
    def _drawing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever it is, it is only a picture)
            self._warn(f"{what} could not be drawn: {type(error).__name__}: {error}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GenRLError(f"{folder}: the run folder cannot be written: {error}") from error


def _claim(runs: Path, name: str | None, default_name: str) -> Path:
    """Make the folder of a new run; making it is what decides between two that want it."""
    if name is not None and not NAME.fullmatch(name):
        raise RecipeError(
            f"run.name={name!r} is no name for a run folder: use letters, digits, '.', '_' "
            "and '-', 128 at the most, a letter or digit first"
        )
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", default_name).lstrip("._-")[:120] or "run"
    number = 1
    while True:
        folder = runs / (name or (base if number == 1 else f"{base}-{number}"))
        try:
            folder.mkdir()
        except FileExistsError:
            if name is not None:
                raise RecipeError(
                    f"the run folder {folder} exists: choose another run.name=..., or continue "
                    f"that run with --resume {folder}"
                ) from None
            number += 1
        else:
            return folder


def _refuse_links(folder: Path) -> None:
    """A run folder from elsewhere must not make us write outside of it."""
    for path in [*(folder / name for name in _WRITTEN), *folder.glob("samples/iter_*")]:
        if path.is_symlink():
            raise RecipeError(f"{path} is a link: a run folder is written without following links")


def _read_run(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What ``run.json`` says, or nothing and a complaint."""
    try:
        run = json.loads((folder / "run.json").read_bytes())
        if isinstance(run, dict):
            return run, None
        problem = "it holds no mapping"
    except (OSError, ValueError) as error:
        problem = str(error)
    return {}, f"run.json was unreadable ({problem}) and starts anew"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
