"""MAGVIT-v2, the tokenizer of Show-o and MMaDA: images to codes of 13 bits and back.

    pixels [B, 3, H, W] float, [-1, 1] in, [0, 1] out    codes [B, n] int64, n = (H / f)(W / f)

    tokenizer = load_magvit("showlab/magvitv2")
    pixels = tokenizer.decode(codes, chunk=2)                      # [B, 3, 512, 512] for n = 1024

Language Model Beats Diffusion, arXiv 2310.05737: its look-up-free quantiser with the plain image
encoder and decoder of Show-o (arXiv 2408.12528). There is no adversarial, entropy or commitment
loss: the tokenizer is frozen here. Float16 overflows in decoders of this kind; float32 and bfloat16
do not.
"""

import json
import math
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from genrl_core import GenRLError, RecipeError, Tensors
from genrl_models import ModelFiles, fit_tensors
from genrl_showo.magvit_layers import Decoder, Encoder, fill_randomly
from genrl_showo.magvit_layout import SMALL, MagvitLayout

__all__ = ["SMALL", "MagvitLayout", "MagvitV2", "load_magvit", "random_magvit", "save_magvit"]

HUB_ID = "showlab/magvitv2"
"""Where the published weights are: 382 MB, MIT licence."""

_BUFFERS = ("quantize.embedding", "quantize.power_vals")
"""What follows from the layout alone and may be absent from a file."""


class LookupFreeQuantizer(nn.Module):
    """A latent's signs are its code: ``code = sum_c [z_c > 0] 2^(bits - 1 - c)``.

    Channel 0 is the most significant bit, and a latent of exactly 0 counts as negative. The buffers
    stand for the published keys: ``embedding`` ``[2^bits, bits]`` holds -1 or 1, a row per code,
    and ``power_vals`` ``[bits]`` the powers of two.
    """

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int):
        super().__init__()
        for name, value in derived_buffers(bits).items():
            self.register_buffer(name.removeprefix("quantize."), value)

    def codes(self, latents: Tensor) -> Tensor:
        """``[B, bits, h, w]`` to codes ``[B, h w]`` int64, row by row."""
        bits = (latents > 0).movedim(1, -1).flatten(1, 2).long()
        return (bits * self.power_vals).sum(-1)

    def latents(self, codes: Tensor, height: int, width: int) -> Tensor:
        """``[B, h w]`` to the quantised latents -1 and 1, ``[B, bits, h, w]``."""
        signs = self.embedding[codes.view(-1, height, width)]
        return signs.movedim(-1, 1)


