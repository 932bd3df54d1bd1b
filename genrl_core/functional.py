"""Ratios, clips, KL estimators and reductions: pure functions on ``[T, B]`` matrices of terms.

Every function works on plain tensors, keeps their dtype, and is differentiable. ``T`` counts the
terms of a sample, ``B`` the samples; ``mask`` says which entries count. These are the functions
that objectives share; what only one of them uses stands in its own file, so that a plugin's
objective is built like GenRL's. ``guided`` is for policies and takes predictions of any shape.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Level = Literal["term", "sequence"]
Events = Literal["sum", "mean"]
Reduction = Literal["token_mean", "sample_mean", "constant", "sum", "group_mean"]
Estimator = Literal["k1", "k2", "k3", "unbiased"]

MOST_NATS = 20.0
"""Where the exponent of a ratio ends: in float32 ``exp`` overflows at 88.7, and 0 inf is NaN."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """The ratio of a log-ratio, bounded at 20 nats on either side, with gradient 0 beyond.

    Whatever exponentiates a log-ratio uses it, so that a term whose factor is 0 (clipped, or of
    advantage 0) has gradient 0 however far its ratio has gone.
    """
    return log_ratio.clamp(-MOST_NATS, MOST_NATS).exp()


def beyond_bound(log_ratio: Tensor) -> Tensor:
    """Where ``bounded_exp`` acts: bool."""
    return log_ratio.abs() > MOST_NATS


def guided(given: Tensor, without: Tensor, scale: float) -> Tensor:
    """``without + scale (given - without)``: predictions under a prompt, and under none.

    Classifier-free guidance (arXiv 2207.12598) of logits, log-probabilities, velocities or noise
    alike; at 1 it is off. Logits and log-probabilities differ by a number per row, which the
    softmax takes away. A token that is impossible (``-inf``) on either side stays impossible,
    where the formula would say NaN, or that it alone is possible.
    """
    impossible = (given == -torch.inf) | (without == -torch.inf)
    return (without + scale * (given - without)).masked_fill(impossible, -torch.inf)


def log_ratio(
    log_probs: Tensor,
    old_log_probs: Tensor,
    events: Tensor,
    mask: Tensor,
    level: Level = "term",
    over: Events = "sum",
) -> Tensor:
    """The log of new density over old density, per term or per sequence.

    Args:
        log_probs: ``[T, B]`` summed over a term's events, differentiable.
        old_log_probs: ``[T, B]`` the same under the weights that drew the sample; constant.
        events: ``[T, B]`` how many events (tokens, latent elements) a term sums over.
        mask: ``[T, B]`` bool; entries outside it contribute nothing.
        level: ``term`` keeps one ratio per term (PPO, GRPO); ``sequence`` couples all terms of a
            sample into one (GSPO, arXiv 2507.18071, with ``over="mean"``).
        over: ``sum`` is the ratio of densities; ``mean`` divides the log-ratio by the events.

    Returns:
        ``[T, B]``; for ``sequence`` the same number stands in every term of a sample.
    """
    difference = torch.where(mask, log_probs - old_log_probs, torch.zeros_like(log_probs))
    count = torch.where(mask, events, torch.zeros_like(events)).to(difference.dtype)
    if level == "sequence":
        difference = difference.sum(0, keepdim=True).expand_as(difference)
        count = count.sum(0, keepdim=True).expand_as(difference)
    return difference / count.clamp(min=1) if over == "mean" else difference


def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """The clipped policy-gradient loss, entry by entry (PPO, arXiv 1707.06347, eq. 7).

    ``-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)`` with ``r = exp(log_ratio)``. The minimum
    is taken before any mean. ``epsilon_high`` falls to ``epsilon`` (DAPO, arXiv 2503.14476, sets it
    higher). ``delta`` bounds the ``r`` of the first branch too, so that a sample with a negative
    advantage cannot become arbitrarily heavy (two-sided clip, INTELLECT-2, arXiv 2505.07291). Above
    ``1 + epsilon_high``, where the paper has it, it touches no positive advantage and is the dual
    clip of arXiv 1912.09729: ``min(-min(...), -delta A)`` of negative ones. Below, it clips
    positive ones instead.
    """
    ratio = bounded_exp(log_ratio)
    high = epsilon if epsilon_high is None else epsilon_high
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def is_clipped(
    log_ratio: Tensor,
    advantage: Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """Where the clip of ``clipped_surrogate`` removes the gradient: bool, ``[T, B]``."""
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = bounded_exp(log_ratio)
    cap = math.inf if delta is None else delta
    low_side = (ratio < 1 - epsilon) & (advantage < 0)
    high_side = (ratio > min(1 + high, cap)) & (advantage > 0)
    return low_side | high_side | is_capped(ratio, advantage, max(1 + high, cap))


def capped_surrogate(ratio: Tensor, advantage: Tensor, delta: float | None) -> Tensor:
    """``-r A``, with ``r`` at most ``delta`` where the advantage is negative: ``[T, B]``."""
    if delta is not None:
        ratio = torch.where(advantage < 0, ratio.clamp(max=delta), ratio)
    return -ratio * advantage


def is_capped(ratio: Tensor, advantage: Tensor, delta: float | None) -> Tensor:
    """Where a negative advantage has a ratio above ``delta``: bool, ``[T, B]``."""
    return (ratio > (math.inf if delta is None else delta)) & (advantage < 0)


def group_mean(x: Tensor, group: Tensor, kept: Tensor) -> Tensor:
    """The mean of ``x`` (``[T, B]``) over the kept samples of each one's group, row by row."""
    slots = int(group.max()) + 1 if group.numel() else 0
    inside = torch.where(kept, x, torch.zeros_like(x))
    sums = x.new_zeros(len(x), slots).index_add(1, group, inside)
    counts = x.new_zeros(len(x), slots).index_add(1, group, kept.expand_as(x).to(x))
    return (sums / counts.clamp(min=1))[:, group]


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` with mean 0 and standard deviation 1 over the entries of ``mask``."""
    kept = x[mask]
    return (x - kept.mean()) / (kept.std(correction=0) + 1e-8) if len(kept) else x


def kl_estimate(
    log_probs: Tensor,
    reference: Tensor,
    old_log_probs: Tensor | None = None,
    estimator: Estimator = "k3",
) -> Tensor:
    """A one-sample estimate of KL(policy || reference) for each term.

    With ``x = log_probs - reference``: ``k1 = x``, ``k2 = x^2 / 2``, ``k3 = exp(-x) - 1 + x``
    (Schulman, "Approximating KL divergence", 2020). ``unbiased`` is ``r k3`` with
    ``r = exp(log_probs - old)`` inside the gradient: value *and* gradient are those of the reverse
    KL, on policy and off it. The gradients of k1 and k3 alone are not: that of k1 has mean zero and
    that of k3 belongs to the forward KL.

    Where an exponent would pass 20 nats, k3 and unbiased go on linearly with the slope that they
    have there: the gradient stays finite, keeps the sign of ``x`` and does not become 0.

    Raises:
        ValueError: ``unbiased`` without ``old_log_probs``.
    """
    x = log_probs - reference
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x.square() / 2
    if estimator == "k3":
        return _k3(x)
    if old_log_probs is None:
        raise ValueError("the unbiased estimator needs the log-densities of the drawing weights")
    return _unbiased(x, log_probs - old_log_probs)


def _k3(x: Tensor) -> Tensor:
    past = (-x - MOST_NATS).relu()
    return torch.expm1((-x).clamp(max=MOST_NATS)) + math.exp(MOST_NATS) * past + x


def _unbiased(x: Tensor, log_ratio: Tensor) -> Tensor:
    """``r k3(x)``, and beyond the bound of either exponent what its gradient ``r x`` makes of it.

    ``r k3(x) = exp(d - x) + r (x - 1)``, whose first term does not depend on the weights. Where
    ``d = log r`` leaves its bound, ``x`` being ``held``, the slope stays ``|r held|`` in ``|x|``.
    """
    ratio = bounded_exp(log_ratio)
    held = x - (log_ratio - log_ratio.clamp(-MOST_NATS, MOST_NATS))
    slope, size = (ratio * held.abs()).detach(), x.abs()
    constant = (log_ratio - x).clamp(max=2 * MOST_NATS).exp()
    value = constant + ratio * (held - 1) + slope * (size - held.abs())
    far = value.detach() + slope * (size - size.detach())
    return torch.where(beyond_bound(log_ratio) | (x < -MOST_NATS), far, ratio * _k3(x))


def reduce(
    x: Tensor,
    how: Reduction,
    *,
    mask: Tensor,
    weight: Tensor,
    denominator_mask: Tensor,
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
            ``denominator_mask``, so the parts of a chunked batch add up to the whole.
        weight: ``[T, B]`` importance of each term.
        denominator_mask: ``[T, B]`` bool, the entries that the denominators count.
        valid: ``[B]`` bool, samples that are not filtered out.
        group: ``[B]`` int64, the group of each sample.

    Raises:
        ValueError: an unknown ``how`` or a shape that is neither ``[T, B]`` nor ``[B]``.
    """
    if x.dim() == 1:
        present = mask.any(0) & valid
        total = torch.where(present, x, torch.zeros_like(x))
        count = (denominator_mask.any(0) & valid).to(x.dtype)
    elif x.shape == mask.shape:
        kept = mask & valid
        total = (torch.where(kept, x, torch.zeros_like(x)) * weight.to(x.dtype)).sum(0)
        count = (denominator_mask & valid).sum(0).to(x.dtype)
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
