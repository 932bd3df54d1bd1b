"""Real handwritten digits: the three splits, and the codebook that turns an image into tokens.

The images are scikit-learn's copy of the UCI optical digits: 1,797 grey images of 8 x 8 pixels with
17 grey levels, 0 (paper) to 16 (ink). Nothing here is drawn from a global generator, and everything
is computed once per process, on one thread, so that every process finds the same bits.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrl_core import Media, RewardError

SIDE = 8
"""Height and width of an image in pixels."""
PATCH = 2
"""Height and width of the patch behind one token."""
NUM_TOKENS = (SIDE // PATCH) ** 2
"""N, tokens of an image."""
INK = 16.0
"""The darkest grey level."""

SplitName = Literal["generator", "reward", "judge"]
SIZES: dict[SplitName, int] = {"generator": 700, "reward": 550, "judge": 547}
"""Images per split, named after what learns from it."""

_SEED = 20_251_018

Array = NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """Labelled images.

    Attributes:
        images: ``[n, 8, 8]`` float64, grey levels 0 to 16.
        labels: ``[n]`` int64, 0 to 9.
        rows: ``[n]`` int64, where each image stands in scikit-learn's data set.
    """

    images: Array
    labels: Array
    rows: Array


@cache
def split(name: SplitName) -> Digits:
    """One of three disjoint splits that cover the data set, each with every digit in proportion."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    noise = np.random.Generator(np.random.Philox(key=_SEED)).random(len(bunch.target))
    by_digit = np.lexsort((noise, bunch.target))
    # Spread the members of every split evenly over the images sorted by digit.
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in SIZES.values()])
    owner = np.repeat(np.arange(len(SIZES)), list(SIZES.values()))[np.argsort(place, kind="stable")]
    rows = np.sort(by_digit[owner == list(SIZES).index(name)])
    return Digits(
        _frozen(bunch.images[rows].astype(np.float64)),
        _frozen(bunch.target[rows].astype(np.int64)),
        _frozen(rows.astype(np.int64)),
    )


@cache
def codebook(size: int) -> Array:
    """k-means centres of the generator split's 2 x 2 patches: ``[size, 4]`` float64, 0 to 16."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    patches = _patches(split("generator").images).reshape(-1, PATCH * PATCH)
    with threadpool_limits(1):
        means = KMeans(size, n_init=1, max_iter=100, random_state=_SEED % 2**31).fit(patches)
    return _frozen(means.cluster_centers_.astype(np.float64))


def encode(images: Array, size: int) -> Array:
    """Images ``[B, 8, 8]`` (grey 0 to 16) as the nearest codes, row by row: ``[B, 16]`` int64."""
    centres, patches = codebook(size), _patches(images)
    distance = (centres**2).sum(-1) - 2 * patches @ centres.T
    codes: Array = distance.argmin(-1).astype(np.int64)
    return codes


def decode(tokens: Array, size: int) -> Array:
    """Codes ``[B, 16]`` as images ``[B, 8, 8]`` float64, grey 0 to 16."""
    per_row = SIDE // PATCH
    patches = codebook(size)[tokens].reshape(-1, per_row, per_row, PATCH, PATCH)
    return patches.transpose(0, 1, 3, 2, 4).reshape(-1, SIDE, SIDE)


def to_pixels(images: Array) -> Tensor:
    """Grey levels ``[B, 8, 8]``, 0 to 16, as pixels ``[B, 3, 8, 8]`` uint8, 0 to 255."""
    levels = torch.from_numpy((images / INK * 255).round().clip(0, 255).astype(np.uint8))
    return levels.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def to_grey(media: Media) -> Array:
    """Pixels back as grey levels: ``[B, 8, 8]`` float64, 0 to 16.

    Raises:
        RewardError: the media are not images of 8 x 8 pixels.
    """
    if media.pixels is None or media.pixels.shape[1:] != (3, SIDE, SIDE):
        found = media.kind if media.pixels is None else f"shape {tuple(media.pixels.shape)}"
        raise RewardError(
            f"the digit rewards judge images [B, 3, {SIDE}, {SIDE}] and found {found}: "
            "use them with a policy of genrl_digits"
        )
    pixels: Array = media.pixels.cpu().numpy().astype(np.float64)
    grey: Array = pixels.mean(1) * (INK / 255)
    return grey


def _patches(images: Array) -> Array:
    per_row = SIDE // PATCH
    tiles = images.reshape(-1, per_row, PATCH, per_row, PATCH).transpose(0, 1, 3, 2, 4)
    patches: Array = tiles.reshape(-1, NUM_TOKENS, PATCH * PATCH)
    return patches


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
