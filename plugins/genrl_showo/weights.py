"""A Show-o checkpoint becomes a network: sizes from its shapes, ids from its config.json.

The published files are ``showlab/show-o`` and its variants (config.json and safetensors) and
``happyyifu/Mask-GRPO`` (``mycheckpoint.pth``: a plain state dict, no config.json). Which file is
taken and what is said where there is none: ``genrl_models.ModelFiles``.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genrl_core import RecipeError, Tensors
from genrl_models import WEIGHT_FILES, ModelFiles, attention_backend, fit_tensors
from genrl_showo.layout import NUM_SPECIAL, Vocabulary
from genrl_showo.network import ShowoNetwork

if TYPE_CHECKING:
    from transformers import PhiConfig, PreTrainedTokenizerBase

    from genrl_showo import ShowoConfig

FILES = (*WEIGHT_FILES, "mycheckpoint.pth")
"""What the weights may be called; the last is Mask-GRPO's."""

TEXT_TOKENIZER = "microsoft/phi-1_5"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")

UNUSED = re.compile(r"rotary_emb\.|^mm_projector\.")
"""Keys that are left out: tables that follow from the sizes, and image understanding by CLIP."""


def load_showo(config: "ShowoConfig") -> tuple[ShowoNetwork, "PreTrainedTokenizerBase", int]:
    """The network in evaluation mode, float32 on the CPU; the text tokenizer; N.

    Raises:
        RecipeError: files are missing or no Show-o, or the parts do not fit each other.
    """
    source = config.weights or config.base
    if source is None:
        raise RecipeError(f"policy.weights {config.weights_problem()}")
    precision: torch.dtype = getattr(torch, config.precision)
    attention_backend(config.attention, precision)  # what cannot be ends the run at once
    checkpoint = ModelFiles(source, "policy.weights", config.revision)
    stated = checkpoint.settings()
    if not stated:
        checkpoint.expect(FILES)
    if not stated and config.base is not None:
        stated = ModelFiles(config.base, "policy.base").settings()
    num_tokens = _num_tokens(config, stated, source)
    tokenizer = _text_tokenizer(config, stated)
    path, tensors = checkpoint.tensors(FILES)
    tensors = {key: tensor for key, tensor in tensors.items() if not UNUSED.search(key)}
    where = f"policy.weights: Show-o from {path}"
    settings = settings_of(tensors, where)
    vocabulary = _vocabulary(stated, settings.vocab_size, tokenizer, where)
    width = settings.hidden_size // settings.num_attention_heads
    attention_backend(config.attention, precision, head_dim=width)
    network = empty_network(settings, vocabulary, config)
    fit_tensors(network, tensors, where)
    return network.float().eval(), tokenizer, num_tokens


