"""Rewards to advantages: ordinary code on global numbers, equal on every rank."""

from collections.abc import Iterable

import torch
from torch import Tensor

from genrl_core.config import AdvantageConfig


def group_statistics(reward: Tensor, valid: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased standard deviation and count of every group's valid rewards.

    Args:
        reward: ``[B]`` float64; entries that are not valid are ignored, whatever they hold.
        valid: ``[B]`` bool.
        group: ``[B]`` int64 in ``0 .. P-1``.

    Returns:
        Three ``[P]`` tensors; a group of fewer than two has deviation 0, an empty one mean 0.
    """
    slots = int(group.max()) + 1 if group.numel() else 0
    kept = torch.where(valid, reward, torch.zeros_like(reward))
    count = kept.new_zeros(slots).index_add(0, group, valid.to(kept.dtype))
    mean = kept.new_zeros(slots).index_add(0, group, kept) / count.clamp(min=1)
    error = torch.where(valid, reward - mean[group], torch.zeros_like(reward)).square()
    variance = kept.new_zeros(slots).index_add(0, group, error) / (count - 1).clamp(min=1)
    return mean, variance.sqrt(), count


def advantages(config: AdvantageConfig, reward: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """The advantage of every sample: ``(reward - baseline) / (scale + epsilon)``.

    ``group_mean`` with ``group_std`` is GRPO's (arXiv 2402.03300); ``leave_one_out`` without a
    scale is RLOO's (arXiv 2402.14740); ``group_mean`` without one is Dr.GRPO's (arXiv 2503.20783).
    ``batch_std`` is the deviation of all valid rewards of the batch. A group whose rewards are all
    equal has advantages of exactly 0 under a group baseline, and so has a sample without a reward.

    Args:
        config: the section ``advantage``.
        reward: ``[B]`` float64.
        valid: ``[B]`` bool.
        group: ``[B]`` int64.

    Returns:
        ``[B]`` float64.
    """
    mean, spread, count = group_statistics(reward, valid, group)
    everyone = torch.zeros_like(group)
    batch_mean, batch_spread, _ = group_statistics(reward, valid, everyone)
    siblings = (count[group] - 1).clamp(min=1)
    baseline = {
        "group_mean": mean[group],
        "leave_one_out": torch.where(
            count[group] > 1, (mean[group] * count[group] - reward) / siblings, reward
        ),
        "batch_mean": batch_mean[everyone],
        "none": torch.zeros_like(reward),
    }[config.baseline]
    difference = reward - baseline
    if config.baseline in ("group_mean", "leave_one_out"):
        # Rounding must not turn equal rewards into a direction when the divisor is tiny.
        difference = torch.where(spread[group] > 1e-12, difference, torch.zeros_like(reward))
    if config.scale != "none":
        scale = spread[group] if config.scale == "group_std" else batch_spread[everyone]
        divisor = scale + config.epsilon
        difference = torch.where(divisor > 0, difference / divisor, torch.zeros_like(reward))
    if config.clip is not None:
        difference = difference.clamp(-config.clip, config.clip)
    return torch.where(valid, difference, torch.zeros_like(reward))


def normalised_then_summed(
    config: AdvantageConfig, rewards: Iterable[tuple[float, Tensor]], valid: Tensor, group: Tensor
) -> Tensor:
    """Each reward normalised within its group, weighted, summed, then normalised over the batch.

    GDPO, as TRL's ``normalize_then_sum``: a reward of a large scale does not drown the others. A
    sample without one of the rewards takes no part in that reward's statistics.

    Args:
        config: ``epsilon`` and ``clip`` apply; its baseline and scale do not.
        rewards: (weight, ``[B]`` float64 with NaN where the reward does not apply).
        valid, group: as in ``advantages``.

    Returns:
        ``[B]`` float64.
    """
    own = config.model_copy(update={"baseline": "group_mean", "scale": "group_std", "clip": None})
    total = torch.zeros(len(group), dtype=torch.float64)
    for weight, reward in rewards:
        given = valid & ~reward.isnan()
        total = total + weight * advantages(own, reward.nan_to_num(), given, group)
    whole = config.model_copy(update={"baseline": "batch_mean", "scale": "batch_std"})
    return advantages(whole, total, valid, group)
