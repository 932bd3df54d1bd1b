"""A tiny random aMUSEd, saved by diffusers in the layout in which the real ones are published."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *LETTERS,
    *(f"{letter}</w>" for letter in LETTERS),
    "<|startoftext|>",
    "<|endoftext|>",
]
CODES, SIDE, WIDTH, MASK = 16, 4, 16, 19


def transformer() -> UVit2DModel:
    network = UVit2DModel(
        hidden_size=WIDTH, hidden_dropout=0.3, attention_dropout=0.3, cond_embed_dim=12,
        micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=8,
        vocab_size=MASK + 1, codebook_size=CODES, in_channels=WIDTH, block_out_channels=WIDTH,
        num_res_blocks=1, downsample=True, upsample=True, block_num_heads=2, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, sample_size=SIDE,
    )  # fmt: skip
    with torch.no_grad():  # a fresh network is all but deaf and undecided; real ones are neither
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 and ("cond" in name or "attn2" in name):
                parameter.mul_(6)
        network.mlm_layer.conv2.weight.mul_(2)
    return network


def vqvae() -> VQModel:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return VQModel(
        **blocks, layers_per_block=1, latent_channels=4, num_vq_embeddings=CODES,
        norm_num_groups=4, lookup_from_codebook=True, force_upcast=True,
        mid_block_add_attention=False,
    )  # fmt: skip


def text_encoder() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY), hidden_size=8, intermediate_size=16, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=12, projection_dim=12, bos_token_id=52,
            eos_token_id=53, pad_token_id=53, initializer_factor=5.0,
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a download of amused/amused-256: 16 codes, 4 x 4 of them, 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("amused")
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = vqvae(), tokenizer, text_encoder(), transformer()
    AmusedPipeline(*parts, AmusedScheduler(mask_token_id=MASK)).save_pretrained(folder)
    # The published tokenizers are older than tokenizer.json.
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    return folder
