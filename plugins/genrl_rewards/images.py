"""From a run's media to what a network takes: PIL's bicubic filter on uint8, then one scale.

One path for every reward, since the filter changes scores: torch's bicubic without antialiasing is
off by 11 grey levels on average.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from genrl_core import Media, RewardError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, per channel, in units of 0 to 1; BLIP and HPS v2 take them over."""

Array = npt.NDArray[np.uint8]
Fit = Callable[[Image.Image, int], Array]
"""An image to ``[side, side, 3]``."""


def pictures(media: Media, judge: str) -> list[Image.Image]:
    """The images, 8 bits per channel.

    Raises:
        RewardError: the media are no images ``[B, 3, H, W]`` of type uint8, for ``judge``.
    """
    pixels = media.pixels
    if pixels is None or pixels.dim() != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        found = (
            media.kind if pixels is None else f"shape {tuple(pixels.shape)}, type {pixels.dtype}"
        )
        raise RewardError(f"{judge} judges images [B, 3, H, W] of type uint8 and found {found}")
    arrays = pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return [Image.fromarray(array) for array in arrays]


def cropped(image: Image.Image, side: int) -> Array:
    """The shorter side resized to ``side``, the middle cut out, as CLIP does.

    Longer sides are rounded down, and so is half of what is cut off.
    """
    short, long = sorted(image.size)
    stretched = int(side * long / short)
    width, height = (side, stretched) if image.width <= image.height else (stretched, side)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - side) // 2, (width - side) // 2
    return resized[top : top + side, left : left + side]


def letterboxed(image: Image.Image, side: int) -> Array:
    """The longer side resized to ``side``, black around the middle, as HPS v2 does.

    Where a strip is odd, its larger half is below or to the right. A line of one pixel stays one.
    """
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    framed = Image.new("RGB", (side, side))
    framed.paste(resized, ((side - width) // 2, (side - height) // 2))
    return np.asarray(framed)


def normalised(images: Sequence[Image.Image], side: int, fit: Fit) -> Tensor:
    """``(pixel / 255 - MEAN) / STD`` of the fitted images: ``[b, 3, side, side]`` float32."""
    arrays = np.stack([fit(image, side) for image in images])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std
