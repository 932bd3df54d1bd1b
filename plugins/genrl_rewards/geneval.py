"""GenEval (arXiv 2310.11513) as a reward: objects by Mask2Former, colours by CLIP, rules."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from genrl_core import Media, Prompt, Reward
from genrl_models import ModelFiles
from genrl_rewards.clip import ClipScore, image_embedding, load_clip
from genrl_rewards.coco import COLOURS
from genrl_rewards.detector import Detector, load_detector
from genrl_rewards.geneval_rules import Objects, by_tag, dense, kept, request_of, strict
from genrl_rewards.images import cropped, normalised, pictures
from genrl_rewards.loading import load_tokenizer

if TYPE_CHECKING:
    from genrl_rewards import GenEvalConfig

BLANK = (0x99, 0x99, 0x99)
"""What stands around an object whose colour is asked."""
TEMPLATES = (
    "a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object",
)  # fmt: skip


class GenEval(Reward):
    """``strict``: the benchmark's verdict, 1 or 0; ``dense``: Flow-GRPO's share of what is met.

    The rules are GenEval's (``geneval_rules``). The networks are transformers' conversions of the
    same two, not mmdet's and open_clip's, and the images never pass through a file: **the numbers
    are not comparable with published GenEval numbers**, only with one another.

    The summary has the mean of every category, and the mean of those as the whole.
    """

    def __init__(
        self, detector: Detector, colours: "ColourJudge", *, form: Literal["strict", "dense"]
    ):
        self._detector, self._colours, self._form = detector, colours, form

    def to(self, device: torch.device) -> None:
        self._detector.network.to(device)
        self._colours.clip.to(device)

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        requests = [request_of(prompt) for prompt in prompts]
        images = pictures(media, "geneval")
        verdict = strict if self._form == "strict" else dense
        rows = zip(images, self._detector(images), requests, strict=True)
        return [
            float(verdict(kept(found, asked.tag), asked, partial(self._colours, image)))
            for image, found, asked in rows
        ]

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        return by_tag(self(media, prompts), [request_of(prompt) for prompt in prompts])


class ColourJudge:
    """Which of ``COLOURS`` objects have: zero-shot classification by CLIP (arXiv 2103.00020).

    A colour's direction is the unit mean of the unit embeddings of ``TEMPLATES``; an object's is
    that of its box, grey outside of its mask. The nearest colour by the cosine wins.
    """

    def __init__(self, clip: ClipScore):
        self.clip = clip
        self._directions: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Image.Image, objects: Objects) -> list[str]:
        """The colours of objects of one class in one image."""
        network: Any = self.clip.network
        side = network.config.vision_config.image_size
        crops = [crop(image, one.box, one.mask) for one in objects]
        pixels = normalised(crops, side, cropped).to(self.clip.device)
        found = image_embedding(network, pixels)
        directions = self._of_class(objects[0].name).to(self.clip.device)
        return [COLOURS[i] for i in (found @ directions.T).argmax(-1).tolist()]

    def _of_class(self, name: str) -> Tensor:
        """``[10, P]``, a row per colour, on the CPU."""
        if name not in self._directions:
            texts = [t.format(c=colour, name=name) for colour in COLOURS for t in TEMPLATES]
            encoded = self.clip.encode(texts)["text"].cpu()
            mean = encoded.view(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._directions[name] = mean / mean.norm(dim=-1, keepdim=True)
        return self._directions[name]


def crop(image: Image.Image, box: Sequence[float], mask: Any) -> Image.Image:
    """The box of an object, everything outside of its mask ``[H, W]`` bool in grey."""
    blank = Image.new("RGB", image.size, BLANK)
    left, top, right, bottom = (int(edge) for edge in box)
    return Image.composite(image, blank, Image.fromarray(mask)).crop((left, top, right, bottom))


def geneval(config: "GenEvalConfig") -> GenEval:
    """The reward, its networks on the CPU.

    Raises:
        RecipeError: files are missing, or are of other models.
    """
    from transformers import CLIPModel, CLIPTokenizer

    detector = load_detector(
        ModelFiles(config.weights, f"{config.called}.weights", config.revision),
        resolution=config.resolution, batch_size=config.batch_size,
    )  # fmt: skip
    network = load_clip(CLIPModel, ModelFiles(config.clip, f"{config.called}.clip"))
    rows = network.config.text_config.vocab_size
    tokenizer = load_tokenizer(CLIPTokenizer, config.clip, f"{config.called}.clip", None, rows)
    clip = ClipScore(network, tokenizer, scale="cosine", batch_size=config.batch_size)
    return GenEval(detector, ColourJudge(clip), form=config.form)
