"""Prompt files: text with a prompt per line, JSON lines, or CSV. Reading them imports no torch."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrl_core.errors import RecipeError
from genrl_core.media import Prompt
from genrl_core.problems import Place, Problem, raise_if, shown

_Row = tuple[int, dict[str, Any]]
_HALF_PAIR = re.compile("[\ud800-\udfff]")
"""What JSON can spell and no tokenizer, hash or file of UTF-8 can take."""


def read_prompts(path: Path | str) -> list[dict[str, Any]]:
    """Read and check a prompt file.

    ``.txt`` holds one prompt per line; ``.jsonl`` one object per line and ``.csv`` a header, both
    with ``text`` and, where wanted, ``id`` and ``negative``. Blank lines are left out. A prompt
    without an id gets a hash of its text, numbered where a text stands more than once.

    White space at the ends of a line of text is left out; the values of JSON and CSV are kept as
    they stand, since ``"A: "`` is made of other tokens than ``"A:"``. What holds white space alone
    is no text. An empty cell of CSV is as if its column were absent, and so is null as the ``id``
    or ``negative`` of JSON; null in a further column is the value None. A CSV row has a cell for
    every column, and a header names no column twice.

    Returns:
        One mapping per prompt: ``id``, ``text``, ``negative``, and ``columns`` with the rest.

    Raises:
        RecipeError: the file is missing, empty, not UTF-8 or malformed, a text is missing, or an id
            stands twice; every problem with its line.
    """
    path = Path(path)
    problems: list[Problem] = []
    rows = list(_rows(path, _decode(path), problems))
    prompts: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for line, row in rows:
        prompt = _normalise(row, line, path, problems)
        if prompt is None:
            continue
        if prompt["id"] is None:
            prompt["id"] = _hash(prompt["text"], lines, numbers)
        elif prompt["id"] in lines:
            message = f"the id {prompt['id']!r} stands in line {lines[prompt['id']]} too"
            problems.append(Problem(f"{path}:{line}", "", message))
        lines[prompt["id"]] = line
        prompts.append(prompt)
    raise_if(problems)
    if not prompts:
        raise RecipeError(f"{path}: the prompt file holds no prompt")
    return prompts


def load_prompts(path: Path | str) -> tuple[Prompt, ...]:
    """The prompts of a file as records; raises like ``read_prompts``."""
    return tuple(Prompt(**fields) for fields in read_prompts(path))


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: the prompt file cannot be read: {error.strerror}") from None
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
        place = str(Place(str(path), number))
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
            message = f"should be an object with a `text`, not {shown(row)}"
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
                yield reader.line_num, {k: v for k, v in row.items() if v or k == "text"}
    except csv.Error as error:
        problems.append(Problem(f"{path}:{reader.line_num}", "", f"not valid CSV: {error}"))


def _normalise(
    row: dict[str, Any], line: int, path: Path, problems: list[Problem]
) -> dict[str, Any] | None:
    row = dict(row)
    place = str(Place(str(path), line))
    text, negative, name = row.pop("text", None), row.pop("negative", None), row.pop("id", None)
    negative = "" if negative is None else negative
    if not isinstance(text, str) or not text.strip():
        what = "is missing or empty" if text is None or isinstance(text, str) else "should be text"
        problems.append(Problem(place, "text", what))
        return None
    if not isinstance(negative, str):
        problems.append(Problem(place, "negative", f"should be text, not {shown(negative)}"))
        return None
    if isinstance(name, bool) or not isinstance(name, str | int | None) or name == "":
        problems.append(Problem(place, "id", "should be text or a whole number"))
        return None
    name = None if name is None else str(name)
    return {"id": name, "text": text, "negative": negative, "columns": row}


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
