"""The world: coloured shapes in the cells of a small canvas, and what a prompt can ask of them.

A scene holds objects in distinct cells of a 3 x 3 grid; a cell is 10 x 10 pixels and holds a sprite
of 8 x 8 in its middle, so that no two objects touch. Images are arrays of palette indices: 0 is the
background, ``1 + c`` is colour c. Loads no torch, and draws from no generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
PALETTE = ((255, 255, 255), (214, 48, 49), (46, 160, 67), (45, 90, 220), (247, 190, 22))
"""RGB, 0 to 255, of the background and of the colours."""

GRID = 3
"""Cells in a row and in a column."""
CELL = 10
"""Height and width of a cell in pixels."""
SPRITE = 8
"""Height and width of a sprite in pixels."""
SIDE = GRID * CELL
"""Height and width of an image in pixels."""
MARGIN = (CELL - SPRITE) // 2

RELATIONS = ("left of", "right of", "above", "below")

_DRAWINGS = {
    "circle": "..####.. .######. ######## ######## ######## ######## .######. ..####..",
    "square": "######## ######## ######## ######## ######## ######## ######## ########",
    "triangle": "...##... ...##... ...##... ..####.. ..####.. .######. .######. ########",
    "cross": "...##... ...##... ...##... ######## ######## ...##... ...##... ...##...",
}


@dataclass(frozen=True)
class Thing:
    """An object of a scene: what it is and where its middle lies.

    Attributes:
        shape, colour: one of SHAPES, of COLOURS.
        x, y: the middle in pixels, from the left and from the top.
    """

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Wanted:
    """An object that a prompt asks for; without a colour any will do."""

    shape: str
    colour: str | None = None

    def credit(self, thing: Thing) -> float:
        """The share of what is asked that an object has, 0 to 1: its shape; half each with its
        colour, where one is asked for.
        """
        shape = float(thing.shape == self.shape)
        return shape if self.colour is None else (shape + float(thing.colour == self.colour)) / 2


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: these objects and no others.

    Attributes:
        category: one of GenEval's six (arXiv 2310.11513).
        wishes: the objects; with a relation two, of which the first stands so to the second.
        relation: one of RELATIONS, or empty.
    """

    category: str
    wishes: tuple[Wanted, ...]
    relation: str = ""


@cache
def sprites() -> Array:
    """``[shapes, 8, 8]`` bool."""
    drawn = [[[p == "#" for p in row] for row in _DRAWINGS[s].split()] for s in SHAPES]
    return frozen(np.array(drawn))


def thing_in(cell: int, shape: str, colour: str) -> Thing:
    """An object in the middle of a cell, 0 to 8, row by row."""
    row, column = divmod(cell, GRID)
    return Thing(shape, colour, (column + 0.5) * CELL, (row + 0.5) * CELL)


def render(scene: Sequence[Thing]) -> Array:
    """A scene as palette indices ``[30, 30]`` uint8; later objects cover earlier ones."""
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for thing in scene:
        top, left = int(thing.y - SPRITE / 2), int(thing.x - SPRITE / 2)
        mask = sprites()[SHAPES.index(thing.shape)]
        image[top : top + SPRITE, left : left + SPRITE][mask] = 1 + COLOURS.index(thing.colour)
    return image


def stands(relation: str, first: Thing, second: Thing) -> bool:
    """Whether the middle of ``first`` lies half a cell or more to that side of ``second``'s.

    Only the axis of the relation counts, as in GenEval: what is left of another may be above it.
    """
    across, down = second.x - first.x, second.y - first.y
    offset = {"left of": across, "right of": -across, "above": down, "below": -down}[relation]
    return offset >= CELL / 2


@cache
def placements(relation: str) -> tuple[tuple[int, int], ...]:
    """Every ordered pair of distinct cells that stands in a relation; all pairs without one."""
    things = [thing_in(cell, SHAPES[0], COLOURS[0]) for cell in range(GRID**2)]
    pairs = permutations(range(GRID**2), 2)
    return tuple(p for p in pairs if not relation or stands(relation, *(things[c] for c in p)))


def scene_of(request: Request, chances: Sequence[float]) -> list[Thing]:
    """A scene that meets a request and has nothing else, uniform over cells and free colours.

    Args:
        request: what to show.
        chances: 8 numbers on [0, 1), of which the scene is a function: 4 for cells, 4 for colours.
    """
    cells = _cells(request, chances[:4])
    return [
        thing_in(cell, wish.shape, wish.colour or COLOURS[int(chance * len(COLOURS))])
        for cell, wish, chance in zip(cells, request.wishes, chances[4:8], strict=False)
    ]


def frozen(array: Array) -> Array:
    """The array itself, which can be written no more."""
    array.flags.writeable = False
    return array


def _cells(request: Request, chances: Sequence[float]) -> list[int]:
    if request.relation:
        pairs = placements(request.relation)
        return list(pairs[int(chances[0] * len(pairs))])
    free = list(range(GRID**2))
    return [
        free.pop(int(chance * len(free)))
        for _, chance in zip(request.wishes, chances, strict=False)
    ]
