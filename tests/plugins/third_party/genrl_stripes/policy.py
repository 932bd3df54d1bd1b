"""The policy: two matrices that fill 4 x 4 pixels with 0 (black) or 1 (white)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genrl_core import Media, Prompt, Tensors
from genrl_masked import MaskedPolicy

if TYPE_CHECKING:
    from . import StripesConfig

SIDE, CODES = 4, 2


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        normal = torch.Generator().manual_seed(0)  # never the global generator
        size = SIDE * SIDE
        inner = torch.randn(2, size * (CODES + 1), width, generator=normal)
        self.inner = nn.Parameter(0.3 * inner)
        self.outer = nn.Parameter(0.3 * torch.randn(width, size * CODES, generator=normal))

    def forward(self, canvas: Tensor, vertical: Tensor) -> Tensor:
        seen = one_hot(canvas, CODES + 1).flatten(1).to(self.inner)
        hidden = torch.einsum("rc,rcw->rw", seen, self.inner[vertical]).tanh()
        return (hidden @ self.outer).unflatten(1, (-1, CODES))


class StripesPolicy(MaskedPolicy):
    def __init__(self, config: "StripesConfig") -> None:
        super().__init__(config, Net(config.width), SIDE * SIDE, CODES)

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        words = [int("vertical" in prompt.text) for prompt in prompts]
        return {"vertical": torch.tensor(words, device=device)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        return self.network(canvas, cond["vertical"])

    def decode(self, final: Tensors) -> Media:
        grey = (final["tokens"] * 255).to(torch.uint8).view(-1, 1, SIDE, SIDE)
        return Media("image", grey.expand(-1, 3, -1, -1))
