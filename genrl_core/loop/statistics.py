"""How far rewards are apart: the one place that filter, advantage and metrics ask."""

import torch
from torch import Tensor


def moments(rewards: Tensor) -> tuple[float, float]:
    """Mean and unbiased standard deviation of ``[N]`` float64 rewards; 0 where there are too few.

    Both by ``group_statistics``, as one group.
    """
    one, every = torch.zeros(len(rewards)).long(), torch.ones(len(rewards)).bool()
    mean, spread, _ = group_statistics(rewards, every, one)
    return (float(mean), float(spread)) if len(rewards) else (0.0, 0.0)


def group_statistics(reward: Tensor, valid: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased standard deviation and count of every group's valid rewards.

    The one place that says how far rewards are apart, for filter, advantage and metrics. Equal
    rewards have exactly their own number as mean and exactly 0 as deviation, which sums of rounded
    numbers have not; and squares do not overflow where the rewards themselves are finite.

    Args:
        reward: ``[B]`` float64; entries that are not valid are ignored, whatever they hold.
        valid: ``[B]`` bool.
        group: ``[B]`` int64 in ``0 .. P-1``.

    Returns:
        Three ``[P]`` tensors; a group of fewer than two has deviation 0, an empty one mean 0.
    """
    groups = int(group.max()) + 1 if group.numel() else 0
    kept = torch.where(valid, reward, torch.zeros_like(reward))
    count = kept.new_zeros(groups).index_add(0, group, valid.to(kept.dtype))
    low = kept.new_full((groups,), torch.inf).scatter_reduce(
        0, group, torch.where(valid, reward, torch.inf), "amin"
    )
    high = kept.new_full((groups,), -torch.inf).scatter_reduce(
        0, group, torch.where(valid, reward, -torch.inf), "amax"
    )
    # A power of two, so that dividing by it rounds nothing.
    size = _power_of_two(torch.maximum(low.abs(), high.abs()))
    scaled = kept / size[group]
    mean = kept.new_zeros(groups).index_add(0, group, scaled) / count.clamp(min=1)
    error = torch.where(valid, scaled - mean[group], torch.zeros_like(scaled)).square()
    variance = kept.new_zeros(groups).index_add(0, group, error) / (count - 1).clamp(min=1)
    equal = low == high
    spread = torch.where(equal, torch.zeros_like(mean), variance.sqrt() * size)
    return torch.where(equal, low, mean * size), spread, count


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two below each number; 1 for 0, for what is not finite and for the tiniest."""
    usual = size.isfinite() & (size > torch.finfo(size.dtype).tiny)
    known = torch.where(usual, size, torch.ones_like(size))
    mantissa, _ = torch.frexp(known)
    return known / 2 / mantissa