class MagvitV2(nn.Module):
    """Encoder, quantiser and decoder under the published keys; frozen, in evaluation mode."""

    def __init__(self, layout: MagvitLayout | None = None):
        super().__init__()
        self.layout = layout or MagvitLayout()
        self.encoder = Encoder(self.layout)
        self.decoder = Decoder(self.layout)
        self.quantize = LookupFreeQuantizer(self.layout.bits)
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    @torch.no_grad()
    def encode(self, pixels: Tensor, chunk: int | None = None) -> Tensor:
        """Codes ``[B, (H / f)(W / f)]`` int64 of images ``[B, 3, H, W]`` in [-1, 1].

        ``chunk`` images pass through the encoder at a time; None for all of them.

        Raises:
            GenRLError: the pixels have another shape, dtype or range, or ``chunk`` is below 1.
        """
        self._check_pixels(pixels)
        parts = _split(pixels, chunk)
        return torch.cat([self.quantize.codes(self.encoder(self._given(part))) for part in parts])

    @torch.no_grad()
    def decode(
        self, codes: Tensor, chunk: int | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Images ``[B, 3, f h, f w]`` in [0, 1] of codes ``[B, h w]`` int64, row by row.

        They are float32, or float64 where the weights are. ``chunk`` images pass through the
        decoder at a time, each of 512 x 512 pixels taking 0.6 GiB in float32; None for all of them.
        It changes rounding alone. ``size`` is ``(h, w)``; None for a square.

        Raises:
            GenRLError: a code is outside 0 to 2^bits - 1, or a shape or ``chunk`` does not fit.
        """
        height, width = self._check_codes(codes, size)
        shown = []
        for part in _split(codes.to(self.quantize.embedding.device), chunk):
            found = self.decoder(self.quantize.latents(part, height, width))
            precise = found if found.dtype == torch.float64 else found.float()
            shown.append(((precise + 1) / 2).clamp(0, 1))
        return torch.cat(shown)

    def _given(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.quantize.embedding)

    def _check_pixels(self, pixels: Tensor) -> None:
        factor = self.layout.factor
        fits = pixels.dim() == 4 and pixels.shape[1] == 3
        if not fits or any(side % factor or not side for side in pixels.shape[2:]):
            raise GenRLError(
                f"MAGVIT-v2 encodes images [B, 3, H, W] whose sides are multiples of {factor} "
                f"pixels, not {list(pixels.shape)}: resize and crop them first"
            )
        if not pixels.is_floating_point() or not bool((pixels.abs() <= 1).all()):
            raise GenRLError(
                f"MAGVIT-v2 encodes pixels from -1 to 1; these are {pixels.dtype} with values "
                "outside: map 0..255 there with pixels / 127.5 - 1"
            )

    def _check_codes(self, codes: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
        if codes.dim() != 2 or codes.dtype != torch.int64:
            raise GenRLError(
                f"MAGVIT-v2 decodes codes [B, n] int64, not {list(codes.shape)} {codes.dtype}"
            )
        count = codes.shape[1]
        height, width = size or (math.isqrt(count), math.isqrt(count))
        if height * width != count or not count:
            expected = f"{height} x {width}" if size else "a square"
            raise GenRLError(f"{count} codes do not make {expected}: give size=(h, w) to match")
        outside = codes[(codes < 0) | (codes >= self.layout.codes)]
        if outside.numel():
            raise GenRLError(
                f"code {int(outside[0])} is outside 0 to {self.layout.codes - 1}: a mask is left "
                "on the canvas, or the ids still carry the language model's offset"
            )
        return height, width


def _split(rows: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    if chunk is not None and chunk < 1:
        raise GenRLError(f"chunk is {chunk}; at least one image passes at a time")
    return torch.split(rows, chunk or max(len(rows), 1))


def derived_buffers(bits: int) -> Tensors:
    """The quantiser's entries of the state dict: signs ``[2^bits, bits]`` and powers ``[bits]``."""
    powers = 2 ** torch.arange(bits - 1, -1, -1)
    ones = (torch.arange(2**bits).unsqueeze(1) & powers) != 0
    return dict(zip(_BUFFERS, (ones.float() * 2 - 1, powers), strict=True))


def random_magvit(layout: MagvitLayout = SMALL, seed: int = 0) -> MagvitV2:
    """A tokenizer of random weights, the same for the same seed, for tests and dry runs."""
    with torch.device("meta"):  # or the constructors would draw from the global generator
        network = MagvitV2(layout)
    network.to_empty(device="cpu")
    network.load_state_dict(derived_buffers(layout.bits), strict=False)
    fill_randomly(network, seed)
    return network


def load_magvit(
    source: str = HUB_ID, *, field: str = "policy.tokenizer", revision: str | None = None,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> MagvitV2:  # fmt: skip
    """The tokenizer of a weight file, a folder or a hub id, frozen.

    ``config.json`` beside the weights may hold a ``layout``; without one it is the published one.
    The quantiser's two buffers may be absent; where they are present they must be the derived ones,
    or the codes would mean something else. ``field`` is what messages call the source.

    Raises:
        RecipeError: nothing is there, it cannot be read, a key is missing, unexpected or of another
            shape, the codebook is another, or ``dtype`` is float16.
    """
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise RecipeError(
            f"{field}: MAGVIT-v2 runs in float32 or bfloat16, not {dtype}; decoders of its kind "
            "overflow in float16"
        )
    files = ModelFiles(source, field, revision)
    layout = _layout(files)
    path, state = files.tensors()
    with torch.device("meta"):
        network = MagvitV2(layout)
    where = f"{field}: MAGVIT-v2 from {path}"
    derived = derived_buffers(layout.bits)
    if not any(key.startswith("decoder.") for key in state):
        there = ", ".join(sorted(state)[:3]) or "nothing"
        raise RecipeError(
            f"{where} is no image tokenizer: it has no decoder and holds {len(state)} keys, such "
            f"as {there}. Give {HUB_ID}, or a folder with its files"
        )
    _check_codebook(state, derived, where)
    fit_tensors(network, state | derived, where)
    return network.to(device=device, dtype=dtype)


def _layout(files: ModelFiles) -> MagvitLayout:
    found = files.settings().get("layout", {})
    try:
        return MagvitLayout.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["layout", *map(str, first["loc"])])
        raise RecipeError(
            f"{files.field}: config.json of {files.source}, {place}: {first['msg']}"
        ) from error


def _check_codebook(state: Tensors, derived: Tensors, where: str) -> None:
    for name, value in derived.items():
        if name in state and not torch.equal(state[name].to(value.dtype), value):
            raise RecipeError(
                f"{where} has another {name} than the look-up-free codebook of "
                f"{value.shape[-1]} bits, channel 0 the highest: its codes are not Show-o's"
            )


def save_magvit(network: MagvitV2, folder: Path) -> Path:
    """Write a tokenizer as the hub has it; ``load_magvit`` reads it back. Returns the weight file.

    ``config.json`` holds the published class name, and the layout where it is not the published
    one. A file that is there already is replaced.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layout = network.layout.model_dump(mode="json", exclude_defaults=True)
    settings = {"_class_name": "MAGVITv2"} | ({"layout": layout} if layout else {})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    path = folder / "pytorch_model.safetensors"
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    return path
