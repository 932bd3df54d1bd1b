"""Writes the prompt files: ``python -m genrl_shapes.prompts recipes/shapes/prompts``.

``base`` is all of the grammar; ``train``, ``validate`` and ``evaluate`` are for RL. ``evaluate``
holds the compositions that RL never sees. Of the others every fourth prompt of a category chooses
the settings (``validate``) and the rest train. ``single`` has no composition: its four prompts
stand in all files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from genrl_shapes.grammar import ANYTHING, CATEGORIES, columns_of, is_held_out, requests, text_of
from genrl_shapes.world import Request

ROWS = {"train": 24, "validate": 12, "evaluate": 16}
"""Rows of every category, so that all are drawn alike; short ones repeat, long ones are cut."""
BASE_ROWS = {
    "single": 12, "two": 24, "counting": 36, "colours": 32, "position": 144, "attribution": 144,
}  # fmt: skip
"""Rows for pre-training: what is harder to learn is shown more often. All of each category."""
ANYTHING_ROWS = 32

_SEED = 2_310


def files() -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, without the suffix ``.jsonl``."""
    anything = [
        {"id": f"{ANYTHING}-{i}", "text": ANYTHING, "category": ANYTHING}
        for i in range(ANYTHING_ROWS)
    ]
    rows = {"base": anything}
    for category in CATEGORIES:
        for name, found in _split(category).items():
            count = BASE_ROWS[category] if name == "base" else ROWS[name]
            rows.setdefault(name, []).extend(_rows(found, count))
    return rows


def write(folder: Path) -> None:
    """Write the four files into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _split(category: str) -> dict[str, list[Request]]:
    every = _shuffled(requests(category))
    if category == "single":
        return dict.fromkeys(("base", *ROWS), every)
    rest = [request for request in every if not is_held_out(request)]
    return {
        "base": every,
        "train": [request for place, request in enumerate(rest) if place % 4],
        "validate": rest[::4],
        "evaluate": [request for request in every if is_held_out(request)],
    }


def _rows(found: list[Request], count: int) -> list[dict[str, Any]]:
    rows = []
    for place in range(count):
        turn, which = divmod(place, len(found))
        text = text_of(found[which])
        name = f"{text.replace(' ', '-')}-{turn}"
        rows.append({"id": name, "text": text, **columns_of(found[which])})
    return rows


def _shuffled(found: tuple[Request, ...]) -> list[Request]:
    """In an order of our own, so that cutting a file short takes no one side of the grammar."""
    order = np.random.Generator(np.random.Philox(key=_SEED)).permutation(len(found))
    return [found[place] for place in order.tolist()]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
