"""The tokenizer: images cut into patches of 5 x 5 pixels, and a lossless codebook of them.

A cell of the world is 2 x 2 patches, so an object is four codes that must agree.
"""

from functools import cache
from itertools import product

import numpy as np

from genrl_core import GenRLError
from genrl_shapes.world import COLOURS, PALETTE, SHAPES, SIDE, Array, frozen, render, thing_in

PATCH = 5
"""Height and width of the patch behind one token, in pixels."""
PER_ROW = SIDE // PATCH
NUM_TOKENS = PER_ROW**2
"""N, tokens of an image."""

_POWERS = frozen((len(COLOURS) + 1) ** np.arange(PATCH**2, dtype=np.int64))


@cache
def codebook() -> Array:
    """Every patch of every scene: ``[V, 25]`` uint8 palette indices, in order; code 0 is empty."""
    scenes = [render([thing_in(0, s, c)]) for s, c in product(SHAPES, COLOURS)]
    patches = _patches(np.stack(scenes)).reshape(-1, PATCH**2)
    keys = np.unique(patches.astype(np.int64) @ _POWERS)
    return frozen((keys[:, None] // _POWERS % (len(COLOURS) + 1)).astype(np.uint8))


def features() -> Array:
    """What a network may know of the codes: ``[V, 25 + colours]`` float32, which pixels are
    coloured and with what; patches of one form or of one colour share features.
    """
    inked = codebook() > 0
    colour = codebook().max(1)[:, None] == np.arange(1, len(COLOURS) + 1)
    return np.concatenate([inked, colour], 1).astype(np.float32)


def encode(images: Array) -> Array:
    """Images ``[B, 30, 30]``, palette indices, as codes row by row: ``[B, 36]`` int64.

    Raises:
        GenRLError: a patch is in no scene of the world.
    """
    keys = _patches(images).astype(np.int64) @ _POWERS
    known = codebook().astype(np.int64) @ _POWERS
    codes = np.searchsorted(known, keys).clip(max=len(known) - 1)
    if (known[codes] != keys).any():
        row, place = map(int, np.argwhere(known[codes] != keys)[0])
        raise GenRLError(
            f"image {row} has a patch, number {place}, that no scene of the shapes world has: its "
            "codebook holds objects in the middle of a cell only"
        )
    found: Array = codes.astype(np.int64)
    return found


def decode(codes: Array) -> Array:
    """Codes ``[B, 36]`` as images ``[B, 30, 30]`` uint8, palette indices."""
    patches = codebook()[codes].reshape(-1, PER_ROW, PER_ROW, PATCH, PATCH)
    return patches.transpose(0, 1, 3, 2, 4).reshape(-1, SIDE, SIDE)


def to_rgb(images: Array) -> Array:
    """Palette indices ``[B, 30, 30]`` as ``[B, 3, 30, 30]`` uint8, 0 to 255."""
    coloured: Array = np.array(PALETTE, dtype=np.uint8)[images].transpose(0, 3, 1, 2)
    return coloured


def _patches(images: Array) -> Array:
    tiles = images.reshape(-1, PER_ROW, PATCH, PER_ROW, PATCH).transpose(0, 1, 3, 2, 4)
    patches: Array = tiles.reshape(-1, NUM_TOKENS, PATCH**2)
    return patches
