"""Rewards to advantages: ordinary code on global numbers, equal on every rank."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl_core.loop.settings import AdvantageConfig


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased standard deviation of the rewards behind each sample: ``[B]`` float64."""

    mean: Tensor
    spread: Tensor


class PromptStatistics:
    """What the last rewards of each prompt were, over the iterations (DDPO, arXiv 2305.13301).

    Prompts are told apart by their id. A prompt's history holds its last ``buffer`` rewards, those
    of this iteration first added; while it holds fewer than ``min_count``, the statistics of the
    whole batch take their place. So the authors do; they divide by the biased deviation, and this
    is the unbiased one, as everywhere here. Rewards of groups that the filter rejected are not
    remembered. It reads global numbers, so every rank has the same.
    """

    def __init__(self, config: AdvantageConfig):
        self._config = config
        self._history: dict[str, deque[float]] = {}

    def update(
        self, reward: Tensor, valid: Tensor, group: Tensor, prompts: Sequence[str]
    ) -> Statistics:
        """Remember an iteration's rewards, then say what each sample is compared with.

        Args:
            reward, valid, group: as for ``advantages``.
            prompts: the prompt id of every group; several groups may share one.
        """
        for value, known, slot in zip(reward.tolist(), valid.tolist(), group.tolist(), strict=True):
            if known:
                self._last(prompts[slot]).append(value)
        batch = reward[valid]
        found = [moments(self._settled(prompt, batch)) for prompt in prompts]
        table = torch.tensor(found, dtype=torch.float64).reshape(-1, 2)[group]
        return Statistics(table[:, 0], table[:, 1])

    def _last(self, prompt: str) -> deque[float]:
        return self._history.setdefault(prompt, deque(maxlen=self._config.buffer))

    def _settled(self, prompt: str, batch: Tensor) -> Tensor:
        """The prompt's own rewards where there are enough of them, or the batch's."""
        own = self._history.get(prompt, ())
        enough = len(own) >= self._config.min_count
        return torch.tensor(list(own), dtype=torch.float64) if enough else batch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: JSON."""
        return {"history": {prompt: list(values) for prompt, values in self._history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._history = {}
        for prompt, values in state["history"].items():
            self._last(prompt).extend(map(float, values))


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
    slots = int(group.max()) + 1 if group.numel() else 0
    kept = torch.where(valid, reward, torch.zeros_like(reward))
    count = kept.new_zeros(slots).index_add(0, group, valid.to(kept.dtype))
    low = kept.new_full((slots,), torch.inf).scatter_reduce(
        0, group, torch.where(valid, reward, torch.inf), "amin"
    )
    high = kept.new_full((slots,), -torch.inf).scatter_reduce(
        0, group, torch.where(valid, reward, -torch.inf), "amax"
    )
    # A power of two, so that dividing by it rounds nothing.
    size = _power_of_two(torch.maximum(low.abs(), high.abs()))
    scaled = kept / size[group]
    mean = kept.new_zeros(slots).index_add(0, group, scaled) / count.clamp(min=1)
    error = torch.where(valid, scaled - mean[group], torch.zeros_like(scaled)).square()
    variance = kept.new_zeros(slots).index_add(0, group, error) / (count - 1).clamp(min=1)
    equal = low == high
    spread = torch.where(equal, torch.zeros_like(mean), variance.sqrt() * size)
    return torch.where(equal, low, mean * size), spread, count


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two below each number; 1 for 0, for what is not finite and for the tiniest."""
    usual = size.isfinite() & (size > torch.finfo(size.dtype).tiny)
    known = torch.where(usual, size, torch.ones_like(size))
    mantissa, _ = torch.frexp(known)
    return known / 2 / mantissa


