"""From media to a network's input: equal to transformers' PIL processor and to frames by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from genrl_core import Media, RewardError
from genrl_rewards import JpegSizeConfig
from genrl_rewards.images import MEAN, STD, cropped, letterboxed, normalised, pictures

from .networks import media, prompts

SIZES = [(24, 24), (8, 8), (64, 64), (37, 24), (24, 37), (51, 40), (40, 51), (100, 31), (9, 200)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cropped_is_clips_own_processor(height: int, width: int) -> None:
    images = pictures(media(height, width, count=2), "x")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    expected = np.stack(processor(images)["pixel_values"])
    found = normalised(images, 24, cropped)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 24, 24)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_at_the_published_size() -> None:
    images = pictures(media(512, 512, count=1), "x")
    expected = np.stack(CLIPImageProcessorPil()(images)["pixel_values"])
    np.testing.assert_allclose(normalised(images, 224, cropped).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (40, 20, (0, 6, 24, 18)),  # rows and columns of a 24 x 24 frame that the image fills
        (20, 40, (6, 0, 18, 24)),
        (40, 25, (0, 4, 24, 19)),  # 15 wide: 4 left, 5 right
        (24, 24, (0, 0, 24, 24)),
        (9, 12, (3, 0, 21, 24)),
    ],
)
def test_letterboxed_keeps_all_of_the_image_on_black(
    height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    image = pictures(media(height, width, count=1), "x")[0]
    top, left, bottom, right = box
    found = letterboxed(image, 24)
    resized = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    expected = np.zeros((24, 24, 3), np.uint8)
    expected[top:bottom, left:right] = np.asarray(resized)
    np.testing.assert_array_equal(found, expected)


def test_black_is_black_before_the_scale() -> None:
    """The frame is 0 of 255, not the mean: it becomes -MEAN / STD."""
    white = pictures(Media("image", torch.full((1, 3, 4, 2), 255, dtype=torch.uint8)), "x")
    found = normalised(white, 8, letterboxed)[0]
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert found[channel, 4, 0].item() == pytest.approx(-mean / std, abs=1e-6)
        assert found[channel, 4, 4].item() == pytest.approx((1 - mean) / std, abs=1e-6)


def test_channels_and_rows_are_not_mixed_up() -> None:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    shown = pictures(Media("image", pixels), "x")
    assert [image.size for image in shown] == [(5, 4), (5, 4)]
    assert shown[1].getpixel((3, 2)) == tuple(pixels[1, :, 2, 3].tolist())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Media("text", texts=("a",)), "found text"),
        (Media("video", torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)), r"\(1, 2, 3, 4, 4\)"),
        (Media("image", torch.zeros(1, 3, 4, 4)), "type torch.float32"),
        (Media("image", torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), r"\(1, 1, 4, 4\)"),
    ],
)
def test_what_is_no_image_is_refused(given: Media, told: str) -> None:
    with pytest.raises(RewardError, match=r"JpegSize judges images \[B, 3, H, W\].*" + told):
        JpegSizeConfig().build()(given, prompts(("a",)))


# --- the size of a JPEG ---


def test_jpeg_size_is_the_files_in_kilobytes() -> None:
    images = media(48, 64, count=3)
    for quality in (95, 30):
        large = JpegSizeConfig(prefer="large", quality=quality).build()(images, prompts())
        for value, image in zip(large, pictures(images, "x"), strict=True):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            assert value == len(file.getvalue()) / 1000
    small = JpegSizeConfig(quality=30).build()(images, prompts())
    assert small == [-value for value in large]


def test_noise_is_larger_than_flat_colour() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=generator, dtype=torch.uint8)
    both = Media("image", torch.cat([noise, torch.full_like(noise, 90)]))
    noisy, flat = JpegSizeConfig(prefer="large").build()(both, prompts(("a", "a")))
    assert noisy > 5 * flat > 0
