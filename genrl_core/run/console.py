"""What a person or a program reads while a run goes on: a bar, plain lines, or JSON lines."""

import errno
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from genrl_core.run.files import dumps, one_line

SHOWN = ("reward", "loss", "grad_norm", "drift", "clip_fraction")
"""The metrics of the one line per iteration; evaluations and seconds follow."""
WIDEST = 100
"""Characters of a line of the summary."""
ROWS = {"before": "base", "best_base": "base at its best sampling", "after": "tuned"}
"""Row of the summary -> its title, unless the row has its own under ``title``."""


class Display:
    """Shows a run on standard output: lines under a bar on a terminal, or lines alone."""

    def __init__(self, total: int, json_lines: bool, quiet: bool):
        """Show ``total`` iterations, as JSON lines or not at all where that is asked for."""
        # Looked up now, since tests and notebooks replace it.
        self._stream = cast(TextIO, _Screen(sys.stdout))
        self._total, self._json, self._quiet = total, json_lines, quiet
        self._bar: Progress | None = None

    def iteration(self, record: Mapping[str, Any]) -> None:
        """One line for one iteration."""
        if self._json:
            self._line(dumps({"kind": "iteration"} | dict(record)))
            return
        if not self._quiet and self._bar is None and self._stream.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining())
            self._bar = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._bar.add_task("", total=self._total)
            self._bar.start()
        self._line(iteration_line(record, self._total))
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=int(record["iteration"]))

    def message(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """An event: warnings, errors and notes for people, all of them for programs."""
        if self._json:
            self._line(dumps({**data, "kind": kind, "message": text}))
        elif kind in ("warning", "error", "note"):
            self._line(one_line(text) if kind == "note" else f"{kind}: {one_line(text)}")

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """The last words: how it ended, the table of results, where everything lies."""
        self.close()
        if self._json:
            self._line(dumps({"kind": "finish", **summary, "folder": folder}))
            return
        reason = f": {one_line(summary['reason'])}" if summary["reason"] else ""
        for line in summary_lines(summary["results"]):
            self._line(line)
        self._line(f"{summary['status']} after iteration {summary['iteration']}{reason}")
        self._line(f"run folder: {folder}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(text), soft_wrap=True)
        elif not self._quiet or self._json:
            self._stream.write(text + "\n")
            self._stream.flush()


class _Screen:
    """A stream that may go away: a closed terminal must not end a run before its checkpoint."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._losable():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losable():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _losable(self) -> Iterator[None]:
        """Send the rest nowhere once it is lost, and what the interpreter flushes at its end."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says that is no more
                raise
            with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def iteration_line(record: Mapping[str, Any], total: int) -> str:
    """``iteration 12/60  reward .512  loss -.012  drift 1.2e-7  1.3 s``."""
    names = [name for name in SHOWN if name in record]
    names += [name for name in record if name.startswith("evaluate/")]
    parts = [f"iteration {int(record['iteration'])}/{total}"]
    parts += [f"{name.removeprefix('evaluate/')} {short(record[name])}" for name in names]
    seconds = record.get("seconds")
    parts += [] if seconds is None else [f"{seconds:.1f} s"]
    return "  ".join(parts)


def metrics_line(metrics: Mapping[str, float | None]) -> str:
    """``judge .499  frechet 136``."""
    return "  ".join(f"{name} {short(value)}" for name, value in metrics.items())


def short(value: float | None) -> str:
    """A number in few characters: ``.512``, ``12.3``, ``1.2e-7``; ``-`` for none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or isinstance(value, int):
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 1e4:
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
        return f"{value:.{digits}f}".replace("0.", ".", 1 if abs(value) < 1 else 0)
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The results as an aligned table: a row per policy, a column per metric.

    Where that is wider than ``WIDEST``, which a terminal would break, the other way round.
    """
    rows = {name: row for name, row in results.items() if isinstance(row, Mapping)}
    names = list(dict.fromkeys(n for row in rows.values() for n in row if n != "title"))
    if not names:
        return []
    table: list[Sequence[str]] = [["", *names]]
    for key, row in rows.items():
        title = str(row.get("title", ROWS.get(key, key)))
        table.append([one_line(title), *(short(row.get(name)) for name in names)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if sum(widths) + 2 * len(names) > WIDEST:
        table = list(zip(*table, strict=True))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in table
    ]
