"""How the command line prints: text, JSON and tables."""

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from genrl_core.text import printable


def print_text(text: str, *, error: bool = False) -> None:
    """Print text from recipes and plugins without its control characters."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream)


def print_json(value: Any) -> None:
    """Print one JSON value, indented."""
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201  # the command's output


def cell_text(value: Any) -> str:
    """A value as a cell of a table: a list in one line, nothing for None and False."""
    return " ".join(value) if isinstance(value, list | tuple) else str(value or "")


def table(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str] = ()
) -> None:
    """A rich table on a terminal; elsewhere columns of plain text, nothing cut off.

    Columns without any text are left out. ``spare`` are the headers of columns that a terminal too
    narrow for them goes without, in turn.
    """
    columns = [
        [header, *map(printable, column)]
        for header, column in zip(headers, zip(*rows, strict=True), strict=False)
        if any(column)
    ]
    widths = {column[0]: max(map(len, column)) for column in columns}
    if sys.stdout.isatty():
        for name in spare:
            room = shutil.get_terminal_size().columns
            if name in widths and sum(widths.values()) + 4 * len(widths) > room:
                del widths[name]
        _rich_table(title, [column for column in columns if column[0] in widths])
        return
    print_text(title)
    for row in zip(*columns, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True))
        print_text(f"  {'  '.join(cells)}".rstrip())


def _rich_table(title: str, columns: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for i, (header, *_) in enumerate(columns):
        out.add_column(header, no_wrap=i == 0, overflow="fold")
    for row in list(zip(*columns, strict=True))[1:]:
        out.add_row(*map(Text, row))
    Console().print(out)
