"""The exact verifier: finds objects in the pixels, and holds them against the prompt.

It knows neither the cells nor the tokens of the world. Every pixel takes the nearest colour of the
palette; connected regions of one colour are compared with the sprites; what fits none is junk.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from genrl_core import Media, Prompt, Reward, RewardError
from genrl_shapes.grammar import request_of, requests
from genrl_shapes.world import (
    COLOURS,
    PALETTE,
    SHAPES,
    SIDE,
    SPRITE,
    Array,
    Request,
    Thing,
    sprites,
    stands,
)

OVERLAP = 0.96
"""Intersection over union with a sprite from which on a region is that shape: a square that has one
quarter of a circle's is neither."""
NEAR = 60.0
"""Euclidean distance in RGB, 0 to 441, up to which a pixel has a colour of the palette."""
_OTHER = len(PALETTE)


@dataclass(frozen=True)
class Seen:
    """What an image shows: objects, and how many coloured regions are none."""

    things: tuple[Thing, ...]
    junk: int = 0


class ShapesVerifier(Reward):
    """``strict``: 1 where ``dense`` is 1, else 0; ``dense``: ``credit (1 + clean) / 2``.

    ``credit`` is the share of what is asked that is there (``credit``), ``clean`` is
    ``min(1, wishes / (objects + junk))``. Without an object both are 0.

    Stricter than GenEval, which lets further objects stand by outside of ``counting``, and in
    ``position`` it asks for half a cell of distance.

    Args:
        form: which of the two; or ``random``, the control that no model can win: a number from a
            hash of the pixels of all images of the prompt and of the image's place among them. (A
            hash of its own pixels alone can be won: by drawing the image of the best hash again.)
        shuffle: the control for form without content. Each image is asked for what a hash of its
            own pixels picks among the requests of the prompt's category, whatever the prompt is;
            neither the batch nor a generator has a part in it.
    """

    def __init__(
        self, *, form: Literal["dense", "strict", "random"] = "dense", shuffle: bool = False
    ):
        self._form, self._shuffle = form, shuffle

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        images = to_palette(pixels_of(media))
        asked = [request_of(prompt) for prompt in prompts]
        if self._form == "random":
            return lots(images, prompts)
        if self._shuffle:
            pairs = zip(images, asked, strict=True)
            asked = [hashed_request(image, request.category) for image, request in pairs]
        found = [dense(s, r) for s, r in zip(see(images), asked, strict=True)]
        return found if self._form == "dense" else [float(value == 1) for value in found]

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        return by_category(self(media, prompts), prompts)


def by_category(values: Sequence[float], prompts: Sequence[Prompt]) -> dict[str, float]:
    """The mean of every category of the prompts and, under the empty key, the mean of those means
    (GenEval's overall score).
    """
    rows: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        rows.setdefault(request_of(prompt).category, []).append(value)
    means = {category: float(np.mean(found)) for category, found in rows.items()}
    return {"": float(np.mean(list(means.values())))} | means


def dense(seen: Seen, request: Request) -> float:
    """How much of a request an image meets, 0 to 1; 1 where it meets all and has nothing else."""
    shown = len(seen.things) + seen.junk
    if not seen.things:
        return 0.0
    clean = min(1.0, len(request.wishes) / shown)
    return credit(seen.things, request) * (1 + clean) / 2


def credit(things: Sequence[Thing], request: Request) -> float:
    """The share of what is asked that is there, by the assignment of objects to wishes that is best
    for the prompt, no object twice: the mean of ``Wanted.credit``, with the relation as one more
    part
    (1 where both of its objects are there and stand so).
    """
    wishes = request.wishes
    if len(set(wishes)) == 1:
        best = sorted((wishes[0].credit(t) for t in things), reverse=True)[: len(wishes)]
        return sum(best) / len(wishes)
    alone = [wish.credit(thing) for wish in wishes for thing in things]
    pairs = [_pair(a, b, request) for a, b in permutations(things, 2)]
    return max([max(alone) / (2 + bool(request.relation)), *pairs])


def _pair(first: Thing, second: Thing, request: Request) -> float:
    one, other = (w.credit(t) for w, t in zip(request.wishes, (first, second), strict=True))
    if not request.relation:
        return (one + other) / 2
    related = one == other == 1 and stands(request.relation, first, second)
    return (one + other + related) / 3


