"""Prompt files: text with a prompt per line, JSON lines, or CSV. Reading them imports no torch."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.media import Prompt, Reading
from genrl_core.recipe.problems import Problem, raise_if
from genrl_core.text import format_value

Reader = Callable[[Sequence[Prompt]], Sequence[Reading]]
"""Says how long prompts are to a network, and how much of them it reads."""
Place = Callable[[Prompt], str]
"""Says where a prompt stands."""

LISTED = 20
"""Prompts that a message names one by one; the others are counted."""
_AT_ONCE = 1000
"""Prompts that a reader is asked about at a time."""
_Row = tuple[int, dict[str, Any]]
_HALF_PAIR = re.compile("[\ud800-\udfff]")
"""What JSON can spell and no tokenizer, hash or file of UTF-8 can take."""


class PromptFile:
    """The prompts of one file, which is read once, when it is first asked for.

    ``.txt`` holds one prompt per line; ``.jsonl`` one object per line and ``.csv`` a header, both
    with ``text`` and, where wanted, ``id`` and ``negative``. Blank lines are left out. A prompt
    without an id gets a hash of its text, numbered where a text stands more than once.

    White space at the ends of a line of text is left out; the values of JSON and CSV are kept as
    they stand, since ``"A: "`` is made of other tokens than ``"A:"``. What holds white space alone
    is no text. An empty cell of CSV is the empty text in a further column and no value as ``id``
    or ``negative``; so is null there in JSON, and null in a further column is the value None. A
    CSV row has a cell for every column, and a header names no column twice.

    Raises:
        RecipeError: at first use, if the file is missing, empty, not UTF-8 or malformed, a text is
            missing, or an id stands twice; every problem with its line.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @cached_property
    def _data(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            message = f"{self.path}: the prompt file cannot be read: {error.strerror}"
            raise RecipeError(message) from None

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of the file."""
        return hashlib.sha256(self._data).hexdigest()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """In the order of the file."""
        return self._parsed[0]

    def place(self, prompt: Prompt) -> str:
        """Where one of its prompts stands, for messages: ``file:line``."""
        return f"{self.path}:{self._parsed[1][prompt.id]}"

    @cached_property
    def _parsed(self) -> tuple[tuple[Prompt, ...], dict[str, int]]:
        """The prompts, and the line of each by its id."""
        problems: list[Problem] = []
        prompts: list[Prompt] = []
        lines: dict[str, int] = {}
        numbers: dict[str, int] = {}
        for line, row in list(_rows(self.path, _decode(self.path, self._data), problems)):
            place = f"{self.path}:{line}"
            fields = _fields(row, place, problems)
            if fields is None:
                continue
            name = fields["id"] or _hash(fields["text"], lines, numbers)
            if name in lines:
                message = f"the id {name!r} stands in line {lines[name]} too"
                problems.append(Problem(place, "", message))
            lines[name] = line
            prompts.append(Prompt(**fields | {"id": name}))
        raise_if(problems)
        if not prompts:
            raise RecipeError(f"{self.path}: the prompt file holds no prompt")
        return tuple(prompts), lines


def load_prompts(path: Path | str) -> tuple[Prompt, ...]:
    """The prompts of a file; raises like ``PromptFile``."""
    return PromptFile(path).prompts


def prompt_name(prompt: Prompt) -> str:
    """How a message names a prompt of no file."""
    return f"prompt {prompt.id!r}"


def unread(
    prompts: Sequence[Prompt], readers: Mapping[str, Reader], place: Place = prompt_name
) -> tuple[list[Problem], list[str]]:
    """What is too long among prompts, in batches, each prompt once per reader.

    Args:
        prompts: all that may be drawn or judged.
        readers: who reads them, as a sentence names it -> how much of them.
        place: names a prompt in a message: ``PromptFile.place`` where there is a file.

    Returns:
        A problem for every prompt that cannot be taken, the first ``LISTED`` by name; and for every
        part that a reader cuts off a sentence, with the longest prompt.
    """
    problems: list[Problem] = []
    cuts: list[str] = []
    for who, read in readers.items():
        for part, rows in _too_long(prompts, read).items():
            length, prompt, reading = max(rows, key=lambda row: row[0])
            if reading.cut:
                cuts.append(
                    f"{len(rows)} of {len(prompts)} prompts are longer than {who} reads: of the "
                    f"{part} the first {reading.limit} {reading.unit} count, and the rest is cut "
                    f"off. The longest has {length}, {place(prompt)}: "
                    f"{_ends(getattr(prompt, part))}; {reading.way_out}"
                )
                continue
            problems += _listed([
                Problem(
                    place(prompt), part,
                    f"has {length} {reading.unit}, and {who} takes {reading.limit} at the most: "
                    f"{_ends(getattr(prompt, part))}; {reading.way_out}",
                )
                for length, prompt, reading in rows
            ])  # fmt: skip
    return problems, cuts


def refused(
    prompts: Sequence[Prompt], check: Callable[[Prompt], None], place: Place = prompt_name
) -> list[Problem]:
    """A problem for every prompt that ``check`` raises for, the first ``LISTED`` by name."""
    found: list[Problem] = []
    for prompt in prompts:
        try:
            check(prompt)
        except GenRLError as error:
            found.append(Problem(place(prompt), "", str(error)))
    return _listed(found)


def _listed(problems: list[Problem]) -> list[Problem]:
    """A file of 100,000 prompts may have as many."""
    if len(problems) <= LISTED:
        return problems
    more = f"and {len(problems) - LISTED:,} more prompts like these"
    return [*problems[:LISTED], Problem("", "", more)]


def _too_long(
    prompts: Sequence[Prompt], read: Reader
) -> dict[Literal["text", "negative"], list[tuple[int, Prompt, Reading]]]:
    """The prompts beyond a reader's limits, by their part, with their lengths."""
    found: dict[Literal["text", "negative"], list[tuple[int, Prompt, Reading]]] = {}
    for start in range(0, len(prompts), _AT_ONCE):
        asked = prompts[start : start + _AT_ONCE]
        for reading in read(asked):
            for length, prompt in zip(reading.lengths, asked, strict=True):
                if length > reading.limit:
                    found.setdefault(reading.part, []).append((length, prompt, reading))
    return found


def _ends(text: str) -> str:
    """A text for a message, its end included, since that is what is cut off."""
    return repr(text if len(text) <= 100 else f"{text[:40]} ... {text[-40:]}")


def _decode(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise RecipeError(f"{path}:{line}: holds a NUL character: not a text file")
    return text


def _rows(path: Path, text: str, problems: list[Problem]) -> Iterator[_Row]:
    kind = path.suffix.lower()
    if kind == ".csv":
        return _csv_rows(path, text, problems)
    if kind not in (".txt", ".jsonl"):
        raise RecipeError(f"{path}: prompt files end in .txt, .jsonl or .csv")
    lines = text.replace("\r\n", "\n").split("\n")
    filled = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if kind == ".txt":
        return iter([(i, {"text": line}) for i, line in filled])
    return _json_rows(path, filled, problems)


def _json_rows(path: Path, lines: list[tuple[int, str]], problems: list[Problem]) -> Iterator[_Row]:
    for number, line in lines:
        place = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=_refuse, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(place, "", f"not valid JSON: {error}"))
            continue
        if isinstance(row, dict) and _HALF_PAIR.search(json.dumps(row, ensure_ascii=False)):
            message = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            problems.append(Problem(place, "", message))
        elif isinstance(row, dict):
            yield number, row
        else:
            message = f"should be an object with a `text`, not {format_value(row)}"
            problems.append(Problem(place, "", message))


def _csv_rows(path: Path, text: str, problems: list[Problem]) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        if twice := [name for name in dict.fromkeys(header) if name and header.count(name) > 1]:
            message = f"the header names {', '.join(twice)} more than once"
            problems.append(Problem(f"{path}:1", "", message))
            return
        if header and "text" not in header:
            message = f"no column `text`; the header has {', '.join(header)}"
            problems.append(Problem(f"{path}:1", "", message))
            return
        for row in reader:
            if None in row or None in row.values():
                message = f"should have the header's {len(header)} columns"
                problems.append(Problem(f"{path}:{reader.line_num}", "", message))
            else:
                unset = ("", "id", "negative")  # "" is the column behind a last comma
                yield reader.line_num, {k: v for k, v in row.items() if v or k not in unset}
    except csv.Error as error:
        problems.append(Problem(f"{path}:{reader.line_num}", "", f"not valid CSV: {error}"))


def _fields(row: dict[str, Any], place: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The fields of a ``Prompt``, its id None where the row has none; None where it is wrong."""
    columns = dict(row)
    text, negative, name = (columns.pop(key, None) for key in ("text", "negative", "id"))
    if not isinstance(text, str) or not text.strip():
        what = "is missing or empty" if text is None or isinstance(text, str) else "should be text"
        problems.append(Problem(place, "text", what))
    elif not isinstance(negative, str | None):
        problems.append(Problem(place, "negative", f"should be text, not {format_value(negative)}"))
    elif isinstance(name, bool) or not isinstance(name, str | int | None) or name == "":
        problems.append(Problem(place, "id", "should be text or a whole number"))
    else:
        name = None if name is None else str(name)
        return {"id": name, "text": text, "negative": negative or "", "columns": columns}
    return None


def _hash(text: str, taken: dict[str, int], numbers: dict[str, int]) -> str:
    """A name that is not ``taken``; ``numbers`` holds the last number of every digest."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    number = numbers.get(digest, 0) + 1
    while (name := digest if number == 1 else f"{digest}-{number}") in taken:
        number += 1
    numbers[digest] = number
    return name


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands twice")
    return row
