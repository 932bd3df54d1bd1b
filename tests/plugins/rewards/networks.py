"""Tiny reward networks with random weights in the published formats, and what they compute.

The forwards here are plain torch in float64 under the published keys: nothing of transformers.
"""

import json
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from genrl_core import Media, Prompt

State = dict[str, Tensor]

MERGES = ("c a", "ca t</w>", "r e", "re d</w>", "b l", "d o", "do g</w>")
WORDS = ("a", "red", "blue", "cat", "dog", "and", "the", "of", "two")
TEXTS = ("a red cat", "the dog", "a red cat", "two blue dogs and a cat", "the dog")
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def media(height: int = 20, width: int = 12, count: int = 5, seed: int = 0) -> Media:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 3, 3), generator=generator).float()
    pixels = F.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.randint(-9, 10, pixels.shape, generator=generator)
    return Media("image", (pixels + noise).clamp(0, 255).to(torch.uint8))


def prompts(texts: tuple[str, ...] = TEXTS) -> list[Prompt]:
    return [Prompt(str(place), text) for place, text in enumerate(texts)]


# --- tokenizers ---


def clip_vocabulary() -> dict[str, int]:
    signs = string.ascii_lowercase + string.digits + ",."
    joined = ["".join(merge.split()) for merge in MERGES]
    ends = ("<|startoftext|>", "<|endoftext|>")
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *joined, *ends]
    return {token: place for place, token in enumerate(tokens)}


def save_clip_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder


def save_bert_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, "##s"]) + "\n")
    return folder


# --- random weights, large enough that everything in sight changes the result ---


class Draw:
    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(shape, generator=self._generator)

    def norm(self, name: str, width: int) -> State:
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}

    def linear(self, name: str, inside: int, outside: int) -> State:
        return {f"{name}.weight": self(outside, inside), f"{name}.bias": self(outside)}


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def wide(state: State) -> State:
    return {key: tensor.double() for key, tensor in state.items()}


# --- open_clip, as HPS v2 publishes it ---


def open_clip_state(seed: int = 1) -> State:
    """Vision 48 wide, 8 x 8 pixels in patches of 4; text 32 wide, 12 positions; projection 24."""
    draw = Draw(seed)
    found = {
        "logit_scale": torch.tensor(3.0),
        "visual.class_embedding": draw(48),
        "visual.positional_embedding": draw(5, 48),
        "visual.conv1.weight": draw(48, 3, 4, 4),
        "visual.proj": draw(48, 24),
        "token_embedding.weight": draw(len(clip_vocabulary()), 32, scale=1.0),
        "positional_embedding": draw(12, 32),
        "text_projection": draw(32, 24),
    }
    for name, width in (("visual.ln_pre", 48), ("visual.ln_post", 48), ("ln_final", 32)):
        found |= draw.norm(name, width)
    for tower, width in (("visual.transformer", 48), ("transformer", 32)):
        for block in (f"{tower}.resblocks.{number}" for number in range(2)):
            found |= {
                f"{block}.attn.in_proj_weight": draw(3 * width, width),
                f"{block}.attn.in_proj_bias": draw(3 * width),
            }
            found |= draw.linear(f"{block}.attn.out_proj", width, width)
            found |= draw.linear(f"{block}.mlp.c_fc", width, 2 * width)
            found |= draw.linear(f"{block}.mlp.c_proj", 2 * width, width)
            found |= draw.norm(f"{block}.ln_1", width) | draw.norm(f"{block}.ln_2", width)
    return found


def open_clip_blocks(state: State, tower: str, x: Tensor, allowed: Tensor | None) -> Tensor:
    for block in (f"{tower}.resblocks.{number}" for number in range(2)):
        y = norm(state, f"{block}.ln_1", x, 1e-5)
        joined = y @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        seen = attention(*joined.chunk(3, -1), heads=16, allowed=allowed)
        x = x + linear(state, f"{block}.attn.out_proj", seen)
        y = norm(state, f"{block}.ln_2", x, 1e-5)
        x = x + linear(state, f"{block}.mlp.c_proj", gelu(linear(state, f"{block}.mlp.c_fc", y)))
    return x


