"""Writes prompt files: ``python -m genrl_rewards.geneval_prompts recipes/masked/prompts``.

``train.jsonl`` and ``evaluate.jsonl`` hold prompts in GenEval's grammar (arXiv 2310.11513), with
the columns that the reward ``geneval`` reads: as many of each of the six categories, in turn, so
that the start of a file is balanced too. No composition stands in both files: no single object, no
number of a class, no colour of a class, and no pair of classes, whichever of the three categories
with pairs it is in. Single objects repeat in ``train``: there are only 80.

The Mask-GRPO paper (arXiv 2510.13418) trained on 10,000 captions of LAION, which are not shipped.
To train on your own, name a file under ``prompts.file``: ``.txt`` with a prompt per line, or
``.jsonl`` with an object per line that has a ``text``. GenEval's own 553 prompts, for a measurement
apart, have ``prompt`` in its place: ``sed 's/"prompt":/"text":/' evaluation_metadata.jsonl``.
The files here are drawn without a look at those, so a few of their prompts stand in ``train`` too.

Captions keep GenEval's grammar with its oddities (``two toothbrushs``, ``a photo of a skis``):
that is what the benchmark asks. Unlike there, nothing but a single object stands twice.
"""

import json
import sys
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from genrl_rewards.coco import CLASSES, COLOURS, RELATIONS, TAGS

ROWS = {"evaluate": 20, "train": 200}
"""Rows of every category; a category with fewer compositions repeats them."""
NUMBERS = {2: "two", 3: "three", 4: "four"}

_SEED = 2_310
_PAIRED = ("two_object", "position", "color_attr")
_COLOURED = [name for name in CLASSES if name != "person"]
"""GenEval asks for no coloured person."""

Row = dict[str, Any]


def files() -> dict[str, list[Row]]:
    """The rows of both files, without the suffix ``.jsonl``."""
    generator = np.random.Generator(np.random.Philox(key=_SEED))
    pools = {tag: _split(tag, generator) for tag in TAGS if tag not in _PAIRED}
    pairs = iter(_shuffled(list(combinations(CLASSES, 2)), generator))
    pools |= {tag: _drawn(tag, pairs, generator) for tag in _PAIRED}
    return {name: list(_in_turn(pools, name, count)) for name, count in ROWS.items()}


def write(folder: Path) -> None:
    """Write both files into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _split(tag: str, generator: np.random.Generator) -> dict[str, list[Row]]:
    """A category without pairs, all of it, split in two."""
    every = {
        "single_object": [single(name) for name in CLASSES],
        "counting": [counting(name, count) for name in CLASSES for count in NUMBERS],
        "colors": [coloured(name, colour) for name in _COLOURED for colour in COLOURS],
    }[tag]
    rows = _shuffled(every, generator)
    return {"evaluate": rows[: ROWS["evaluate"]], "train": rows[ROWS["evaluate"] :]}


def _drawn(
    tag: str, pairs: Iterator[tuple[str, str]], generator: np.random.Generator
) -> dict[str, list[Row]]:
    """A category with pairs; it uses up the pairs that it takes, so that no other one has them."""
    fitting = (pair for pair in pairs if tag != "color_attr" or "person" not in pair)
    return {
        name: [_paired(tag, pair, generator) for pair in islice(fitting, count)]
        for name, count in ROWS.items()
    }


def _paired(tag: str, pair: tuple[str, str], generator: np.random.Generator) -> Row:
    first, second = pair if generator.random() < 0.5 else pair[::-1]
    if tag == "two_object":
        return two(first, second)
    if tag == "position":
        return position(first, RELATIONS[generator.integers(len(RELATIONS))], second)
    one, other = (COLOURS[i] for i in generator.permutation(len(COLOURS))[:2])
    return attribution(one, first, other, second)


def _in_turn(pools: dict[str, dict[str, list[Row]]], name: str, count: int) -> Iterator[Row]:
    for place in range(count):
        for tag in TAGS:
            pool = pools[tag][name]
            yield pool[place % len(pool)]


def _shuffled(found: list[Any], generator: np.random.Generator) -> list[Any]:
    return [found[place] for place in generator.permutation(len(found)).tolist()]


def single(name: str) -> Row:
    """``a photo of a bench``."""
    return _row("single_object", _article(name), _object(name))


def two(first: str, second: str) -> Row:
    """``a photo of a bench and an apple``."""
    text = f"{_article(first)} and {_article(second)}"
    return _row("two_object", text, _object(first), _object(second))


def counting(name: str, count: int) -> Row:
    """``a photo of two apples``: two, and not three."""
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    row = _row("counting", f"{NUMBERS[count]} {plural}", {"class": name, "count": count})
    return row | {"exclude": [{"class": name, "count": count + 1}]}


def coloured(name: str, colour: str) -> Row:
    """``a photo of an orange apple``."""
    return _row("colors", f"{_article(colour)} {name}", _object(name, color=colour))


def position(first: str, relation: str, second: str) -> Row:
    """``a photo of an apple left of a bench``; the relation is the apple's to the bench."""
    text = f"{_article(first)} {relation} {_article(second)}"
    return _row("position", text, _object(second), _object(first, position=[relation, 0]))


def attribution(one: str, first: str, other: str, second: str) -> Row:
    """``a photo of a red apple and a blue bench``."""
    text = f"{_article(one)} {first} and {_article(other)} {second}"
    return _row("color_attr", text, _object(first, color=one), _object(second, color=other))


def _row(tag: str, text: str, *include: Row) -> Row:
    return {"text": f"a photo of {text}", "tag": tag, "include": list(include)}


def _object(name: str, **more: Any) -> Row:
    return {"class": name, "count": 1} | more


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
