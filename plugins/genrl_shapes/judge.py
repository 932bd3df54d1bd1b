"""The judge: a classifier that learned to read cells from other renderings than the world's own.

Where the verifier compares regions with the sprites, the judge is a neural network that saw moved,
thinned, thickened, tinted and noisy sprites, and broken ones to tell them from whole ones. What
fools the one has not yet fooled the other. Both hold what they see against the prompt alike.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from genrl_core import Media, Prompt, Reward
from genrl_shapes.grammar import request_of
from genrl_shapes.verifier import Seen, by_category, dense, pixels_of
from genrl_shapes.world import (
    CELL,
    COLOURS,
    GRID,
    MARGIN,
    PALETTE,
    SHAPES,
    SPRITE,
    Array,
    frozen,
    sprites,
    thing_in,
)

EMPTY = len(SHAPES) * len(COLOURS)
"""The class of an empty cell, after ``shape * colours + colour``."""
BROKEN = EMPTY + 1
"""The class of a cell with something that is no whole object."""

_SEED = 2310
_EXAMPLES = 5000
_HALF = CELL // 2


class ShapesJudge(Reward):
    """1 where the classifier sees the objects asked for, in colour and relation, and no others."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        facts = read(pixels_of(media))
        asked = (request_of(prompt) for prompt in prompts)
        return [float(dense(s, r) == 1) for s, r in zip(facts, asked, strict=True)]

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        return by_category(self(media, prompts), prompts)


def read(pixels: Array) -> list[Seen]:
    """The facts (shape, colour, cell) of images ``[B, 3, 30, 30]``, 0 to 255."""
    tiles = pixels.reshape(-1, 3, GRID, CELL, GRID, CELL).transpose(0, 2, 4, 1, 3, 5)
    classes = classifier().predict(features(tiles.reshape(-1, 3, CELL, CELL)))
    return [_facts(row) for row in classes.reshape(-1, GRID**2).tolist()]


def features(cells: Array) -> Array:
    """What the classifier sees of cells ``[n, 3, 10, 10]``, 0 to 255: ``[n, 300]``, -1 to 1."""
    scaled: Array = cells.reshape(len(cells), -1) / 127.5 - 1
    return scaled


@cache
def classifier() -> MLPClassifier:
    """The network behind the judge: 300 inputs, 64 hidden units, 18 classes."""
    mlp = MLPClassifier(
        (64,), alpha=1e-3, batch_size=100, max_iter=25, n_iter_no_change=25, random_state=_SEED
    )
    cells, classes = renderings(_EXAMPLES, _SEED)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 25 epochs are what we want
        return mlp.fit(features(cells), classes)


def renderings(count: int, seed: int) -> tuple[Array, Array]:
    """Cells as the world does not draw them: pixels ``[n, 3, 10, 10]`` float64, classes ``[n]``.

    A sprite is moved by up to a pixel each way, thinned or thickened at a tenth of the pixels of
    its edge, tinted by up to 20 levels a channel and covered with noise of 12. A fifth of the cells
    are empty; nearly a third are broken: one to three quarters are another object's, or left out.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    drawn = [_rendering(generator) for _ in range(count)]
    cells = np.stack([cell for cell, _ in drawn])
    noisy = cells + generator.normal(0, 12, cells.shape)
    return frozen(noisy.clip(0, 255)), frozen(np.array([name for _, name in drawn]))


def _rendering(generator: np.random.Generator) -> tuple[Array, int]:
    paper = np.reshape(PALETTE[0], (3, 1, 1)) + np.zeros((3, CELL, CELL))
    kind = generator.random()
    if kind < 0.2:
        return paper, EMPTY
    first, name = _object(paper, generator)
    if kind < 0.7:
        return first, name
    return _broken(first, name, paper, generator), BROKEN


def _object(paper: Array, generator: np.random.Generator) -> tuple[Array, int]:
    shape, colour = int(generator.integers(len(SHAPES))), int(generator.integers(len(COLOURS)))
    top, left = (MARGIN + generator.integers(-1, 2, 2)).tolist()
    mask = np.zeros((CELL, CELL), dtype=bool)
    mask[top : top + SPRITE, left : left + SPRITE] = sprites()[shape]
    mask ^= _edge(mask) & (generator.random(mask.shape) < 0.1)
    tint = np.array(PALETTE[1 + colour]) + generator.uniform(-20, 20, 3)
    return np.where(mask, tint[:, None, None], paper), shape * len(COLOURS) + colour


def _edge(mask: Array) -> Array:
    """Pixels with a neighbour above, below, left or right on the other side of the outline."""
    padded = np.pad(mask, 1, mode="edge")
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    found: Array = np.any([mask != other for other in beside], axis=0)
    return found


def _broken(first: Array, name: int, paper: Array, generator: np.random.Generator) -> Array:
    """One to three quarters of an object replaced by those of an object of another class, or by
    paper.
    """
    other, other_name = _object(paper, generator)
    while other_name == name:
        other, other_name = _object(paper, generator)
    source = paper if generator.random() < 0.5 else other
    mixed = first.copy()
    for quarter in generator.permutation(4)[: generator.integers(1, 4)].tolist():
        row, column = (_HALF * part for part in divmod(quarter, 2))
        place = np.s_[:, row : row + _HALF, column : column + _HALF]
        mixed[place] = source[place]
    return mixed


def _facts(classes: Sequence[int]) -> Seen:
    """What a row of nine classes says is there."""
    things = tuple(
        thing_in(cell, SHAPES[name // len(COLOURS)], COLOURS[name % len(COLOURS)])
        for cell, name in enumerate(classes)
        if name < EMPTY
    )
    return Seen(things, sum(name == BROKEN for name in classes))
