"""Rewards to advantages: ordinary code on global numbers, equal on every rank."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl_core.config import AdvantageConfig


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
        found = [_moments(self._settled(prompt, batch)) for prompt in prompts]
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


def _moments(rewards: Tensor) -> tuple[float, float]:
    """Mean and unbiased standard deviation, 0 for fewer than two."""
    mean = float(rewards.mean()) if len(rewards) else 0.0
    return mean, float(rewards.std()) if len(rewards) > 1 else 0.0


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


def advantages(
    config: AdvantageConfig, reward: Tensor, valid: Tensor, group: Tensor,
    running: Statistics | None = None,
) -> Tensor:  # fmt: skip
    """The advantage of every sample: ``(reward - baseline) / (scale + epsilon)``.

    ``group_mean`` with ``group_std`` is GRPO's (arXiv 2402.03300); ``leave_one_out`` without a
    scale is RLOO's (arXiv 2402.14740); ``group_mean`` without one is Dr.GRPO's (arXiv 2503.20783).
    ``batch_std`` is the deviation of all valid rewards of the batch; ``prompt_mean`` and
    ``prompt_std`` are DDPO's (arXiv 2305.13301). Rewards that are all equal to those they are
    compared with have advantages of exactly 0 under a group's or a prompt's baseline, and so has a
    sample without a reward.

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
    if config.baseline in ("group_mean", "leave_one_out", "prompt_mean"):
        # Rounding must not turn equal rewards into a direction when the divisor is tiny.
        compared = running.spread if config.baseline == "prompt_mean" else spread[group]
        difference = torch.where(compared > 1e-12, difference, torch.zeros_like(reward))
    if config.scale != "none":
        scale = {
            "group_std": spread[group],
            "batch_std": batch_spread[everyone],
            "prompt_std": running.spread,
        }[config.scale]
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
