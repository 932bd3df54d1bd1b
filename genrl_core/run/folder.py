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
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run.console import Display, mode_for, standard_output
from genrl_core.run.environment import command_line, commit, environment, versions
from genrl_core.run.files import JsonlWriter, dumps, filter_jsonl, one_line, read_jsonl, write_atomically
from genrl_core.run.glossary import GLOSSARY
from genrl_core.run.lock import RunLock
from genrl_core.run.pictures import Column, plots, sheet

__all__ = ["GLOSSARY", "Column", "Recorder"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REFRESH = 10.0
"""Seconds between updates of ``run.json`` while a run goes on."""


class Recorder:
    """Writes one run folder; on rank 0 only.

    As a context manager it closes itself, and notes an exception as the reason of the end; where a
    ``RecipeError`` comes before the first iteration it takes a new folder back, so that the name is
    free for the corrected recipe. A picture that cannot be drawn is a warning, metrics that cannot
    be written are one warning: neither stops the run.

    Attributes:
        folder: the run folder.
    """

    def __init__(self, folder: Path, lock: RunLock, run: dict[str, Any], display: Display):
        """Use ``create`` or ``resume``."""
        self.folder = folder
        self._lock, self._run, self._display = lock, run, display
        self._complained: set[str] = set()
        self._written = -math.inf
        self._metrics = JsonlWriter(folder / "metrics.jsonl")
        self._events = JsonlWriter(folder / "events.jsonl")
        self._write_run()
        if lock.stale is not None:
            self.event("warning", f"took over the lock of process {lock.stale}, which is dead")

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
        try:
            runs.mkdir(parents=True, exist_ok=True)
            folder = _claim(runs.resolve(), name, default_name)
            lock = RunLock(folder)
            (folder / "recipe.yaml").write_text(given, encoding="utf-8")
            (folder / "recipe.resolved.yaml").write_text(resolved_yaml, encoding="utf-8")
            write_atomically(folder / "environment.json", dumps(environment(), 1) + "\n")
            run = {"name": folder.name, "started": _now()}
            return cls._open(folder, lock, run, info, total, 0, json_lines, quiet)
        except OSError as error:
            raise GenRLError(f"{runs}: the run folder cannot be written: {error}") from error

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
            raise RecipeError(
                f"{folder} is no run folder: it has neither run.json nor metrics.jsonl"
            )
        _refuse_links(folder)
        try:
            lock = RunLock(folder)
            dropped = [
                _repair(folder / f"{stem}.jsonl", iteration) for stem in ("metrics", "events")
            ]
            if resolved_yaml is not None:
                write_atomically(folder / "recipe.resolved.yaml", resolved_yaml)
            run, damage = _read_run(folder)
            resumed = [*run.get("resumed", []), {"time": _now(), "iteration": iteration}]
            run |= {"name": folder.name, "resumed": resumed}
            recorder = cls._open(folder, lock, run, info, total, iteration, json_lines, quiet)
        except OSError as error:
            raise GenRLError(f"{folder}: the run folder cannot be written: {error}") from error
        if damage:
            recorder.event("warning", damage)
        later, broken = (sum(counts) for counts in zip(*dropped, strict=True))
        recorder.event("resume", f"resumed after iteration {iteration}", later=later, broken=broken)
        return recorder

    @classmethod
    def _open(
        cls, folder: Path, lock: RunLock, run: dict[str, Any], info: Mapping[str, Any], total: int,
        iteration: int, json_lines: bool, quiet: bool,
    ) -> Self:  # fmt: skip
        stream = standard_output()
        display = Display(total, mode_for(stream, json_lines=json_lines, quiet=quiet), stream)
        fresh: dict[str, Any] = {
            "status": "running",
            "reason": None,
            "finished": None,
            "iterations": total,
        }
        fresh |= {"iteration": iteration, "command": command_line(sys.argv), "commit": commit()}
        fresh |= {"versions": versions(), "results": run.get("results", {})}
        return cls(folder, lock, run | dict(info) | fresh, display)

    def iteration(self, metrics: Mapping[str, float | int | None]) -> None:
        """Log one iteration; ``metrics`` holds its number under ``iteration``."""
        record: dict[str, Any] = {"iteration": int(metrics["iteration"] or 0)}
        record |= {name: value for name, value in metrics.items() if name != "iteration"}
        lost = [n for n, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
        if lost:
            record["non_finite"] = lost
        self._run["iteration"] = record["iteration"]
        self._append(self._metrics, record, "metrics")
        self._display.iteration(record)
        if time.monotonic() - self._written > REFRESH:
            self._write_run()

    def event(self, kind: str, message: str, **data: Any) -> None:
        """Log what is no number; kinds ``warning``, ``error`` and ``note`` are shown as well."""
        record = {"time": _now(), "iteration": self._run["iteration"], "kind": kind}
        record |= {"message": message, **({"data": data} if data else {})}
        self._append(self._events, record, "events")
        self._display.message(kind, message, data)

    def samples(
        self, iteration: int, media: Media, prompts: Sequence[Prompt], title: str = ""
    ) -> None:
        """Write ``samples/iter_<iteration>``: ``index.jsonl`` and, of pixels, ``grid.png``."""

        def draw() -> None:
            folder = self.folder / "samples" / f"iter_{iteration:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            texts = media.texts or [None] * len(media)
            lines = [
                {"index": i, "prompt_id": prompt.id, "prompt": one_line(prompt.text)}
                | ({} if text is None else {"text": one_line(text)})
                for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            ]
            write_atomically(folder / "index.jsonl", "".join(dumps(line) + "\n" for line in lines))
            if media.pixels is not None:
                column = Column("samples", media, prompts, {})
                sheet([column], title or f"iteration {iteration}", 32, 12).save(folder / "grid.png")

        self._picture(f"the samples of iteration {iteration}", draw)

    def before_after(self, columns: Sequence[Column], title: str = "") -> None:
        """Write ``before_after.png``: a row per prompt, a column per policy."""

        def draw() -> None:
            sheet(columns, title or self.folder.name).save(self.folder / "before_after.png")

        if all(column.media.pixels is not None for column in columns):
            self._picture("before_after.png", draw)

    def plots(self) -> None:
        """Write ``plots/*.png`` from everything logged so far."""

        def draw() -> None:
            plots(read_jsonl(self.folder / "metrics.jsonl")[0], self.folder / "plots")

        self._picture("plots", draw)

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

    def close(self) -> None:
        """Give everything back; a run that nobody finished is noted as failed."""
        if self._run["status"] == "running":
            self.finish("failed", "ended without a reason")
        self._display.close()
        self._metrics.close()
        self._events.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, RecipeError) and self._unused():
            self._discard()
            return
        if kind is not None and self._run["status"] == "running":
            stopped = issubclass(kind, KeyboardInterrupt)
            known = issubclass(kind, GenRLError)
            reason = f"{error}" if known else f"{kind.__name__}: {error}".rstrip(": ")
            self.finish("stopped" if stopped else "failed", reason)
        self.close()

    def _unused(self) -> bool:
        """A new run, before its first iteration."""
        fresh = "resumed" not in self._run and not self._run["iteration"]
        return fresh and self._run["status"] == "running"

    def _discard(self) -> None:
        self._display.message("note", f"nothing was trained: {self.folder} is taken back", {})
        self._run["status"] = "failed"  # so that close has nothing to finish
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, lines: JsonlWriter, record: Mapping[str, Any], what: str) -> None:
        try:
            lines.append(record)
        except (OSError, ValueError) as error:
            self._complain(what, error)

    def _write_run(self) -> None:
        self._written = time.monotonic()
        try:
            write_atomically(self.folder / "run.json", dumps(self._run, 1) + "\n")
        except OSError as error:
            self._complain("run.json", error)

    def _complain(self, what: str, error: Exception) -> None:
        """Warn once per file, and on screen if the events are what cannot be written."""
        if what not in self._complained:
            self._complained.add(what)
            message = f"{what} cannot be written to {self.folder}: {error}; the run goes on"
            if what == "events":
                self._display.message("warning", message, {})
            else:
                self.event("warning", message)

    def _picture(self, what: str, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is only a picture)
            self.event("warning", f"{what} could not be drawn: {type(error).__name__}: {error}")


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
    names = ("run.json", "metrics.jsonl", "events.jsonl", "samples", "plots", "before_after.png")
    for path in [*(folder / name for name in names), *folder.glob("samples/iter_*")]:
        if path.is_symlink():
            raise RecipeError(f"{path} is a link: a run folder is written without following links")


def _repair(path: Path, iteration: int) -> tuple[int, int]:
    def known(record: dict[str, Any]) -> bool:
        number = record.get("iteration")
        return not isinstance(number, int) or number <= iteration

    return filter_jsonl(path, known)


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
