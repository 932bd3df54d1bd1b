"""Objects in images: Mask2Former (arXiv 2112.01527) on COCO's 80 classes, as GenEval runs it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from genrl_core import RecipeError
from genrl_models import ModelFiles
from genrl_rewards.coco import CLASSES
from genrl_rewards.geneval_rules import CONFIDENCE, Detection

EXAMPLE = "facebook/mask2former-swin-small-coco-instance"
CANDIDATES = 100
"""Pairs of a mask and a class that are looked at, the likeliest ones."""
LONGEST = 1333 / 800
"""The longer side may be this many times ``resolution``; the image is made smaller above that."""
MULTIPLE = 32
"""Images are padded to multiples of this many pixels."""
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of ImageNet, per channel, in grey levels 0 to 255."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Detector:
    """Images to detections, all above ``CONFIDENCE``; a mask is as large as its image.

    The images are resized bilinearly to ``resolution`` pixels on the shorter side, then padded. By
    PIL, which filters where it makes smaller; OpenCV, in GenEval, does not.

    Args:
        network: ``Mask2FormerForUniversalSegmentation`` with 80 labels.
        resolution: pixels of the shorter side.
        batch_size: images that pass through the network at a time.
    """

    def __init__(self, network: Any, *, resolution: int, batch_size: int):
        self.network = network.float().eval().requires_grad_(requires_grad=False)
        self._resolution, self._batch_size = resolution, batch_size

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The objects of images that are all of one size."""
        found = []
        for start in range(0, len(images), self._batch_size):
            found += self._chunk(images[start : start + self._batch_size])
        return found

    @torch.no_grad()
    def _chunk(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        size = images[0].height, images[0].width
        inner = resized_to(size, self._resolution)
        pixels = padded(images, inner)
        with torch.random.fork_rng(devices=[]):  # transformers 5.20 draws for its layer drop
            said = self.network(pixel_values=pixels.to(self.network.device))
        pairs = zip(said.class_queries_logits, said.masks_queries_logits, strict=True)
        outer = pixels.shape[-2], pixels.shape[-1]
        return [detections(c, m, outer, inner, size) for c, m in pairs]


def resized_to(size: Size, resolution: int) -> Size:
    """The size at which an image is shown to the network, before padding."""
    short, long = sorted(size)
    scale = min(resolution / short, LONGEST * resolution / long)
    height, width = (int(length * scale + 0.5) for length in size)
    return height, width


def padded(images: Sequence[Image.Image], inner: Size) -> Tensor:
    """Normalised images ``[b, 3, H, W]`` float32, of size ``inner`` and then 0 to the right and
    below, up to the next multiples of ``MULTIPLE``.
    """
    height, width = inner
    small = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    margins = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    return torch.nn.functional.pad((pixels.float() - mean) / std, margins)


def detections(
    class_logits: Tensor, mask_logits: Tensor, outer: Size, inner: Size, size: Size
) -> list[Detection]:
    """The objects that a network saw in one image.

    A candidate is a mask ``{logit > 0}`` with a class; its confidence is the probability of the
    class times the mean of ``sigmoid(logit)`` over the mask; its box is the mask's.

    Args:
        class_logits: ``[Q, 81]``, the last for no object.
        mask_logits: ``[Q, h, w]``.
        outer, inner, size: of the padded image, of the image in it, and of the original.
    """
    flat = class_logits.softmax(-1)[:, :-1].flatten()
    likely, index = flat.topk(min(CANDIDATES, len(flat)))
    index = index[likely > CONFIDENCE]  # the confidence is no larger
    labels = index % (class_logits.shape[1] - 1)
    chosen = mask_logits[index // (class_logits.shape[1] - 1)]
    masks, sureness = _masks(chosen, outer, inner, size)
    scores = (likely[: len(index)] * sureness).tolist()
    rows = zip(labels.tolist(), scores, masks.cpu().numpy(), strict=True)
    return [
        Detection(CLASSES[label], score, _box(mask), mask)
        for label, score, mask in rows
        if score > CONFIDENCE
    ]


def _masks(logits: Tensor, outer: Size, inner: Size, size: Size) -> tuple[Tensor, Tensor]:
    """Masks ``[n, H, W]`` bool and their mean probability ``[n]``; 0 for an empty one."""
    if not len(logits):
        return logits.new_zeros((0, *size), dtype=torch.bool), logits.new_zeros(0)
    large = _stretched(logits.unsqueeze(1), outer)[:, :, : inner[0], : inner[1]]
    full = _stretched(large, size).squeeze(1)
    masks = full > 0
    return masks, (full.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)


def _stretched(logits: Tensor, size: Size) -> Tensor:
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _box(mask: Any) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a mask that is not empty, the last two exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def load_detector(files: ModelFiles, *, resolution: int, batch_size: int) -> Detector:
    """The detector of a folder or hub repository, on the CPU.

    Raises:
        RecipeError: files are missing, or hold something else than a Mask2Former on COCO.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    files.path(("config.json",))
    stated = files.settings()
    labels = len(stated.get("id2label", {}))
    if stated.get("model_type") != "mask2former" or labels != len(CLASSES):
        raise RecipeError(
            f"{files.field}: config.json of {files.source} describes a model of type "
            f"{stated.get('model_type')!r} with {labels} labels, not a 'mask2former' with COCO's "
            f"{len(CLASSES)}, such as {EXAMPLE}"
        )
    path, state = files.tensors()
    kind: Any = Mask2FormerForUniversalSegmentation
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        network, report = kind.from_pretrained(
            None, config=Mask2FormerConfig.from_dict(stated), state_dict=state,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if wrong:
        raise RecipeError(
            f"{files.field}: the weights in {path} are not those that its config.json describes; "
            f"{len(wrong)} tensors are missing or of another shape, for example "
            f"{', '.join(wrong[:3])}. Download it again, or give {EXAMPLE}"
        )
    return Detector(network, resolution=resolution, batch_size=batch_size)
