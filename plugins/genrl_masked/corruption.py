"""Which positions of a finished sample are masked again: the corruptions of ``policy.elbo``.

Shapes: B samples, D draws, N positions. A sample's D levels are spread evenly, ``u + d / D`` modulo
1 with one uniform u: each is distributed as if it were alone, and their mean varies less.
"""

import math

import numpy as np
import torch
from torch import Tensor

from genrl_core import Streams, Tensors
from genrl_masked import ElboConfig
from genrl_masked.transitions import best

COMPLEMENT_RANGE = (0.2, 0.8)
"""Of the ratio t of coupled-GRPO's random set (arXiv 2506.20639)."""

RISING_FROM = 0.8
"""Below the mask ratios of MaskGRPO for images (arXiv 2510.02880)."""


def remasked(
    elbo: ElboConfig, streams: Streams, draws: int, num_tokens: int, update: int, updates: int
) -> Tensors:
    """The masks of D draws, by ``elbo.masking``; see ``ElboConfig`` for what each does.

    Returns:
        ``masked`` ``[D, B, N]`` bool. Where positions are masked independently, ``ratio``
        ``[D, B]`` float64, the probability of each; elsewhere which ones is uniform given how many,
        and there is at least one. Where draws do not count alike, ``weight`` ``[D, B]`` float64.
    """
    if elbo.masking == "full":
        shape = (draws, len(streams), num_tokens)
        return {"masked": torch.ones(shape, dtype=torch.bool, device=streams.device)}
    if elbo.masking == "complement":
        return _complementary(streams, draws // 3, num_tokens)
    if elbo.masking == "quadrature":
        return _at_nodes(streams, draws, num_tokens)
    structured = elbo.masking == "structured"
    levels = _spread(streams.across_updates if structured else streams, draws)
    if structured:
        levels = structured_ratio(levels, update, updates)
    if elbo.masking == "rising":
        levels = torch.full_like(levels, rising_ratio(update, updates))
    keys = streams.uniform(draws, num_tokens)
    counts = mask_counts(levels, num_tokens, elbo)
    masked = best(keys, torch.ones_like(keys, dtype=torch.bool), counts)
    return {"masked": masked.transpose(0, 1)}


def structured_ratio(first: Tensor, update: int, updates: int) -> Tensor:
    """The mask ratio of an update: from ``first`` in even strides to 1 at the last of them.

    ``t_n = t_1 + (n - 1) / (mu - 1) (1 - t_1)`` for the n-th of mu updates (UniGRPO, MMaDA, arXiv
    2505.15809, whose times are the integers below 1000; here they are not rounded).
    """
    return first + (1 - first) * (update / max(updates - 1, 1))


def rising_ratio(update: int, updates: int) -> float:
    """The mask ratio of an update: ``min(r + (1 - r) (i + 1) / mu, 0.999)`` for the i-th of mu.

    MaskGRPO (arXiv 2510.02880) with its r = 0.8 for images; ``update`` counts i from 0. There each
    position is masked by itself with this probability; here their number is fixed.
    """
    return min(RISING_FROM + (1 - RISING_FROM) * (update + 1) / updates, 0.999)


def mask_counts(levels: Tensor, num_tokens: int, elbo: ElboConfig) -> Tensor:
    """How many positions are masked, 1 .. N, from numbers on [0, 1]: int64, shaped alike."""
    if elbo.masking == "cosine":
        return ((levels * math.pi / 2).cos() * num_tokens).ceil().long().clamp(1, num_tokens)
    return (levels * num_tokens).floor().long().clamp(0, num_tokens - 1) + 1


def log_level_weight(counts: Tensor, num_tokens: int, elbo: ElboConfig) -> Tensor:
    """``log w(n)``: 0 for ``mean``, ``-log(N P(n))`` for ``elbo``; float64, shaped as ``counts``.

    Under uniform masking P(n) is 1/N. Under cosine masking it is the share of u that ends at n,
    ``2/pi (arccos((n - 1) / N) - arccos(n / N))``, and w is at most pi/2.
    """
    if elbo.weighting == "mean" or elbo.masking == "uniform":
        return torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    upper = counts.double() / num_tokens
    share = (upper - 1 / num_tokens).acos() - upper.acos()
    return -(num_tokens * 2 / math.pi * share).log()


def _spread(streams: Streams, draws: int) -> Tensor:
    """``[B, D]`` float64 on [0, 1)."""
    offset = streams.uniform(1).double()
    return (offset + torch.arange(draws, device=offset.device) / draws) % 1.0


def _complementary(streams: Streams, triples: int, num_tokens: int) -> Tensors:
    """Draws in threes: everything, a random set of ratio t, and the rest.

    The weight 3/2 makes the mean over three draws half of their sum: coupled-GRPO's
    ``1/2 [l(full) + w l(set or rest)]`` with w = 1/t or 1 / (1 - t).
    """
    low, high = COMPLEMENT_RANGE
    ratio = (low + (high - low) * _spread(streams, triples)).unsqueeze(2)
    chosen = streams.uniform(triples, num_tokens).double() < ratio
    masked = torch.stack([torch.ones_like(chosen), chosen, ~chosen], 2)
    ratios = torch.stack([torch.ones_like(ratio), ratio, 1 - ratio], 2).squeeze(-1)
    return {
        "masked": masked.flatten(1, 2).transpose(0, 1),
        "ratio": ratios.flatten(1, 2).T,
        "weight": torch.full_like(ratios.flatten(1, 2).T, 1.5),
    }


def _at_nodes(streams: Streams, draws: int, num_tokens: int) -> Tensors:
    """One set at each of D Gauss-Legendre nodes of the ratio t on [0, 1], which do not vary."""
    nodes, weights = np.polynomial.legendre.leggauss(draws)
    ratio = torch.from_numpy((nodes + 1) / 2).to(streams.device).unsqueeze(1)
    weight = torch.from_numpy(draws * weights / 2).to(streams.device).unsqueeze(1)
    keys = streams.uniform(draws, num_tokens).double().transpose(0, 1)
    rows = (draws, len(streams))
    return {
        "masked": keys < ratio.unsqueeze(2),
        "ratio": ratio.expand(rows).clone(),
        "weight": weight.expand(rows).clone(),
    }