def open_clip_cosine(state: State, pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """``[b]`` float64; texts one by one, unpadded, pooled at the largest id."""
    state = wide(state)
    patches = F.conv2d(pixels.double(), state["visual.conv1.weight"], stride=4)
    x = patches.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = norm(state, "visual.ln_pre", x, 1e-5)
    x = open_clip_blocks(state, "visual.transformer", x, None)[:, 0]
    image = norm(state, "visual.ln_post", x, 1e-5) @ state["visual.proj"]
    texts = []
    for row in ids:
        y = state["token_embedding.weight"][row] + state["positional_embedding"][: len(row)]
        causal = torch.ones(len(row), len(row), dtype=torch.bool).tril()
        y = open_clip_blocks(state, "transformer", y[None], causal)[0]
        place = max(range(len(row)), key=row.__getitem__)
        texts.append(norm(state, "ln_final", y, 1e-5)[place] @ state["text_projection"])
    return torch.cosine_similarity(image, torch.stack(texts))


# --- BLIP, as ImageReward publishes it ---


def image_reward_state(seed: int = 2) -> State:
    """Vision 32 wide, 8 x 8 pixels in patches of 4; text 24 wide, 40 positions, two layers each."""
    draw = Draw(seed)
    image, words = "blip.visual_encoder", "blip.text_encoder"
    found = {
        # So small that the first norm's epsilon, 1e-6 or 1e-5, makes a difference.
        f"{image}.cls_token": draw(1, 1, 32, scale=0.003),
        f"{image}.pos_embed": draw(1, 5, 32, scale=0.003),
        f"{image}.patch_embed.proj.weight": draw(32, 3, 4, 4, scale=0.001),
        f"{image}.patch_embed.proj.bias": draw(32, scale=0.003),
        f"{words}.embeddings.position_ids": torch.arange(40)[None],
        f"{words}.embeddings.word_embeddings.weight": draw(17, 24, scale=1.0),
        f"{words}.embeddings.position_embeddings.weight": draw(40, 24),
    }
    found |= draw.norm(f"{image}.norm", 32) | draw.norm(f"{words}.embeddings.LayerNorm", 24)
    for number in range(2):
        block, layer = f"{image}.blocks.{number}", f"{words}.encoder.layer.{number}"
        found |= draw.norm(f"{block}.norm1", 32) | draw.norm(f"{block}.norm2", 32)
        found |= draw.linear(f"{block}.attn.qkv", 32, 96)
        found |= draw.linear(f"{block}.attn.proj", 32, 32)
        found |= draw.linear(f"{block}.mlp.fc1", 32, 64) | draw.linear(f"{block}.mlp.fc2", 64, 32)
        for kind, source in (("attention", 24), ("crossattention", 32)):
            found |= draw.linear(f"{layer}.{kind}.self.query", 24, 24)
            found |= draw.linear(f"{layer}.{kind}.self.key", source, 24)
            found |= draw.linear(f"{layer}.{kind}.self.value", source, 24)
            found |= draw.linear(f"{layer}.{kind}.output.dense", 24, 24)
            found |= draw.norm(f"{layer}.{kind}.output.LayerNorm", 24)
        found |= draw.linear(f"{layer}.intermediate.dense", 24, 48)
        found |= draw.linear(f"{layer}.output.dense", 48, 24)
        found |= draw.norm(f"{layer}.output.LayerNorm", 24)
    return found | {f"mlp.{key}": tensor for key, tensor in head_state(24).items()}


def head_state(width: int, seed: int = 3) -> State:
    """Linear layers 0, 2, 4, 6, 7, as both predictors have them: 1, 3 and 5 are dropout."""
    draw = Draw(seed)
    sizes = {0: (width, 10), 2: (10, 8), 4: (8, 6), 6: (6, 4), 7: (4, 1)}
    found: State = {}
    for place, (inside, outside) in sizes.items():
        found |= draw.linear(f"layers.{place}", inside, outside)
    return found


def head(state: State, x: Tensor, prefix: str = "") -> Tensor:
    for place in (0, 2, 4, 6, 7):
        x = linear(state, f"{prefix}layers.{place}", x)
    return x[..., 0]


def blip_image(state: State, pixels: Tensor) -> Tensor:
    name = "blip.visual_encoder"
    x = F.conv2d(pixels, state[f"{name}.patch_embed.proj.weight"], stride=4)
    x = x.flatten(2).transpose(1, 2) + state[f"{name}.patch_embed.proj.bias"]
    x = torch.cat([state[f"{name}.cls_token"].expand(len(x), 1, -1), x], 1)
    x = x + state[f"{name}.pos_embed"]
    for block in (f"{name}.blocks.{number}" for number in range(2)):
        joined = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6))
        x = x + linear(state, f"{block}.attn.proj", attention(*joined.chunk(3, -1), heads=16))
        y = gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", y)
    return norm(state, f"{name}.norm", x, 1e-6)


