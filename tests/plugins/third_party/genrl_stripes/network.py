"""The policy itself: a network of two matrices fills 4 x 4 pixels with 0 (black) or 1 (white)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrl_core import Media, Prompt, Tensors
from genrl_masked import MaskedPolicy


class Net(nn.Module):
    """Every pixel depends on the whole canvas, where 2 is a masked pixel, and on the prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # never the global one
        self.inner = nn.Parameter(0.3 * torch.randn(2, 48, width, generator=generator))
        self.outer = nn.Parameter(0.3 * torch.randn(width, 32, generator=generator))

    def forward(self, canvas: Tensor, vertical: Tensor) -> Tensor:
        seen = nn.functional.one_hot(canvas, 3).flatten(1).to(self.inner)
        return torch.einsum("rc,rcw->rw", seen, self.inner[vertical]).tanh() @ self.outer


class StripesPolicy(MaskedPolicy):
    """Condition: ``vertical`` [B], 0 or 1. Finished sample: ``tokens`` [B, 16], row by row."""

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        words = [int("vertical" in prompt.text) for prompt in prompts]
        return {"vertical": torch.tensor(words, device=self.network.inner.device)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        return self.network(canvas, cond["vertical"]).view(-1, 16, 2)

    def decode(self, final: Tensors) -> Media:
        grey = (255 * final["tokens"]).to(torch.uint8).view(-1, 1, 4, 4)
        return Media("image", grey.expand(-1, 3, -1, -1))