def pixels_of(media: Media) -> Array:
    """The pixels ``[B, 3, 30, 30]`` float64, 0 to 255.

    Raises:
        RewardError: the media are not images of 30 x 30 pixels.
    """
    if media.pixels is None or media.pixels.shape[1:] != (3, SIDE, SIDE):
        found = media.kind if media.pixels is None else f"shape {tuple(media.pixels.shape)}"
        raise RewardError(
            f"the shapes rewards judge images [B, 3, {SIDE}, {SIDE}] and found {found}: "
            "use them with a policy of genrl_shapes"
        )
    pixels: Array = media.pixels.cpu().numpy().astype(np.float64)
    return pixels


def to_palette(pixels: Array) -> Array:
    """Pixels ``[B, 3, H, W]``, 0 to 255, as palette indices ``[B, H, W]`` int64; 5 is a colour that
    the world has not.
    """
    nearest = np.full((len(pixels), *pixels.shape[2:]), _OTHER)
    least = np.full(nearest.shape, NEAR**2)
    for index, colour in enumerate(PALETTE):
        gap = sum((pixels[:, c] - level) ** 2 for c, level in enumerate(colour))
        nearest = np.where(gap <= least, index, nearest)
        least = np.minimum(gap, least)
    return nearest


def see(images: Array) -> list[Seen]:
    """What images ``[B, 30, 30]`` of palette indices show."""
    return [_things(*pair) for pair in zip(images, regions(images), strict=True)]


def regions(images: Array) -> Array:
    """Connected regions of one index, diagonals included: ``[B, H, W]`` int64, for every pixel the
    place (row by row, from 0) of the first pixel of its region; -1 on the background.
    """
    height, width = images.shape[1:]
    places = np.broadcast_to(np.arange(height * width).reshape(height, width), images.shape)
    inked = images > 0
    labels = np.where(inked, places, height * width)
    edge = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    shifts = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    same = [inked & (edge[:, y : y + height, x : x + width] == images) for y, x in shifts]
    while True:
        padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)), constant_values=height * width)
        grown = labels
        for (y, x), alike in zip(shifts, same, strict=True):
            beside = padded[:, y : y + height, x : x + width]
            grown = np.where(alike, np.minimum(grown, beside), grown)
        if (grown == labels).all():
            return np.where(inked, labels, -1)
        labels = grown


def hashed_request(image: Array, category: str) -> Request:
    """The request of a category that an image's pixels alone decide, uniform over images."""
    found = requests(category)
    return found[_digest(image) % len(found)]


def lots(images: Array, prompts: Sequence[Prompt]) -> list[float]:
    """Numbers on [0, 1) that say nothing of an image: drawn anew for every group of a prompt."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt.id, []).append(row)
    found = [0.0] * len(prompts)
    for rows in groups.values():
        key = _digest(images[rows])
        drawn = np.random.Generator(np.random.Philox(key=key)).random(len(rows))
        for row, value in zip(rows, drawn.tolist(), strict=True):
            found[row] = value
    return found


def _digest(image: Array) -> int:
    """A whole number that pixels decide, uniform on 0 .. 2^64 - 1."""
    digest = hashlib.blake2b(image.astype(np.uint8).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _things(image: Array, labels: Array) -> Seen:
    inked = labels >= 0
    _, owner, sizes = np.unique(labels[inked], return_inverse=True, return_counts=True)
    order = np.argsort(owner, kind="stable")
    places = np.argwhere(inked)[order]
    parts = np.split(places, np.cumsum(sizes)[:-1]) if len(sizes) else []
    found = (_thing(part, int(image[tuple(part[0])])) for part in parts)
    things = tuple(thing for thing in found if thing)
    return Seen(things, len(parts) - len(things))


def _thing(pixels: Array, index: int) -> Thing | None:
    """The object whose sprite a region ``[n, 2]`` (row, column) covers, the corners of their boxes
    laid upon each other.
    """
    (top, left), (bottom, right) = pixels.min(0).tolist(), pixels.max(0).tolist()
    height, width = bottom - top + 1, right - left + 1
    if index == _OTHER or height > SPRITE or width > SPRITE:
        return None
    mask = np.zeros((SPRITE, SPRITE), dtype=bool)
    mask[pixels[:, 0] - top, pixels[:, 1] - left] = True
    shared = (sprites() & mask).sum((1, 2))
    overlap = shared / (sprites().sum((1, 2)) + len(pixels) - shared)
    best = int(overlap.argmax())
    if overlap[best] < OVERLAP:
        return None
    return Thing(SHAPES[best], COLOURS[index - 1], left + width / 2, top + height / 2)
