"""CLIP and its descendants: how well an image and a text agree."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from genrl_core import RecipeError, Tensors
from genrl_models import ModelFiles
from genrl_rewards.base import NetworkReward
from genrl_rewards.images import Fit, cropped
from genrl_rewards.loading import filled, load_tokenizer, told

if TYPE_CHECKING:
    from genrl_rewards import ClipScoreConfig, PickScoreConfig


class ClipScore(NetworkReward):
    """``<I, T>`` or ``exp(s) <I, T>``, of unit embeddings I of the image and T of the prompt.

    CLIPScore (arXiv 2104.08718) is ``2.5 max(<I, T>, 0)``; here is neither the factor nor the
    maximum, and the prompt is not preceded by "A photo depicts". PickScore (arXiv 2305.01569) is
    ``exp(s) <I, T>``, and s is the model's ``logit_scale``; HPS v2 (arXiv 2306.09341) is
    ``<I, T>``. A prompt is cut off at the model's number of positions, 77 tokens.

    Args:
        network: ``CLIPModel``.
        tokenizer: ``CLIPTokenizer``.
        scale: ``cosine``, or ``logits`` for the factor ``exp(s)``.
        batch_size: images, and texts, that pass through the network at a time.
        fit: how an image becomes the square that the network takes.
    """

    def __init__(
        self, network: Any, tokenizer: Any, *, scale: Literal["cosine", "logits"],
        batch_size: int, fit: Fit = cropped,
    ):  # fmt: skip
        super().__init__(
            network, tokenizer, batch_size=batch_size,
            side=network.config.vision_config.image_size,
            max_tokens=network.config.text_config.max_position_embeddings, fit=fit,
        )  # fmt: skip
        self._factor = float(network.logit_scale.exp()) if scale == "logits" else 1.0

    def encode(self, texts: Sequence[str]) -> Tensors:
        parts = [self._embedded(texts[part]) for part in self.chunks(len(texts))]
        return {"text": torch.cat(parts)}

    def score(self, pixels: Tensor, encoded: Tensors) -> Tensor:
        image = image_embedding(self.network, pixels)
        return self._factor * (image * encoded["text"]).sum(-1)

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        network: Any = self.network
        tokens = self.tokens(texts)
        pooled = network.text_model(tokens["ids"], tokens["mask"]).pooler_output
        return _unit(network.text_projection(pooled))


def image_embedding(network: Any, pixels: Tensor) -> Tensor:
    """The unit embedding of images ``[b, 3, S, S]``: ``[b, P]``."""
    pooled = network.vision_model(pixel_values=pixels).pooler_output
    return _unit(network.visual_projection(pooled))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def clip_score(config: "ClipScoreConfig | PickScoreConfig") -> ClipScore:
    """The reward, its network on the CPU.

    Raises:
        RecipeError: files are missing or no CLIP, or the tokenizer does not fit.
    """
    from transformers import CLIPModel, CLIPTokenizer

    files = ModelFiles(config.weights, f"{config.called}.weights", config.revision)
    network = load_clip(CLIPModel, files)
    own = config.tokenizer is None
    tokenizer = load_tokenizer(
        CLIPTokenizer, config.tokenizer or config.weights, f"{config.called}.tokenizer",
        config.revision if own else None, network.config.text_config.vocab_size,
    )  # fmt: skip
    return ClipScore(network, tokenizer, scale=config.scale, batch_size=config.batch_size)


def load_clip(kind: Any, files: ModelFiles) -> Any:
    """A CLIP in transformers' layout: ``config.json`` and weights.

    Args:
        kind: ``CLIPModel``, or ``CLIPVisionModelWithProjection`` for the image's half.
        files: where they are.

    Raises:
        RecipeError: files are missing, or it is another kind of model.
    """
    from transformers import CLIPConfig, CLIPModel

    files.path(("config.json",))
    stated = files.settings()
    said = stated.get("model_type", stated.get("_class_name"))
    if said != "clip":
        raise RecipeError(
            f"{files.field}: config.json of {files.source} describes a model of type "
            f"{said!r}, not a 'clip' in transformers' layout, such as "
            "openai/clip-vit-large-patch14"
        )
    whole = kind is CLIPModel
    with told(f"{files.field}: config.json of {files.source} describes no CLIP"):
        settings: Any = CLIPConfig.from_dict(stated)
    settings.vision_config.projection_dim = settings.projection_dim  # silent where it is alone
    path, state = files.tensors()
    if not whole:
        state = {key: value for key, value in state.items() if key.startswith("vis")}
    where = f"{files.field}: CLIP from {path}"
    return filled(lambda: kind(settings if whole else settings.vision_config), state, where)
