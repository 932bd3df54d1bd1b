"""Rewards to advantages: ordinary code on global numbers, equal on every rank."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.loop.combine import combine, shares_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.statistics import group_statistics, moments

Baseline = Callable[[Tensor, Tensor], Tensor]
"""A plugin's: ``(rewards, group)``, ``[N]`` float64 and int64 each, of the samples that have a
reward, to what is subtracted from each, ``[N]``."""


@dataclass(frozen=True)
class Compared:
    """The rewards that each sample is compared with: ``[B]`` float64 each."""

    mean: Tensor
    std: Tensor
    count: Tensor


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
    ) -> "Compared":
        """Remember an iteration's rewards, then say what each sample is compared with.

        Args:
            reward, valid, group: as for ``advantages``.
            prompts: the prompt id of every group; several groups may share one.
        """
        for value, known, place in zip(
            reward.tolist(), valid.tolist(), group.tolist(), strict=True
        ):
            if known:
                self._last(prompts[place]).append(value)
        batch = reward[valid]
        found = [moments(self._settled(prompt, batch)) for prompt in prompts]
        table = torch.tensor(found, dtype=torch.float64).reshape(-1, 2)[group]
        return Compared(table[:, 0], table[:, 1], torch.ones_like(group))

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


def advantages(
    config: AdvantageConfig, reward: Tensor, valid: Tensor, group: Tensor,
    running: Compared | None = None, own: Baseline | None = None,
) -> Tensor:  # fmt: skip
    """The advantage of every sample: ``(reward - baseline) / (scale + epsilon)``.

    ``group_mean`` with ``group_std`` is GRPO's (arXiv 2402.03300); ``leave_one_out`` without a
    scale is RLOO's (arXiv 2402.14740); ``group_mean`` without one is Dr.GRPO's (arXiv 2503.20783).
    ``batch_std`` is the deviation of all valid rewards of the batch; ``prompt_mean`` and
    ``prompt_std`` are DDPO's (arXiv 2305.13301).

    A reward that equals all those it is compared with, by its baseline or by its scale, has an
    advantage of exactly 0, and so has a sample without a reward. Only ``baseline: none`` with
    ``scale: none`` compares with nothing: the advantage is the reward.

    Args:
        config: the section ``advantage``.
        reward: ``[B]`` float64.
        valid: ``[B]`` bool.
        group: ``[B]`` int64.
        running: what ``PromptStatistics`` says, where the config asks for a prompt's statistics.
        own: a baseline that takes the place of the config's.

    Returns:
        ``[B]`` float64.

    Raises:
        GenRLError: ``own`` gave something else than a number per sample.
    """
    assert running is not None or not config.runs, "a prompt's statistics are missing"
    zero = torch.zeros_like(reward)

    def compared(field: str) -> Compared:
        if field.startswith("prompt") and running is not None:
            return running
        over = torch.zeros_like(group) if field.startswith("batch") else group
        return Compared(*(each[over] for each in group_statistics(reward, valid, over)))

    difference = reward
    if own is not None:
        difference = reward - _own_baseline(own, config.baseline, reward, valid, group)
    elif config.baseline != "none":
        beside = compared(config.baseline)
        mean, std, count = beside.mean, beside.std, beside.count
        if config.baseline == "leave_one_out":
            others = (mean * count - reward) / (count - 1).clamp(min=1)
            mean = torch.where(count > 1, others, reward)
        # Rounding must not turn equal rewards into a direction when the divisor is tiny.
        difference = torch.where(std == 0, zero, reward - mean)
    if config.scale != "none":
        std = compared(config.scale).std
        # A deviation that overflows must be named as not finite, and not make every advantage 0.
        scaled = torch.where(std.isinf(), torch.nan, difference / (std + config.epsilon))
        # Without a deviation there is no unit, and epsilon alone would be an arbitrary one.
        difference = torch.where(std == 0, zero, scaled)
    if config.clip is not None:
        difference = difference.clamp(-config.clip, config.clip)
    return torch.where(valid, difference, zero)


def _own_baseline(own: Baseline, name: str, reward: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    found: object = own(reward[valid], group[valid])
    if not isinstance(found, Tensor) or found.shape != (int(valid.sum()),):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise GenRLError(
            f"advantage.baseline: {name} gave {shape} for {int(valid.sum())} rewards: expected a "
            "tensor with a number for each"
        )
    return torch.zeros_like(reward).index_put((valid,), found.to(reward))


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


class Advantages:
    """The section ``advantage`` at work, with what it remembers of each prompt's rewards."""

    def __init__(self, config: AdvantageConfig, own: Baseline | None = None):
        self._config, self._own = config, own
        self._statistics = PromptStatistics(config)

    def __call__(self, rollout: Rollout) -> Tensor:
        """The advantage of every sample of a rollout: ``[B]`` float64.

        Where nothing can be learned, because something is not finite or no sample has a reward, all
        are 0 and nothing is remembered.
        """
        config, known = self._config, (rollout.reward, rollout.valid, rollout.group)
        if rollout.problem is not None or not rollout.valid.any():
            return torch.zeros_like(rollout.reward)
        if config.combine == "normalise_then_sum" and rollout.rewards:
            return normalised_then_summed(config, rollout.rewards.values(), *known[1:])
        running = self._statistics.update(*known, rollout.prompt_ids) if config.runs else None
        return advantages(config, *known, running, self._own)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: JSON."""
        return self._statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._statistics.load_state_dict(state)