def settings_of(tensors: Tensors, where: str) -> "PhiConfig":
    """The sizes of the backbone, read off the shapes; all else is Phi-1.5's, as Show-o changed it.

    Phi-1.5 has half of each head's channels rotated (base 10,000), LayerNorms of epsilon 1e-5,
    gelu_new, no dropout and an untied head with a bias. Show-o normalises queries and keys, and the
    width of that norm tells the number of heads.

    Raises:
        RecipeError: a key that says a size is missing.
    """
    first = "showo.model.layers.0."
    sized = {
        "embedding": "showo.model.embed_tokens.weight",
        "mlp": f"{first}mlp.fc1.weight",
        "head": f"{first}self_attn.q_layernorm.weight",
    }
    if absent := [key for key in sized.values() if key not in tensors]:
        there = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise RecipeError(
            f"{where} is no Show-o: it lacks {', '.join(absent)} and holds {len(tensors)} keys, "
            f"such as {there}. Give showlab/show-o, showlab/show-o-512x512 or one trained from it"
        )
    vocabulary, width = tensors[sized["embedding"]].shape
    layers = {key.split(".")[3] for key in tensors if key.startswith("showo.model.layers.")}
    return phi_settings(
        vocabulary=vocabulary, width=width, mlp=tensors[sized["mlp"]].shape[0],
        heads=max(width // tensors[sized["head"]].shape[0], 1), layers=len(layers),
    )  # fmt: skip


def phi_settings(
    *, vocabulary: int = 58498, width: int = 2048, mlp: int = 8192, heads: int = 32,
    layers: int = 24,
) -> "PhiConfig":  # fmt: skip
    """Phi-1.5 with normalised queries and keys; the defaults are Show-o's (1,448,176,770).

    ``gelu_pytorch_tanh`` is the function that Phi calls gelu_new in one kernel: eight passes over
    the widest activations, and all but one of the copies kept for the backward pass, are saved.
    """
    from transformers import PhiConfig

    return PhiConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, qk_layernorm=True, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip


def empty_network(
    settings: "PhiConfig", vocabulary: Vocabulary, config: "ShowoConfig"
) -> ShowoNetwork:
    """The network with its parameters on the meta device, to be filled; nothing is drawn."""
    from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

    with torch.device("meta"):
        network = ShowoNetwork(
            settings, vocabulary, autocast=config.precision == "bfloat16",
            recompute=config.gradient_checkpointing, attention=config.attention,
        )  # fmt: skip
    # Its table is no parameter and in no checkpoint, so it is made here, where numbers are real.
    network.showo.model.rotary_emb = PhiRotaryEmbedding(settings)
    return network


def _vocabulary(
    stated: dict[str, Any], rows: int, tokenizer: "PreTrainedTokenizerBase", where: str
) -> Vocabulary:
    """The ids, by config.json or as published; checked against the embedding and the tokenizer."""
    text = _whole(stated, "llm_vocab_size", 50295)
    codes = _whole(stated, "codebook_size", rows - text - NUM_SPECIAL - 1)
    boundary = tokenizer.bos_token_id
    if boundary is None:
        raise RecipeError(
            "policy.text_tokenizer has no beginning-of-sequence token: take Phi-1.5's"
        )
    found = Vocabulary(text, codes, int(boundary))
    if codes < 1 or found.size != rows:
        needed = f"{codes} codes and a mask make {found.size}" if codes > 0 else "codes do not fit"
        raise RecipeError(
            f"{where} has {rows} embeddings, and {text} ids of text, {NUM_SPECIAL} special ones, "
            f"{needed}: config.json belongs to other weights"
        )
    for name, own in (("vocab_size", found.size), ("mask_token_id", found.mask)):
        if (said := _whole(stated, name, own)) != own:
            raise RecipeError(
                f"{where} has its mask last, {name} {own}, and config.json says {said}: it belongs "
                "to other weights, or to a model with its ids in another order, which GenRL lacks"
            )
    if len(tokenizer) != text:
        raise RecipeError(
            f"policy.text_tokenizer: {tokenizer.name_or_path} has {len(tokenizer)} ids, and the "
            f"model reads {text} ids of text: name the tokenizer it was trained with "
            f"({TEXT_TOKENIZER} for Show-o)"
        )
    return found


def _num_tokens(config: "ShowoConfig", stated: dict[str, Any], source: str) -> int:
    """N: the recipe's word, or config.json's."""
    if config.num_image_tokens is not None:
        return config.num_image_tokens
    kind = stated.get("_class_name", stated.get("model_type", "Showo"))
    if kind != "Showo":
        raise RecipeError(
            f"policy.weights: config.json of {source} describes a model of kind {kind!r}, not a "
            "Showo: give showlab/show-o, showlab/show-o-512x512 or one trained from it"
        )
    found = _whole(stated, "num_vq_tokens", 0)
    if found < 1 or math.isqrt(found) ** 2 != found:
        raise RecipeError(
            f"policy.num_image_tokens is missing: no config.json of {source} states a square "
            "num_vq_tokens. Give 1024 (512 x 512 pixels, as happyyifu/Mask-GRPO has) or 256"
        )
    return found


def _whole(stated: dict[str, Any], name: str, default: int) -> int:
    found = stated.get(name, default)
    if not isinstance(found, int) or isinstance(found, bool):
        raise RecipeError(f"policy.weights: {name} in config.json is {found!r}, no whole number")
    return found


def _text_tokenizer(config: "ShowoConfig", stated: dict[str, Any]) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    name = config.text_tokenizer or str(stated.get("llm_model_path") or TEXT_TOKENIZER)
    place = Path(name).expanduser()
    name = str(place) if place.is_dir() else name
    try:
        if name.startswith(("/", ".", "~")) and not place.is_dir():
            raise OSError(f"there is no such folder (sought from {Path.cwd()}).")
        if place.is_dir() and not any((place / file).is_file() for file in _TOKENIZER_FILES):
            raise OSError(f"the folder has none of {', '.join(_TOKENIZER_FILES)}.")
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(" .:") + "."
        named = "" if config.text_tokenizer else ", which llm_model_path in config.json names"
        named = named if "llm_model_path" in stated else ""
        raise RecipeError(
            f"policy.text_tokenizer: cannot load a tokenizer from {name!r}{named}: {first} "
            f"Where there is a network run `hf download {TEXT_TOKENIZER} --include '*token*' "
            "'*.txt' --local-dir FOLDER`, and give that folder"
        ) from error
    return found