def blip_read(state: State, name: str, x: Tensor, source: Tensor) -> Tensor:
    q, k, v = (
        linear(state, f"{name}.self.{part}", given)
        for part, given in (("query", x), ("key", source), ("value", source))
    )
    y = linear(state, f"{name}.output.dense", attention(q, k, v, heads=12))
    return norm(state, f"{name}.output.LayerNorm", x + y, 1e-12)


def image_reward(state: State, pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """``[b]`` float64; pairs one by one, texts unpadded and not causal."""
    state, name, found = wide(state), "blip.text_encoder", []
    for row, seen in zip(ids, blip_image(state, pixels.double()).split(1), strict=True):
        x = state[f"{name}.embeddings.word_embeddings.weight"][row][None]
        x = x + state[f"{name}.embeddings.position_embeddings.weight"][: len(row)]
        x = norm(state, f"{name}.embeddings.LayerNorm", x, 1e-12)
        for layer in (f"{name}.encoder.layer.{number}" for number in range(2)):
            x = blip_read(state, f"{layer}.attention", x, x)
            x = blip_read(state, f"{layer}.crossattention", x, seen)
            y = linear(
                state,
                f"{layer}.output.dense",
                gelu(linear(state, f"{layer}.intermediate.dense", x)),
            )
            x = norm(state, f"{layer}.output.LayerNorm", x + y, 1e-12)
        found.append(head(state, x[0, 0], "mlp."))
    return (torch.stack(found) - 0.16717362830052426) / 1.0333394966054072


# --- CLIP, in transformers' layout ---


def save_clip(folder: Path, seed: int = 4) -> Path:
    """Vision 16 wide, 24 x 24 pixels; text 16 wide, 12 positions; tokenizer beside the weights."""
    from transformers import CLIPConfig, CLIPModel

    last = len(clip_vocabulary()) - 1
    common = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    settings = CLIPConfig(
        text_config=common | {
            "vocab_size": last + 1, "max_position_embeddings": 12, "bos_token_id": last - 1,
            "eos_token_id": last,
        },
        vision_config=common | {"image_size": 24, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    draw = Draw(seed)
    network = CLIPModel(settings)
    for name, parameter in network.named_parameters():
        parameter.data = draw(*parameter.shape) + ("norm" in name and name.endswith("weight"))
    network.logit_scale.data = torch.tensor(2.0)
    network.save_pretrained(folder)
    return save_clip_tokenizer(folder)


def save_head(path: Path, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(head_state(width), path)
    else:
        torch.save(head_state(width), path)
    return path
