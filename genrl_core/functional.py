"""Ratios, surrogates, KL estimators and reductions: pure functions on ``[T, B]`` matrices of terms.

Every function works on plain tensors, keeps their dtype, and is differentiable. ``T`` counts the
terms of a sample, ``B`` the samples; ``mask`` says which entries count. Objectives are built from
these functions and from nothing else, so a plugin can build its own the same way.
"""

from typing import Literal

import torch
from torch import Tensor

Level = Literal["term", "sequence"]
Events = Literal["sum", "mean"]
Reduction = Literal["token_mean", "sample_mean", "constant", "sum", "group_mean"]
Estimator = Literal["k1", "k2", "k3", "unbiased"]


def log_ratio(
    log_probs: Tensor,
    old: Tensor,
    events: Tensor,
    mask: Tensor,
    level: Level = "term",
    over: Events = "sum",
) -> Tensor:
    """The log of new density over old density, per term or per sequence.

    Args:
        log_probs: ``[T, B]`` summed over a term's events, differentiable.
        old: ``[T, B]`` the same under the weights that drew the sample; constant.
        events: ``[T, B]`` how many events (tokens, latent elements) a term sums over.
        mask: ``[T, B]`` bool; entries outside it contribute nothing.
        level: ``term`` keeps one ratio per term (PPO, GRPO); ``sequence`` couples all terms of a
            sample into one (GSPO, arXiv 2507.18071, with ``over="mean"``).
        over: ``sum`` is the ratio of densities; ``mean`` divides the log-ratio by the events.

    Returns:
        ``[T, B]``; for ``sequence`` the same number stands in every term of a sample.
    """
    difference = torch.where(mask, log_probs - old, torch.zeros_like(log_probs))
    count = torch.where(mask, events, torch.zeros_like(events)).to(difference.dtype)
    if level == "sequence":
        difference = difference.sum(0, keepdim=True).expand_as(difference)
        count = count.sum(0, keepdim=True).expand_as(difference)
    return difference / count.clamp(min=1) if over == "mean" else difference


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float | None = None
) -> Tensor:
    """The clipped policy-gradient loss, entry by entry (PPO, arXiv 1707.06347, eq. 7).

    ``-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)`` with ``r = exp(log_ratio)``. The minimum
    is taken before any mean. ``epsilon_high`` falls to ``epsilon`` (DAPO, arXiv 2503.14476, sets it
    higher).
    """
    ratio = log_ratio.exp()
    high = epsilon if epsilon_high is None else epsilon_high
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def is_clipped(
    log_ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float | None = None
) -> Tensor:
    """Where the clip of ``clipped_surrogate`` removes the gradient: bool, ``[T, B]``."""
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = log_ratio.exp()
    low_side = (ratio < 1 - epsilon) & (advantage < 0)
    high_side = (ratio > 1 + high) & (advantage > 0)
    return low_side | high_side


def kl_estimate(
    log_probs: Tensor, reference: Tensor, old: Tensor | None = None, estimator: Estimator = "k3"
) -> Tensor:
    """A one-sample estimate of KL(policy || reference) for each term.

    With ``x = log_probs - reference``: ``k1 = x``, ``k2 = x^2 / 2``, ``k3 = exp(-x) - 1 + x``
    (Schulman, "Approximating KL divergence", 2020). ``unbiased`` is ``r k3`` with
    ``r = exp(log_probs - old)`` inside the gradient: value *and* gradient are those of the reverse
    KL, on policy and off it. The gradients of k1 and k3 alone are not: that of k1 has mean zero and
    that of k3 belongs to the forward KL.

    Raises:
        ValueError: ``unbiased`` without ``old``.
    """
    x = log_probs - reference
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x.square() / 2
    k3 = torch.expm1(-x) + x
    if estimator == "k3":
        return k3
    if old is None:
        raise ValueError("the unbiased estimator needs the log-densities of the drawing weights")
    return (log_probs - old).exp() * k3


def reduce(
    x: Tensor,
    how: Reduction,
    *,
    mask: Tensor,
    weight: Tensor,
    population: Tensor,
    valid: Tensor,
    group: Tensor,
) -> Tensor:
    """A matrix of terms to one number, with denominators that belong to the whole batch.

    Args:
        x: ``[T, B]``, or ``[B]`` for a number per sample.
        how: ``token_mean`` sum over all terms / number of terms (DAPO); ``sample_mean`` mean over
            samples of the mean over their terms (GRPO); ``constant`` sum / (samples x T), so that a
            short sample weighs less (Dr.GRPO); ``sum`` mean over samples of the sum over terms;
            ``group_mean`` mean over groups of the mean over their terms. For a number per sample
            the first four are the mean over samples.
        mask: ``[T, B]`` bool, the entries summed. A chunk may narrow it: denominators come from
            ``population``, so the parts of a chunked batch add up to the whole.
        weight: ``[T, B]`` importance of each term.
        population: ``[T, B]`` bool, the entries that the denominators count.
        valid: ``[B]`` bool, samples that are not filtered out.
        group: ``[B]`` int64, the group of each sample.

    Raises:
        ValueError: an unknown ``how`` or a shape that is neither ``[T, B]`` nor ``[B]``.
    """
    if x.dim() == 1:
        present = mask.any(0) & valid
        total = torch.where(present, x, torch.zeros_like(x))
        count = (population.any(0) & valid).to(x.dtype)
    elif x.shape == mask.shape:
        kept = mask & valid
        total = (torch.where(kept, x, torch.zeros_like(x)) * weight.to(x.dtype)).sum(0)
        count = (population & valid).sum(0).to(x.dtype)
    else:
        raise ValueError(f"reduce takes [T, B] or [B], not {tuple(x.shape)}")
    samples = valid.sum().clamp(min=1).to(x.dtype)
    if how == "token_mean":
        return total.sum() / count.sum().clamp(min=1)
    if how == "sample_mean":
        return (total / count.clamp(min=1)).sum() / samples
    if how == "constant":
        return total.sum() / (samples * (mask.shape[0] if x.dim() == 2 else 1))
    if how == "sum":
        return total.sum() / samples
    if how == "group_mean":
        slots = int(group.max()) + 1 if group.numel() else 0
        sums = total.new_zeros(slots).index_add(0, group, total)
        counts = count.new_zeros(slots).index_add(0, group, count)
        return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
    raise ValueError(f"unknown reduction {how!r}")
