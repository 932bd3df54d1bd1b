"""From a plan to numbers: rollout, decode, reward, filter; global from here on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.records import Plan, Tensors, Terms, Trajectory, split_evals
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.combine import Share, combine, shares_of
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.filters import GroupFilter
from genrl_core.loop.generate import generate, score_rewards
from genrl_core.loop.plan import training_plan
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, TrainConfig
from genrl_core.loop.statistics import group_statistics, moments
from genrl_core.loop.weights import WeightSets


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The samples of one iteration that are learned from.

    Attributes:
        trajectory: this rank's samples.
        sample_index: ``[b]`` where they stand among the B of all ranks.
        terms: ``[T, B]``, all ranks.
        reward, valid, group: ``[B]``; the rewards as ``advantage.combine`` makes one of them,
            whether the sample has all that apply to its prompt, the group.
        parts: the plans that this rank's samples come from, for their random streams.
        media, prompts: of this rank's samples.
        metrics: of everything that was drawn, rejected groups included.
        problem: what was not finite, or None.
        rewards: label -> (weight, ``[B]`` with NaN where the reward does not apply).
        prompt_ids: of every group, all ranks'.
        on_policy: whether it was drawn under the current weights, so that the recorded
            log-densities hold until the first optimizer step.
    """

    trajectory: Trajectory
    sample_index: Tensor
    terms: Terms
    reward: Tensor
    valid: Tensor
    group: Tensor
    parts: tuple[Plan, ...]
    media: Media
    prompts: tuple[Prompt, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    on_policy: bool = True
    rewards: Mapping[str, tuple[float, Tensor]] = field(default_factory=dict)
    prompt_ids: tuple[str, ...] = ()

    def streams(self, purpose: str) -> Streams:
        """Fresh random streams of this rank's samples."""
        return Streams.concat([part.streams(purpose) for part in self.parts])

    @property
    def nothing_to_learn(self) -> str:
        """Why no objective can have a gradient, or the reason of last resort."""
        if not len(self.reward):
            return "the filter rejected every group"
        if not self.valid.any():
            return "no sample has all the rewards that apply to it"
        return "no objective has a gradient, as where all rewards of a prompt are equal"


class RolloutEngine(Protocol):
    """Where an iteration's samples come from; ``LocalRollouts`` draws them here."""

    def collect(self, iteration: int) -> Rollout:
        """The samples of an iteration, the same for the same number (counted from 0)."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept so that a resumed run collects the same: JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One attempt: what was drawn, and of every group whether it is kept.

    ``reward`` and ``valid`` are ``[B]`` of all ranks, ``plain`` is the weighted sum of the rewards
    as they are, ``group_std`` and ``keep`` are ``[P]``.
    """

    trajectory: Trajectory
    sample_index: Tensor
    plan: Plan
    group: Tensor
    media: Media
    terms: Terms
    rewards: Tensors
    reward: Tensor
    plain: Tensor
    valid: Tensor
    group_std: Tensor
    keep: Tensor

    def kept(self) -> "_Part":
        """The samples of the groups that are kept, numbered anew."""
        inside = self.keep[self.group]
        order, number = inside.cumsum(0) - 1, self.keep.cumsum(0) - 1
        local = inside[self.sample_index].nonzero().flatten()
        matrices = {name: matrix[:, inside] for name, matrix in self.terms.matrices()}
        return replace(
            self, trajectory=self.trajectory.select(local), plan=self.plan.select(local),
            sample_index=order[self.sample_index[local]], group=number[self.group[inside]],
            media=self.media.select(local.tolist()), terms=self.terms.with_matrices(matrices),
            rewards={name: each[inside] for name, each in self.rewards.items()},
            reward=self.reward[inside], valid=self.valid[inside],
        )  # fmt: skip


class LocalRollouts:
    """Draws, scores and filters the samples of an iteration, this rank's share of them."""

    def __init__(
        self, sampler: Sampler, rewards: Mapping[str, tuple[float, Reward]],
        weight_sets: WeightSets, runtime: Runtime, *, prompts: Sequence[Prompt], seed: int,
        train: TrainConfig, filter_config: FilterConfig, advantage: AdvantageConfig,
        drawing: str = "current",
    ):  # fmt: skip
        """Arguments as in ``Parts``; ``drawing`` names the weight set that draws."""
        self._sampler, self._rewards, self._runtime = sampler, rewards, runtime
        self._weight_sets, self._drawing = weight_sets, drawing
        self._prompts, self._seed, self._train = prompts, seed, train
        self._config, self._advantage = filter_config, advantage
        self._filter = GroupFilter(filter_config)
        self._seconds = {"rollout": 0.0, "reward": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return self._filter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._filter.load_state_dict(state)

    def collect(self, iteration: int) -> Rollout:
        """Draw until enough groups pass the filter, or to the limit of attempts."""
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        attempts = self._config.max_attempts if self._config.then == "resample" else 1
        parts: list[_Part] = []
        missing = self._train.num_prompts
        for attempt in range(attempts):
            plan = training_plan(
                self._seed, iteration, attempt, self._prompts, missing,
                self._train.num_generations, self._runtime.device,
            )  # fmt: skip
            parts.append(self._attempt(plan))
            missing -= int(parts[-1].keep.sum())
            if missing == 0:
                break
        return self._joined(parts)

    def _attempt(self, plan: Plan) -> _Part:
        own = self._runtime.own_groups(len(plan.prompts))
        # With fewer groups than ranks, an idle rank draws a group and drops it: the gathers below
        # need the shapes of its tensors.
        rows = torch.isin(plan.group, torch.tensor(own or [0])).nonzero().flatten()
        start = time.perf_counter()
        local = plan.select(rows)
        size = self._train.rollout_batch_size
        with self._weight_sets.using(self._drawing) as policy:
            trajectory, media = generate(policy, self._sampler, local, size)
        if not own:
            rows, none = rows[:0], rows[:0]
            trajectory, media, local = trajectory.select(none), media.select([]), plan.select(none)
        middle = time.perf_counter()
        rewards = self._scored(media, local.sample_prompts(), rows, len(plan))
        terms = self._gathered(trajectory.terms, rows, len(plan))
        self._seconds["rollout"] += middle - start
        self._seconds["reward"] += time.perf_counter() - middle
        valid = self._valid(rewards, plan)
        reward, plain = self._total(rewards, valid, plan)
        _, group_std, _ = group_statistics(reward, valid, plan.group)
        keep = self._filter.keep(group_std) if self._config.active else [True] * len(group_std)
        return _Part(
            trajectory=trajectory, sample_index=rows, plan=local, group=plan.group, media=media,
            terms=terms, rewards=rewards, reward=reward, plain=plain, valid=valid,
            group_std=group_std, keep=torch.tensor(keep, dtype=torch.bool),
        )  # fmt: skip

    def _scored(
        self, media: Media, prompts: Sequence[Prompt], sample_index: Tensor, total: int
    ) -> Tensors:
        failure, found = None, {}
        try:
            found = {n: score_rewards(n, r, media, prompts) for n, (_, r) in self._rewards.items()}
        except GenRLError as error:
            failure = error
        for other in self._runtime.collect(failure):
            if other is not None:
                raise other
        return {n: self._runtime.gather(v, sample_index, total) for n, v in found.items()}

    def _gathered(self, terms: Terms, sample_index: Tensor, total: int) -> Terms:
        """The terms of all ranks, on the CPU, where batches live."""
        num_evals = max(self._runtime.collect(terms.num_evals))
        shared: Tensors = {}
        for name, matrix in terms.matrices():
            apart = split_evals(matrix.cpu(), terms.num_evals)
            shared[name] = self._runtime.gather(apart, sample_index, total).flatten(0, 1)
        return replace(terms, num_evals=num_evals).with_matrices(shared)

    def _valid(self, rewards: Tensors, plan: Plan) -> Tensor:
        """Whether a sample has the rewards that apply to its prompt.

        A reward applies where any sample of the group has it. A sample that lacks one which its
        siblings have is left out: its sum would stand beside theirs as if that reward were 0.
        """
        if not rewards:
            return torch.ones(len(plan), dtype=torch.bool)
        given = ~torch.stack([rewards[name] for name in self._rewards]).isnan()
        groups = torch.zeros(len(given), len(plan.prompts), dtype=torch.int64)
        applies = groups.index_add(1, plan.group, given.long()).bool()
        return given.any(0) & (given | ~applies[:, plan.group]).all(0)

    def _total(self, rewards: Tensors, valid: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """The one reward of every sample, and the weighted sum of the rewards as they are.

        They are one and the same unless ``advantage.combine`` makes z-scores, whose mean is always
        0, so that metrics show the second.
        """
        if not rewards:
            zero = torch.zeros(len(plan), dtype=torch.float64)
            return zero, zero
        weighted = {name: (w, rewards[name]) for name, (w, _) in self._rewards.items()}
        reward = combine(rewards, shares_of(self._advantage, weighted, valid, plan.group))
        if self._advantage.combine == "sum":
            return reward, reward
        return reward, combine(rewards, {n: Share(w) for n, (w, _) in self._rewards.items()})

    def _joined(self, parts: Sequence[_Part]) -> Rollout:
        kept = [part.kept() for part in parts]
        samples = groups = 0
        index, group = [], []
        for part in kept:
            index.append(part.sample_index + samples)
            group.append(part.group + groups)
            samples, groups = samples + len(part.reward), groups + int(part.keep.sum())
        alone = [Trajectory({}, {}, {}, part.terms) for part in kept]
        pairs = [pair for p in parts for pair in zip(p.plan.prompts, p.keep.tolist(), strict=True)]
        return Rollout(
            trajectory=Trajectory.concat([part.trajectory for part in kept]),
            sample_index=torch.cat(index), terms=Trajectory.concat(alone).terms,
            reward=torch.cat([part.reward for part in kept]),
            valid=torch.cat([part.valid for part in kept]), group=torch.cat(group),
            parts=tuple(part.plan for part in kept),
            media=Media.concat([part.media for part in kept]),
            prompts=tuple(prompt for part in kept for prompt in part.plan.sample_prompts()),
            metrics=self._metrics(parts), problem=_problem(parts),
            on_policy=self._drawing == "current",
            rewards={
                name: (weight, torch.cat([part.rewards[name] for part in kept]))
                for name, (weight, _) in self._rewards.items()
            },
            prompt_ids=tuple(prompt.id for prompt, stays in pairs if stays),
        )  # fmt: skip

    def _metrics(self, parts: Sequence[_Part]) -> dict[str, float]:
        reward = torch.cat([part.plain[part.valid] for part in parts])
        group_std = torch.cat([part.group_std for part in parts])
        keep = torch.cat([part.keep for part in parts])
        mean, deviation = moments(reward)
        found = {
            "reward": mean if len(reward) else float("nan"),
            "reward_std": deviation,
            "spread": float(group_std.mean()),
            "zero_spread": float((group_std == 0).double().mean()),
            "groups_kept": float(keep.sum()),
            "groups_rejected": float((~keep).sum()),
            "attempts": float(len(parts)),
            "samples": float(sum(len(part.reward) for part in parts)),
        }
        for name in self._rewards:
            values = torch.cat([part.rewards[name] for part in parts])
            found[f"reward/{name}"] = float(values.nanmean())
        return found | {f"seconds_{name}": value for name, value in self._seconds.items()}


def _problem(parts: Sequence[_Part]) -> str | None:
    """Which reward is not finite, or which prompt's rewards have no finite sum."""
    for part in parts:
        for name, values in part.rewards.items():
            if values.isinf().any():
                return f"reward {name!r} is not finite"
        bad = (part.valid & ~(part.reward.isfinite() & part.plain.isfinite())).nonzero()
        if len(bad):
            row = int(bad[0])
            prompt = part.plan.prompts[int(part.group[row])]
            own = ", ".join(f"{n} {float(v[row]):.3g}" for n, v in part.rewards.items())
            return f"the weighted sum of rewards overflows for prompt {prompt.id!r} ({own})"
    return None
