"""The size of a JPEG: what a run can learn without any network."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from genrl_core import Media, Prompt, Reward
from genrl_rewards.images import pictures

if TYPE_CHECKING:
    from genrl_rewards import JpegSizeConfig


class JpegSize(Reward):
    """The file's size in kB (1,000 bytes), negated where small files are wanted (arXiv 2305.13301).

    Pillow's encoder with its standard settings; the prompt has no part in it.
    """

    def __init__(self, config: "JpegSizeConfig"):
        self._sign = -1.0 if config.prefer == "small" else 1.0
        self._quality = config.quality

    def __call__(
        self, media: Media, prompts: Sequence[Prompt]  # noqa: ARG002  # the image alone
    ) -> list[float]:  # fmt: skip
        images = pictures(media, type(self).__name__)
        return [self._sign * kilobytes(image, self._quality) for image in images]


def kilobytes(image: Image.Image, quality: int) -> float:
    """The size of the image as a JPEG file, in units of 1,000 bytes."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return file.tell() / 1000
