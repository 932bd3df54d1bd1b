"""Layers of aMUSEd's transformer that are computed again in the backward pass."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from torch.utils.checkpoint import checkpoint


class RecomputedBlock(BasicTransformerBlock):
    """A layer that keeps its inputs alone for the backward pass, and computes the rest again.

    diffusers' own switch does not work in this model: its layers are called with keywords, which
    what it puts in their place does not take (diffusers 0.42.1, ``UVit2DModel.forward``).
    """

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the layer returns; without gradient nothing is kept and nothing computed twice."""
        run = super().forward
        if torch.is_grad_enabled():
            return checkpoint(run, *arguments, use_reentrant=False, **named)
        return run(*arguments, **named)


def recompute_layers(layers: nn.ModuleList) -> None:
    """Turn the layers into recomputed ones where they stand.

    They stay the same modules under the same names, with their adapters and hooks, and a copy of
    the network has layers of its own; a changed ``forward`` would call the original's.
    """
    for layer in layers:
        assert type(layer) is BasicTransformerBlock
        layer.__class__ = RecomputedBlock
