"""Human preference score v2: open_clip's ViT-H/14, fine-tuned, as transformers' CLIP."""

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genrl_core import Tensors
from genrl_models import ModelFiles
from genrl_rewards.clip import ClipScore
from genrl_rewards.images import letterboxed
from genrl_rewards.loading import count_layers, filled, load_tokenizer, require, told

if TYPE_CHECKING:
    from transformers import CLIPConfig

    from genrl_rewards import HpsConfig

FILES = {
    "2.0": ("HPS_v2_compressed.pt", "HPS_v2_compressed.safetensors"),
    "2.1": ("HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.safetensors"),
}
"""What the weights are called; .safetensors for who has converted them."""

HEADS = 16
"""Of both towers of ViT-H/14; no shape tells it."""

NAMES = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
"""From open_clip's names to transformers', applied in this order."""


def hps(config: "HpsConfig") -> ClipScore:
    """The reward, its network on the CPU: the cosine alone, of letterboxed images.

    The published code resizes a float tensor, by torchvision's version with or without
    antialiasing, and computes in half precision where autocast does; here PIL resizes 8 bits and
    all is float32. Its tokenizer also mends broken Unicode and HTML (``&amp;``) in a prompt.

    Raises:
        RecipeError: files are missing or no HPS v2, or the tokenizer does not fit.
    """
    from transformers import CLIPModel, CLIPTokenizer

    files = ModelFiles(config.weights, f"{config.called}.weights", config.revision)
    path, state = files.tensors(FILES[config.version], inside="state_dict")
    where = f"{files.field}: HPS v{config.version} from {path}"
    settings: Any = settings_of(state, where)
    network = filled(lambda: CLIPModel(settings), clip_state(state), where)
    tokenizer = load_tokenizer(
        CLIPTokenizer, config.tokenizer, f"{config.called}.tokenizer", None,
        settings.text_config.vocab_size,
    )  # fmt: skip
    return ClipScore(
        network, tokenizer, scale="cosine", batch_size=config.batch_size, fit=letterboxed
    )


def settings_of(state: Tensors, where: str) -> "CLIPConfig":
    """The sizes of both towers, read off the shapes; the rest is ViT-H/14's: exact GELU, 16 heads.

    Raises:
        RecipeError: a key that says a size is missing.
    """
    from transformers import CLIPConfig

    keys = {
        "patch": "visual.conv1.weight",
        "positions": "visual.positional_embedding",
        "image_mlp": "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "tokens": "token_embedding.weight",
        "context": "positional_embedding",
        "text_mlp": "transformer.resblocks.0.mlp.c_fc.weight",
        "projection": "text_projection",
    }
    shape = {n: t.shape for n, t in require(state, keys, where, "xswu/HPSv2").items()}
    common = {"num_attention_heads": HEADS, "hidden_act": "gelu"}
    side = math.isqrt(shape["positions"][0] - 1) * shape["patch"][-1]
    vision: dict[str, Any] = common | {
        "hidden_size": shape["patch"][0], "intermediate_size": shape["image_mlp"][0],
        "num_hidden_layers": count_layers(state, "visual.transformer.resblocks."),
        "patch_size": shape["patch"][-1], "image_size": side,
    }  # fmt: skip
    vocabulary = shape["tokens"][0]
    text: dict[str, Any] = common | {
        "hidden_size": shape["tokens"][1], "intermediate_size": shape["text_mlp"][0],
        "num_hidden_layers": count_layers(state, "transformer.resblocks."),
        "max_position_embeddings": shape["context"][0], "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
    }  # fmt: skip
    with told(f"{where} has sizes that make no network"):
        return CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=shape["projection"][1]
        )


def clip_state(state: Tensors) -> Tensors:
    """open_clip's state dict under transformers' names, one tensor for each of q, k and v."""
    found: Tensors = {}
    for key, tensor in state.items():
        name = _renamed(key)
        if joined := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{joined[1]}.self_attn.{letter}_proj.{joined[2]}"] = part.contiguous()
        else:
            found[name] = _turned(key, tensor)
    return found


def _renamed(key: str) -> str:
    for pattern, name in NAMES:
        key = re.sub(pattern, name, key)
    return key


def _turned(key: str, tensor: Tensor) -> Tensor:
    """open_clip multiplies from the right by its two projections."""
    if key in ("visual.proj", "text_projection"):
        return tensor.transpose(0, 1).contiguous()
    return torch.as_tensor(tensor)
