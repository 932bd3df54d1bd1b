"""From a plan to numbers: rollout, decode, reward, filter; global from here on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.records import Plan, Tensors, Terms, Trajectory, split_evals
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.advantage import Share, combine, group_statistics, moments, shares_of
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.filters import GroupFilter
from genrl_core.loop.generate import draw, judge
from genrl_core.loop.settings import AdvantageConfig, FilterConfig
from genrl_core.loop.weights import WeightSets


@dataclass(frozen=True)
class Rollout:
    """The samples of one iteration that are learned from.

    Attributes:
        trajectory: this rank's samples.
        columns: ``[b]`` where they stand among the B of all ranks.
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
    metrics: dict[str, float]
    problem: str | None
    on_policy: bool = True
    rewards: Mapping[str, tuple[float, Tensor]] = field(default_factory=dict)
    prompt_ids: tuple[str, ...] = ()

    def streams(self, purpose: str) -> Streams:
        """Fresh random streams of this rank's samples."""
        return Streams.concat([part.streams(purpose) for part in self.parts])


@dataclass(frozen=True)
class _Part:
    trajectory: Trajectory
    sample_index: Tensor
    plan: Plan
    media: Media
    terms: Terms
    rewards: Tensors
    group: Tensor
    total: int


class Collector:
    """Draws, judges and filters the samples of an iteration."""

    def __init__(
        self, sampler: Sampler, rewards: Mapping[str, tuple[float, Reward]],
        group_filter: GroupFilter, config: FilterConfig, runtime: Runtime,
        rollout_batch_size: int, weight_sets: WeightSets, slot: str = "current",
        advantage: AdvantageConfig | None = None,
    ):  # fmt: skip
        self._sampler, self._rewards = sampler, rewards
        self._filter, self._config, self._runtime = group_filter, config, runtime
        self._rollout_batch_size = rollout_batch_size
        self._weight_sets, self._slot = weight_sets, slot
        self._advantage = advantage or AdvantageConfig()
        self._seconds = {"rollout": 0.0, "reward": 0.0}

    def collect(self, plan: Callable[[int, int], Plan], groups: int) -> Rollout:
        """Run ``plan(attempt, groups)`` until enough groups pass the filter, or the limit."""
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        attempts = self._config.max_attempts if self._config.then == "resample" else 1
        parts: list[_Part] = []
        kept: list[Tensor] = []
        spreads: list[Tensor] = []
        totals: list[tuple[Tensor, Tensor]] = []
        missing = groups
        for attempt in range(attempts):
            part = self._attempt(plan(attempt, missing))
            totals.append(self._total(part))
            _, spread, _ = group_statistics(*totals[-1], part.group)
            keep = self._filter.keep(spread) if self._config.active else [True] * len(spread)
            parts.append(part)
            spreads.append(spread)
            kept.append(torch.tensor(keep, dtype=torch.bool))
            missing -= sum(keep)
            if missing == 0:
                break
        return self._assemble(parts, totals, kept, torch.cat(spreads))

    def _attempt(self, plan: Plan) -> _Part:
        own = self._runtime.own_groups(len(plan.prompts))
        # A rank without a group draws one all the same and discards it, to know the shapes.
        mine = torch.isin(plan.group, torch.tensor(own or [0]))
        rows = mine.nonzero().flatten()
        start = time.perf_counter()
        local = plan.select(rows)
        with self._weight_sets.using(self._slot) as policy:
            trajectory, media = draw(policy, self._sampler, local, self._rollout_batch_size)
        if not own:
            rows, none = rows[:0], rows[:0]
            trajectory, media, local = trajectory.select(none), media.select([]), plan.select(none)
        middle = time.perf_counter()
        rewards = self._judge(media, local.sample_prompts(), rows, len(plan))
        terms = self._share(trajectory.terms, rows, len(plan))
        self._seconds["rollout"] += middle - start
        self._seconds["reward"] += time.perf_counter() - middle
        return _Part(trajectory, rows, local, media, terms, rewards, plan.group, len(plan))

    def _judge(
        self, media: Media, prompts: Sequence[Prompt], sample_index: Tensor, total: int
    ) -> Tensors:
        failure, found = None, {}
        try:
            found = {n: judge(n, r, media, prompts) for n, (_, r) in self._rewards.items()}
        except GenRLError as error:
            failure = error
        for other in self._runtime.collect(failure):
            if other is not None:
                raise other
        return {n: self._runtime.gather(v, sample_index, total) for n, v in found.items()}

    def _share(self, terms: Terms, sample_index: Tensor, total: int) -> Terms:
        calls = max(self._runtime.collect(terms.num_evals))
        shared: Tensors = {}
        for name, matrix in terms.matrices():
            folded = split_evals(matrix.cpu(), terms.num_evals)
            shared[name] = self._runtime.gather(folded, sample_index, total).flatten(0, 1)
        return replace(terms, num_evals=calls).with_matrices(shared)

    def _total(self, part: _Part) -> tuple[Tensor, Tensor]:
        """The one reward of every sample, and whether it has those that apply to its prompt.

        A reward applies where any sample of the group has it. A sample that lacks one which its
        siblings have is left out: its sum would stand beside theirs as if that reward were 0.
        """
        valid = self._valid(part)
        if not part.rewards:
            return torch.zeros(part.total, dtype=torch.float64), valid
        weighted = {name: (w, part.rewards[name]) for name, (w, _) in self._rewards.items()}
        shares = shares_of(self._advantage, weighted, valid, part.group)
        return combine(part.rewards, shares), valid

    def _valid(self, part: _Part) -> Tensor:
        if not part.rewards:
            return torch.ones(part.total, dtype=torch.bool)
        given = ~torch.stack([part.rewards[name] for name in self._rewards]).isnan()
        groups = torch.zeros(len(given), len(part.plan.prompts), dtype=torch.int64)
        applies = groups.index_add(1, part.group, given.long()).bool()
        return given.any(0) & (given | ~applies[:, part.group]).all(0)

    def _weighted_sum(self, part: _Part, reward: Tensor) -> Tensor:
        """Of the rewards as they are, for the metric: a sum of z-scores has the mean 0 always.

        Which is ``reward``, what ``_total`` found, unless ``advantage.combine`` is something else.
        """
        if not part.rewards or self._advantage.combine == "sum":
            return reward
        return combine(part.rewards, {name: Share(w) for name, (w, _) in self._rewards.items()})

    def _assemble(
        self, parts: list[_Part], totals: list[tuple[Tensor, Tensor]], kept: list[Tensor],
        spread: Tensor,
    ) -> Rollout:  # fmt: skip
        trajectories, media, plans, prompts = [], [], [], []
        sample_index, rewards, validity, groups, terms = [], [], [], [], []
        offset = first_group = 0
        drawn = []
        for part, (reward, valid), keep in zip(parts, totals, kept, strict=True):
            drawn.append(self._weighted_sum(part, reward)[valid])
            inside = keep[part.group]
            order = inside.cumsum(0) - 1
            local = inside[part.sample_index].nonzero().flatten()
            trajectories.append(part.trajectory.select(local))
            media.append(part.media.select(local.tolist()))
            plans.append(part.plan.select(local))
            prompts += plans[-1].sample_prompts()
            sample_index.append(order[part.sample_index[local]] + offset)
            rewards.append(reward[inside])
            validity.append(valid[inside])
            groups.append((keep.cumsum(0) - 1)[part.group[inside]] + first_group)
            matrices = {n: m[:, inside] for n, m in part.terms.matrices()}
            terms.append(Trajectory({}, {}, {}, part.terms.with_matrices(matrices)))
            offset, first_group = offset + int(inside.sum()), first_group + int(keep.sum())
        reward = torch.cat(rewards)
        apart = {
            name: (weight, torch.cat([
                part.rewards[name][keep[part.group]] for part, keep in zip(parts, kept, strict=True)
            ]))
            for name, (weight, _) in self._rewards.items()
        }  # fmt: skip
        metrics = self._metrics(parts, torch.cat(drawn), spread, torch.cat(kept))
        return Rollout(
            Trajectory.concat(trajectories), torch.cat(sample_index),
            Trajectory.concat(terms).terms,
            reward, torch.cat(validity), torch.cat(groups), tuple(plans), Media.concat(media),
            tuple(prompts), metrics, self._problem(parts, totals), self._slot == "current", apart,
            _prompt_ids(parts, kept),
        )  # fmt: skip

    def _problem(self, parts: list[_Part], totals: list[tuple[Tensor, Tensor]]) -> str | None:
        """Which reward is not finite, or which prompt's rewards have no finite sum."""
        for part, (reward, valid) in zip(parts, totals, strict=True):
            for name, values in part.rewards.items():
                if values.isinf().any():
                    return f"reward {name!r} is not finite"
            plain = self._weighted_sum(part, reward)
            bad = (valid & ~(reward.isfinite() & plain.isfinite())).nonzero()
            if len(bad):
                row = int(bad[0])
                prompt = part.plan.prompts[int(part.group[row])]
                own = ", ".join(f"{n} {float(v[row]):.3g}" for n, v in part.rewards.items())
                return f"the weighted sum of rewards overflows for prompt {prompt.id!r} ({own})"
        return None

    def _metrics(
        self, parts: list[_Part], reward: Tensor, spread: Tensor, kept: Tensor
    ) -> dict[str, float]:
        mean, deviation = moments(reward)
        found = {
            "reward": mean if len(reward) else float("nan"),
            "reward_std": deviation,
            "spread": float(spread.mean()),
            "zero_spread": float((spread == 0).double().mean()),
            "groups_kept": float(kept.sum()),
            "groups_rejected": float((~kept).sum()),
            "attempts": float(len(parts)),
            "samples": float(sum(part.total for part in parts)),
        }
        for name in self._rewards:
            values = torch.cat([part.rewards[name] for part in parts])
            found[f"reward/{name}"] = float(values.nanmean())
        return found | {f"seconds_{name}": value for name, value in self._seconds.items()}


def _prompt_ids(parts: list[_Part], kept: list[Tensor]) -> tuple[str, ...]:
    """Of the groups that are kept, in the order of their numbers."""
    pairs = [
        zip(part.plan.prompts, keep.tolist(), strict=True)
        for part, keep in zip(parts, kept, strict=True)
    ]
    return tuple(prompt.id for pair in pairs for prompt, kept_here in pair if kept_here)
