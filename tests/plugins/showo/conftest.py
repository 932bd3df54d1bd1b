"""A tiny Show-o with random weights, saved in the published layout, tokenizers included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genrl_showo import ShowoConfig
from genrl_showo.layout import Vocabulary
from genrl_showo.magvit import MagvitLayout, random_magvit, save_magvit
from genrl_showo.network import ShowoNetwork
from genrl_showo.policy import ShowoPolicy
from genrl_showo.weights import phi_settings

WORDS = ["<|endoftext|>", "a", "red", "blue", "cube", "ball", "and", "two", "small", "cat", "dog"]
TINY = Vocabulary(text=11, codes=16, boundary=0)
NUM_TOKENS = 16
LENGTH = 10


def tiny_network(*, autocast: bool = False, recompute: bool = False) -> ShowoNetwork:
    """Two layers of 2 heads; large weights, so that everything in sight changes the logits."""
    settings = phi_settings(vocabulary=TINY.size, width=32, mlp=48, heads=2, layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = ShowoNetwork(settings, TINY, autocast=autocast, recompute=recompute)
        for parameter in network.parameters():
            scale = 0.25 if parameter.dim() > 1 else 0.1
            parameter.data = scale * torch.randn_like(parameter) + (parameter.data == 1)
    return network.eval()


def settings(tokenizer: Path) -> dict[str, Any]:
    """config.json as the hub has it."""
    return {
        "_class_name": "Showo", "codebook_size": TINY.codes, "llm_model_path": str(tokenizer),
        "llm_vocab_size": TINY.text, "mask_token_id": TINY.mask, "num_vq_tokens": NUM_TOKENS,
        "vocab_size": TINY.size, "w_clip_vit": False,
    }  # fmt: skip


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: ``text`` and ``image`` tokenizers, and ``showo`` as showlab/show-o has it."""
    root = tmp_path_factory.mktemp("showo")
    found = {name: root / name for name in ("text", "image", "showo")}
    save_tokenizer(found["text"])
    save_magvit(random_magvit(MagvitLayout(width=4, norm_groups=2, bits=4)), found["image"])
    found["showo"].mkdir()
    save_file(tiny_network().state_dict(), found["showo"] / "pytorch_model.safetensors")
    (found["showo"] / "config.json").write_text(json.dumps(settings(found["text"])))
    return found


@pytest.fixture
def build(published: dict[str, Path]) -> Callable[..., ShowoPolicy]:
    """``build(weights=..., **fields)``: the policy, of the tiny folder where silent."""

    def make(**fields: Any) -> ShowoPolicy:
        given = {
            "weights": str(published["showo"]), "image_tokenizer": str(published["image"]),
            "max_text_tokens": LENGTH,
        } | {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}  # fmt: skip
        return ShowoConfig(**given).build()

    return make
