"""Several rewards become one: what ``advantage.combine`` says, for all that read a reward."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.statistics import group_statistics


@dataclass(frozen=True)
class Share:
    """What one reward adds to the combined one: ``weight (reward - offset) / divisor``.

    ``offset`` and ``divisor`` are numbers, or ``[B]`` float64 with one for each sample.
    """

    weight: float
    offset: Tensor | float = 0.0
    divisor: Tensor | float = 1.0

    def at(self, b: Tensor) -> "Share":
        """That of the samples ``b`` (``[R]`` int64)."""
        if not isinstance(self.offset, Tensor) or not isinstance(self.divisor, Tensor):
            return self
        return Share(self.weight, self.offset[b], self.divisor[b])

    def to(self, device: torch.device) -> "Share":
        """The same, to be used with numbers on ``device``."""
        if not isinstance(self.offset, Tensor) or not isinstance(self.divisor, Tensor):
            return self
        return Share(self.weight, self.offset.to(device), self.divisor.to(device))


def shares_of(
    config: AdvantageConfig, rewards: Mapping[str, tuple[float, Tensor]], valid: Tensor,
    group: Tensor,
) -> dict[str, Share]:  # fmt: skip
    """How ``advantage.combine`` makes one reward of several, label by label.

    With ``sum`` a reward counts as it is; with ``normalise_then_sum`` as its z-score within the
    group, 0 in a group where it is the same for all.

    Args:
        config: ``combine`` and ``epsilon`` apply.
        rewards: label -> (weight, ``[B]`` float64 with NaN where the reward does not apply).
        valid, group: as in ``advantages``.
    """
    if config.combine == "sum":
        return {label: Share(weight) for label, (weight, _) in rewards.items()}
    found = {}
    for label, (weight, reward) in rewards.items():
        mean, spread, _ = group_statistics(reward, valid & ~reward.isnan(), group)
        divisor = torch.where(spread > 0, spread + config.epsilon, torch.inf)
        found[label] = Share(weight, mean[group], divisor[group])
    return found


def combine(rewards: Mapping[str, Tensor], shares: Mapping[str, Share]) -> Tensor:
    """The one reward of every sample: the sum of the shares of those that apply to it.

    What advantages, filter, objectives and the differentiable reward read. Reward after reward, so
    that equal rewards have equal sums.

    Args:
        rewards: label -> ``[B]`` float64, NaN where the reward does not apply; differentiable.
        shares: label -> how it counts.

    Returns:
        ``[B]`` float64.
    """
    total: Tensor | None = None
    for label, reward in rewards.items():
        share = shares[label]
        counted = share.weight * ((reward - share.offset) / share.divisor)
        counted = torch.where(reward.isnan(), torch.zeros_like(counted), counted)
        total = counted if total is None else total + counted
    assert total is not None, "there is no reward to combine"
    return total
