"""The diffusion digit policy: an MLP that tells digit and noise apart in 64 pixels.

    x [R, 1, 8, 8]    time [R]    words [R, L] int64    velocity [R, 1, 8, 8]

Pixels are grey levels divided by 8, minus 1: -1 is paper, 1 is ink.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from genrl_core import Media, Prompt, RecipeError, Tensors
from genrl_diffusion import FlowPolicy
from genrl_digits import DigitsDiffusionConfig, data
from genrl_digits.words import VOCABULARY, word_ids

FREQUENCIES = 16
"""Of the features of time: this many sines and as many cosines."""
SHAPE = (1, data.SIDE, data.SIDE)
_SEED = 2209
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class DigitsMlp(nn.Module):
    """Three residual layers over pixels, conditioned on the words and the time in every layer."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        pixels = math.prod(SHAPE)
        self.words = nn.Embedding(len(VOCABULARY), width)
        self.time = nn.Linear(2 * FREQUENCIES, width)
        self.condition = nn.Linear(width, width)
        self.enter = nn.Linear(pixels, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.leave = nn.Linear(width, pixels)
        self.skip = nn.Linear(width, 1)
        self._initialise()

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
        """The velocity of noisy pixels, in the network's dtype."""
        frequencies = torch.exp(torch.linspace(0, math.log(100.0), FREQUENCIES, device=x.device))
        angles = time.unsqueeze(1) * frequencies.to(x.dtype)
        features = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        condition = gelu(self.condition(gelu(features + self.words(words).sum(1))))
        hidden = self.enter(x.flatten(1))
        for norm, shift, up in zip(self.norms, self.shifts, self.up, strict=True):
            hidden = hidden + gelu(up(norm(hidden) + shift(condition)))
        velocity: Tensor = self.leave(hidden) + self.skip(condition) * x.flatten(1)
        return velocity.view(x.shape)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal weights from a generator of our own; the output begins at 0."""
        generator = torch.Generator().manual_seed(_SEED)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            std = 0.5 if name.startswith("words") else parameter.shape[1] ** -0.5
            parameter.normal_(0.0, std, generator=generator)
        for output in (self.leave, self.skip):
            output.weight.zero_()


class DigitsDiffusionPolicy(FlowPolicy):
    """``cond`` is ``words`` ``[B, 4]`` int64; ``final`` is ``latents`` ``[B, 1, 8, 8]``.

    Raises:
        RecipeError: ``policy.weights`` is neither ``recipe:NAME`` nor a folder of GenRL.
    """

    def __init__(self, config: DigitsDiffusionConfig):
        if config.weights is not None:
            raise RecipeError(
                f"policy.weights: digits_diffusion has no weights {config.weights!r}: give "
                "`recipe:digits/diffusion_base`, or a run or checkpoint folder of GenRL"
            )
        # The constructors of torch's layers draw from the global generator; ours overwrite that.
        with torch.random.fork_rng(devices=[]):
            network = DigitsMlp(config.width, config.layers)
        super().__init__(config, network.eval(), SHAPE)

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        return {"words": torch.tensor([word_ids(prompt) for prompt in prompts], device=device)}

    def unconditional(self, cond: Tensors) -> Tensors:
        """The empty prompt, which is all padding."""
        return {"words": torch.zeros_like(cond["words"])}

    def velocity(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        velocity: Tensor = self.network(x.to(dtype), time.to(dtype), cond["words"])
        return velocity

    def decode(self, final: Tensors) -> Media:
        grey = (final["latents"][:, 0].double().cpu() + 1) * (data.INK / 2)
        return Media("image", data.to_pixels(grey.numpy()))

    def decode_pixels(self, final: Tensors) -> Tensor:
        """As ``decode``, from 0 (paper) to 1, without rounding; clipped values have no gradient."""
        pixels = ((final["latents"].float() + 1) / 2).clamp(0, 1)
        return pixels.expand(-1, 3, -1, -1)

    def tokenize(self, images: data.Array) -> Tensors:
        """Real images ``[B, 8, 8]``, grey 0 to 16, as finished samples."""
        levels = torch.from_numpy(images / (data.INK / 2) - 1).to(self.dtype)
        return {"latents": levels.unsqueeze(1)}
