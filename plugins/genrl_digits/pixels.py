"""The diffusion digit policies: an MLP that tells digit and noise apart in 64 pixels.

    x [R, 1, 8, 8]    time [R] in [0, 1]    words [R, L] int64    prediction [R, 1, 8, 8]
    value [R]

Pixels are grey levels divided by 8, minus 1: -1 is paper, 1 is ink.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from genrl_core import Media, Prompt, Tensors
from genrl_diffusion import DiffusionPolicy, FlowPolicy, VariancePreservingPolicy
from genrl_digits import (
    LEVELS,
    DigitsDiffusionConfig,
    DigitsDiffusionVpConfig,
    DigitsPixelsConfig,
    data,
)
from genrl_digits.words import VOCABULARY, word_ids

FREQUENCIES = 16
"""Of the features of time: this many sines and as many cosines."""
SHAPE = (1, data.SIDE, data.SIDE)
_SEED = 2209
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class DigitsMlp(nn.Module):
    """Three residual layers over pixels, conditioned on the words and the time in every layer."""

    def __init__(self, width: int, layers: int, *, value_head: bool = False):
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
        # The last in line, so that the others are drawn as they are without it.
        self.value_head = nn.Linear(width, 1) if value_head else None
        self._initialise()

    def forward(self, x: Tensor, time: Tensor, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """The velocity, or the noise, in noisy pixels, and their value; in the network's dtype."""
        frequencies = torch.exp(torch.linspace(0, math.log(100.0), FREQUENCIES, device=x.device))
        angles = time.unsqueeze(1) * frequencies.to(x.dtype)
        features = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        condition = gelu(self.condition(gelu(features + self.words(words).sum(1))))
        hidden = self.enter(x.flatten(1))
        for norm, shift, up in zip(self.norms, self.shifts, self.up, strict=True):
            hidden = hidden + gelu(up(norm(hidden) + shift(condition)))
        prediction: Tensor = self.leave(hidden) + self.skip(condition) * x.flatten(1)
        value = None if self.value_head is None else self.value_head(hidden).squeeze(1)
        return prediction.view(x.shape), value

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
        for output in (self.leave, self.skip, self.value_head):
            if output is not None:
                output.weight.zero_()


def network_of(config: DigitsPixelsConfig) -> DigitsMlp:
    """The network with its initial weights."""
    # The constructors of torch's layers draw from the global generator; ours overwrite that.
    with torch.random.fork_rng(devices=[]):
        network = DigitsMlp(config.width, config.layers, value_head=config.value_head)
    return network.eval()


def linear_modules(network: DigitsMlp) -> tuple[str, ...]:
    """What LoRA adapts: all linear modules but the value head, by their full names."""
    found = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in found if name != "value_head")


class DigitsPixels(DiffusionPolicy):
    """Words as the condition and pixels as the latents, whatever the network predicts.

    ``cond`` is ``words`` ``[B, 4]`` int64; ``final`` is ``latents`` ``[B, 1, 8, 8]``.

    Attributes:
        full_noise: the time at which there is nothing but noise; that of data is 0.
    """

    full_noise: float = 1.0

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        return {"words": torch.tensor([word_ids(prompt) for prompt in prompts], device=device)}

    def unconditional(self, cond: Tensors) -> Tensors:
        """The empty prompt, which is all padding."""
        return {"words": torch.zeros_like(cond["words"])}

    def predict(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        return self._ask(x, time, cond)[0]

    def predict_and_value(self, x: Tensor, time: Tensor, cond: Tensors) -> tuple[Tensor, Tensor]:
        return self._ask(x, time, cond)

    def _ask(self, x: Tensor, time: Tensor, cond: Tensors) -> tuple[Tensor, Tensor]:
        dtype = next(self.network.parameters()).dtype
        share = (time / self.full_noise).to(dtype)
        prediction, value = self.network(x.to(dtype), share, cond["words"])
        return prediction, value

    def decode(self, final: Tensors) -> Media:
        grey = (final["latents"][:, 0].double().cpu() + 1) * (data.INK / 2)
        return Media("image", data.to_pixels(grey.numpy()))

    def decode_pixels(self, final: Tensors) -> Tensor:
        """As ``decode``, from 0 (paper) to 1, without rounding; clipped values have no gradient."""
        pixels = ((final["latents"] + 1) / 2).clamp(0, 1)
        return pixels.expand(-1, 3, -1, -1)

    def tokenize(self, images: data.Array) -> Tensors:
        """Real images ``[B, 8, 8]``, grey 0 to 16, as finished samples."""
        levels = torch.from_numpy(images / (data.INK / 2) - 1).to(self.dtype)
        return {"latents": levels.unsqueeze(1)}


class DigitsDiffusionPolicy(DigitsPixels, FlowPolicy):
    """Flow matching: the network predicts the velocity."""

    def __init__(self, config: DigitsDiffusionConfig):
        network = network_of(config)
        super().__init__(config, network, SHAPE)
        self.lora_targets = linear_modules(network)

    def velocity(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        return self._ask(x, time, cond)[0]


class DigitsDiffusionVpPolicy(DigitsPixels, VariancePreservingPolicy):
    """DDPM (arXiv 2006.11239): the network predicts the noise, on that paper's linear schedule.

    ``beta`` rises from 1e-4 to 0.02 over 1,000 levels; ``alpha_bar`` ends at 4e-5. Times have
    ``trailing`` spacing: with the few steps of a tiny model, the paper's ``leading`` spacing has a
    step from level 100 to level 0 whose density drowns all others.
    """

    full_noise = LEVELS

    def __init__(self, config: DigitsDiffusionVpConfig):
        betas = torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64)
        network = network_of(config)
        # At first all of the input is taken for noise, which is right where there is most of it;
        # an estimate of 0 would divide it by an alpha of 0.006.
        torch.nn.init.ones_(network.skip.bias)
        super().__init__(
            config, network, SHAPE, (1 - betas).cumprod(0), "epsilon", timestep_spacing="trailing"
        )
        self.lora_targets = linear_modules(network)
