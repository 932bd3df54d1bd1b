"""The parts of aMUSEd from a folder in the layout that diffusers publishes, or from the hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genrl_core import RecipeError
from genrl_models import ModelFiles

EXAMPLE = "amused/amused-256"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES: tuple[tuple[str, ...], ...] = (
    ("model_index.json",),
    ("transformer/config.json",),
    (f"transformer/{_WEIGHTS}", f"transformer/{_WEIGHTS}.index.json"),
    ("vqvae/config.json",),
    (f"vqvae/{_WEIGHTS}", f"vqvae/{_WEIGHTS}.index.json"),
    ("text_encoder/config.json",),
    ("text_encoder/model.safetensors", "text_encoder/model.safetensors.index.json"),
    ("tokenizer/vocab.json", "tokenizer/tokenizer.json"),
    ("tokenizer/tokenizer_config.json",),
    ("scheduler/scheduler_config.json",),
)
"""What must be there; of several alternatives one."""

PATTERNS = (
    "model_index.json", "transformer/*.json", "transformer/*.safetensors", "vqvae/*.json",
    "vqvae/*.safetensors", "text_encoder/*.json", "text_encoder/*.safetensors", "tokenizer/*",
    "scheduler/*.json",
)  # fmt: skip
"""What is downloaded, half-precision copies left out."""


@dataclass(frozen=True)
class Parts:
    """A whole model, in evaluation mode.

    Attributes:
        transformer: ``UVit2DModel``, the network that is trained.
        vqvae: ``VQModel``, codes to pixels, frozen, float32.
        text_encoder: ``CLIPTextModelWithProjection``, frozen, float32.
        tokenizer: ``CLIPTokenizer``, texts to the text encoder's ids.
        mask_id: the transformer's id of a masked position.
    """

    transformer: Any
    vqvae: Any
    text_encoder: Any
    tokenizer: Any
    mask_id: int


def load_parts(source: str, revision: str | None, dtype: torch.dtype) -> Parts:
    """The model of a folder or hub id.

    Neither code from a repository is run nor a pickle read.

    Args:
        source: a folder, or a hub id such as ``amused/amused-256``.
        revision: branch, tag or commit on the hub.
        dtype: of the transformer.

    Raises:
        RecipeError: which file was sought where, what is wrong with it, and what to do.
    """
    from diffusers import UVit2DModel, VQModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    folder = located(source, revision)
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        transformer = _network(UVit2DModel, folder / "transformer", torch_dtype=dtype)
        vqvae = _network(VQModel, folder / "vqvae")
        text_encoder = _network(CLIPTextModelWithProjection, folder / "text_encoder")
    with _told(folder / "tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    with _told(folder / "scheduler"):
        settings = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        mask_id = int(settings["mask_token_id"])
    for frozen in (vqvae, text_encoder):
        frozen.requires_grad_(requires_grad=False)
    parts = Parts(transformer, vqvae, text_encoder, tokenizer, mask_id)
    if conflicts := _conflicts(parts):
        raise RecipeError(
            f"policy.weights: the parts in {folder} do not belong together: "
            f"{'; '.join(conflicts)}. Take all of them from one model, as {EXAMPLE} has them"
        )
    return parts


def located(source: str, revision: str | None) -> Path:
    """The folder that holds every file of ``FILES``; a hub id is downloaded or found in the cache.

    Raises:
        RecipeError: the folder or the repository is not there, or lacks a file.
    """
    folder = ModelFiles(source, "policy.weights", revision).folder(PATTERNS, without=("*.fp16.*",))
    here = Path(source).expanduser().is_dir()
    where = str(folder) if here else f"{source} on the hub, kept in {folder}"
    lacking = [
        " or ".join(names)
        for names in FILES
        if not any((folder / name).is_file() for name in names)
    ]
    if lacking:
        raise RecipeError(
            f"policy.weights: {where} lacks {', '.join(lacking)}. Give a folder in the layout of "
            f"diffusers, such as `hf download {EXAMPLE} --local-dir FOLDER` makes, or the hub id"
        )
    with _told(folder):
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    if kind != "AmusedPipeline":
        raise RecipeError(
            f"policy.weights: {where} holds a model of kind {kind}, by model_index.json, and "
            f"policy amused loads an AmusedPipeline, such as {EXAMPLE}"
        )
    return folder


def _network(kind: Any, folder: Path, **fields: Any) -> Any:
    """A network with all of its weights from the file, all dropout taken out."""
    with _told(folder):
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **fields,
        )  # fmt: skip
    reshaped = {key[0] for key in report["mismatched_keys"]}
    wrong = sorted(reshaped | set(report["missing_keys"]))
    if wrong:
        raise RecipeError(
            f"policy.weights: the weights in {folder} are not those that its config.json "
            f"describes; {len(wrong)} tensors are missing or of another shape, for example "
            f"{', '.join(wrong[:3])}. Download the folder again"
        )
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.eval()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Name the folder and what to do when a library cannot read it."""
    try:
        yield
    except Exception as error:  # each library has its own, tokenizers the bare class
        raise RecipeError(
            f"policy.weights: cannot read the files in {folder}: {_first_line(error)}. A download "
            f"may have broken off: get the folder again, `hf download {EXAMPLE} --local-dir FOLDER`"
        ) from error


def _conflicts(parts: Parts) -> list[str]:
    """Sizes that one part expects and another does not have."""
    network, vqvae = parts.transformer.config, parts.vqvae.config
    text = parts.text_encoder.config
    pairs = {
        "codes": (network.codebook_size, vqvae.num_vq_embeddings),
        "text embedding widths": (network.encoder_hidden_size, text.hidden_size),
        "pooled text widths": (network.cond_embed_dim, text.projection_dim),
    }
    found = [
        f"{mine} {name} in the transformer, {theirs} elsewhere"
        for name, (mine, theirs) in pairs.items()
        if mine != theirs
    ]
    if not network.codebook_size <= parts.mask_id < network.vocab_size:
        found.append(f"mask_token_id {parts.mask_id} is a code, or beyond the vocabulary")
    if not vqvae.lookup_from_codebook:
        found.append("vqvae says lookup_from_codebook: false, and codes are what it gets")
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