def advantages(
    config: AdvantageConfig, reward: Tensor, valid: Tensor, group: Tensor,
    running: Statistics | None = None,
) -> Tensor:  # fmt: skip
    """The advantage of every sample: ``(reward - baseline) / (scale + epsilon)``.

    ``group_mean`` with ``group_std`` is GRPO's (arXiv 2402.03300); ``leave_one_out`` without a
    scale is RLOO's (arXiv 2402.14740); ``group_mean`` without one is Dr.GRPO's (arXiv 2503.20783).
    ``batch_std`` is the deviation of all valid rewards of the batch; ``prompt_mean`` and
    ``prompt_std`` are DDPO's (arXiv 2305.13301).

    A reward that equals all those it is compared with, by its baseline or by its scale, has an
    advantage of exactly 0, and so has a sample without a reward: those of a group, of the batch or
    of a prompt's history. Only ``baseline: none`` with ``scale: none`` compares with nothing: the
    advantage is the reward.

    Args:
        config: the section ``advantage``.
        reward: ``[B]`` float64.
        valid: ``[B]`` bool.
        group: ``[B]`` int64.
        running: what ``PromptStatistics`` says, where the config asks for a prompt's statistics.

    Returns:
        ``[B]`` float64.
    """
    assert running is not None or not config.runs, "a prompt's statistics are missing"
    mean, spread, count = group_statistics(reward, valid, group)
    running = running or Statistics(mean[group], spread[group])  # not read: see the line above
    everyone = torch.zeros_like(group)
    batch_mean, batch_spread, _ = group_statistics(reward, valid, everyone)
    siblings = (count[group] - 1).clamp(min=1)
    baseline = {
        "group_mean": mean[group],
        "leave_one_out": torch.where(
            count[group] > 1, (mean[group] * count[group] - reward) / siblings, reward
        ),
        "batch_mean": batch_mean[everyone],
        "prompt_mean": running.mean,
        "none": torch.zeros_like(reward),
    }[config.baseline]
    difference = reward - baseline
    spreads = {"group": spread[group], "batch": batch_spread[everyone], "prompt": running.spread}
    spreads["leave"] = spreads["group"]
    if config.baseline != "none":
        # Rounding must not turn equal rewards into a direction when the divisor is tiny.
        compared = spreads[config.baseline.partition("_")[0]]
        difference = torch.where(compared == 0, torch.zeros_like(reward), difference)
    if config.scale != "none":
        scale = spreads[config.scale.partition("_")[0]]
        # Without a spread there is no unit, and epsilon alone would be one of its own making; a
        # spread that overflows must be named as not finite, and not make every advantage 0.
        known = torch.where(scale.isinf(), torch.nan, difference / (scale + config.epsilon))
        difference = torch.where(scale == 0, torch.zeros_like(reward), known)
    if config.clip is not None:
        difference = difference.clamp(-config.clip, config.clip)
    return torch.where(valid, difference, torch.zeros_like(reward))


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


def normalised_then_summed(
    config: AdvantageConfig, rewards: Iterable[tuple[float, Tensor]], valid: Tensor, group: Tensor
) -> Tensor:
    """Each reward normalised within its group, weighted, summed, then divided by the deviation.

    GDPO, as TRL's ``normalize_then_sum``: a reward of a large scale does not drown the others. A
    sample without one of the rewards takes no part in that reward's statistics. The sums have mean
    0 in every group, so the last division, by the batch's deviation, subtracts nothing.

    Args:
        config: ``epsilon`` and ``clip`` apply; its baseline and scale do not.
        rewards: (weight, ``[B]`` float64 with NaN where the reward does not apply).
        valid, group: as in ``advantages``.

    Returns:
        ``[B]`` float64.
    """
    named = {str(place): pair for place, pair in enumerate(rewards)}
    own = config.model_copy(update={"combine": "normalise_then_sum"})
    shares = shares_of(own, named, valid, group)
    total = combine({label: reward for label, (_, reward) in named.items()}, shares)
    whole = config.model_copy(update={"baseline": "none", "scale": "batch_std"})
    return advantages(whole, total, valid, group)
