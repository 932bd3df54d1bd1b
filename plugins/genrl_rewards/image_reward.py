"""ImageReward: BLIP reads the prompt while it looks at the image; linear layers make the score."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from genrl_core import Tensors
from genrl_models import ModelFiles
from genrl_rewards.base import NetworkReward
from genrl_rewards.loading import count_layers, filled, linear_chain, load_tokenizer, require

if TYPE_CHECKING:
    from genrl_rewards import ImageRewardConfig

FILES = ("ImageReward.pt", "ImageReward.safetensors")
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores, as published."""
MAX_TOKENS = 35
IMAGE_HEADS, TEXT_HEADS = 16, 12
"""Of ViT-L/16 and BERT-base; no shape tells them."""

IMAGE_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
)
"""From BLIP's own names of its image tower to transformers'; the text's are the same."""


class ImageRewardNetwork(nn.Module):
    """``[b]`` raw scores; the sizes are those of the parts."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module):
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The first token's last hidden state, through the linear layers.

        Args:
            pixels: ``[b, 3, S, S]``.
            ids, mask: ``[b, L]`` int64, the prompt's tokens and which of them are real.
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen)
        scores: Tensor = self.head(read.last_hidden_state[:, 0]).squeeze(-1)
        return scores


class ImageReward(NetworkReward):
    """``(m - mean) / std``, of the network's number m (arXiv 2304.05977); about -2 to 2.

    Prompts are cut off at 35 tokens. Half of what a picture's crop removes is rounded down, where
    the published code rounds to even: at most one pixel, and none for squares.
    """

    def encode(self, texts: Sequence[str]) -> Tensors:
        return self.tokens(texts)

    def score(self, pixels: Tensor, encoded: Tensors) -> Tensor:
        raw: Tensor = self.network(pixels, encoded["ids"], encoded["mask"])
        return (raw - MEAN) / STD


def image_reward(config: "ImageRewardConfig") -> ImageReward:
    """The reward, its network on the CPU.

    Raises:
        RecipeError: files are missing or no ImageReward, or the tokenizer does not fit.
    """
    from transformers import BertTokenizer

    files = ModelFiles(config.weights, f"{config.called}.weights", config.revision)
    path, state = files.tensors(FILES)
    network = network_of(state, f"{files.field}: ImageReward from {path}")
    vision: Any = network.vision
    text: Any = network.text
    tokenizer = load_tokenizer(
        BertTokenizer, config.tokenizer, f"{config.called}.tokenizer", None, text.config.vocab_size
    )
    return ImageReward(
        network, tokenizer, batch_size=config.batch_size, side=vision.config.image_size,
        max_tokens=min(MAX_TOKENS, text.config.max_position_embeddings),
    )  # fmt: skip


def network_of(state: Tensors, where: str) -> ImageRewardNetwork:
    """The network of a published state dict, on transformers' BLIP.

    Raises:
        RecipeError: keys are missing, unexpected or of another shape; ``where`` begins it.
    """
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    vision, text = settings_of(state, where)
    image = _under(state, "blip.visual_encoder.")
    words = _under(state, "blip.text_encoder.")
    return ImageRewardNetwork(
        filled(
            lambda: BlipVisionModel(BlipVisionConfig(**vision)),
            {_renamed(key): tensor for key, tensor in image.items()},
            f"{where}, image tower,",
        ),
        filled(
            lambda: BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False),
            {key: tensor for key, tensor in words.items() if not key.startswith("pooler.")},
            f"{where}, text tower,",
        ),
        linear_chain(_under(state, "mlp."), text["hidden_size"], f"{where}, mlp,"),
    )


def settings_of(state: Tensors, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes of both towers, read off the shapes; the rest is ViT-L/16's and BERT-base's.

    The image tower's LayerNorms have epsilon 1e-6, which is not transformers' default.

    Raises:
        RecipeError: a key that says a size is missing.
    """
    image, words = "blip.visual_encoder.", "blip.text_encoder."
    keys = {
        "patch": f"{image}patch_embed.proj.weight",
        "positions": f"{image}pos_embed",
        "image_mlp": f"{image}blocks.0.mlp.fc1.weight",
        "tokens": f"{words}embeddings.word_embeddings.weight",
        "context": f"{words}embeddings.position_embeddings.weight",
        "text_mlp": f"{words}encoder.layer.0.intermediate.dense.weight",
    }
    shape = {n: t.shape for n, t in require(state, keys, where, "THUDM/ImageReward").items()}
    patch = shape["patch"][-1]
    vision = {
        "hidden_size": shape["patch"][0], "intermediate_size": shape["image_mlp"][0],
        "num_hidden_layers": count_layers(state, f"{image}blocks."),
        "num_attention_heads": IMAGE_HEADS, "patch_size": patch,
        "image_size": math.isqrt(shape["positions"][1] - 1) * patch, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    # A decoder in name only: that is what gives it eyes for the image, not a causal mask.
    text = {
        "vocab_size": shape["tokens"][0], "hidden_size": shape["tokens"][1],
        "encoder_hidden_size": shape["patch"][0], "intermediate_size": shape["text_mlp"][0],
        "num_hidden_layers": count_layers(state, f"{words}encoder.layer."),
        "num_attention_heads": TEXT_HEADS, "max_position_embeddings": shape["context"][0],
        "is_decoder": True,
    }  # fmt: skip
    return vision, text


def _under(state: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _renamed(key: str) -> str:
    for pattern, name in IMAGE_NAMES:
        key = re.sub(pattern, name, key)
    return key
