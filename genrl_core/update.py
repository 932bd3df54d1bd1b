"""One iteration's learning: reference terms, advantages, minibatches, and the optimizer steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genrl_core import gradient
from genrl_core.advantage import PromptStatistics, advantages, normalised_then_summed
from genrl_core.collect import Rollout
from genrl_core.config import AdvantageConfig, TrainConfig
from genrl_core.errors import GenRLError
from genrl_core.objective import Objective, Replay
from genrl_core.plan import permutation
from genrl_core.policy import Policy
from genrl_core.records import Batch, Others, Tensors
from genrl_core.reward import Reward
from genrl_core.reward_view import RewardView, replayed
from genrl_core.runtime import Runtime
from genrl_core.sampler import Sampler
from genrl_core.steps import choose_calls
from genrl_core.views import BoundView, MatchingView, StepsView
from genrl_core.weights import Slots

_DRIFTS = {
    "steps": (
        "log-densities",
        (
            "The sampler does not score what it drew: check that temperature, guidance and every "
            "random choice enter log_prob as they entered sample"
        ),
    ),
    "reward": (
        "rewards",
        (
            "The sampler does not repeat what it drew: check that every random choice comes from "
            "plan.streams, and that rollout draws the same with grad_steps"
        ),
    ),
}
"""By view: what drifted, and why that may be."""
SCORED = frozenset({"kl_reference", "kl_old", "entropy", "value"})


@dataclass(frozen=True)
class Side:
    """The objectives that share a view: one leaf, one summed loss, one gradient."""

    view: str
    members: tuple[tuple[str, float, Objective], ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(objective.needs for _, _, objective in self.members))

    @property
    def separable(self) -> bool:
        return all(objective.separable for _, _, objective in self.members)

    @property
    def mixtures(self) -> tuple[Mapping[str, float], ...]:
        return tuple(mix for _, _, objective in self.members for mix in objective.mixtures)

    @property
    def replay(self) -> Replay:
        """How the samples of the view ``reward`` are drawn again: alike for all members.

        Raises:
            GenRLError: an objective of that view does not say how.
        """
        label, _, objective = self.members[0]
        if objective.replay is None:
            raise GenRLError(
                f"objective {label} reads the view reward and has no replay: give the class an "
                "attribute replay = Replay(...), which says what is drawn again with gradient"
            )
        return objective.replay

    def loss(self, batch: Batch) -> tuple[Tensor, Tensors]:
        """The weighted sum of the members' losses; metrics of one name get their label."""
        total: Tensor | None = None
        metrics: Tensors = {}
        seen = 0
        for label, weight, objective in self.members:
            own = batch
            if objective.mixtures:
                own = replace(batch, errors=batch.errors[seen : seen + len(objective.mixtures)])
                seen += len(objective.mixtures)
            value, found = objective.loss(own)
            total = weight * value if total is None else total + weight * value
            for name, metric in found.items():
                metrics[f"{label}/{name}" if name in metrics else name] = metric.detach()
        assert total is not None
        return total, metrics


def sides_of(members: Iterable[tuple[str, str, float, Objective]]) -> list[Side]:
    """(view, label, weight, objective) by view, in order; those that replay differently apart."""
    found: dict[tuple[str, Replay | None], list[tuple[str, float, Objective]]] = {}
    for view, label, weight, objective in members:
        found.setdefault((view, objective.replay), []).append((label, weight, objective))
    return [Side(view, tuple(together)) for (view, _), together in found.items()]


@dataclass(frozen=True)
class Prepared:
    """One side at one update: how to evaluate it, and the batch without its current numbers."""

    view: gradient.View
    batch: Batch
    recorded: Tensors | None


class Learner:
    """Turns a rollout into optimizer steps.

    Attributes:
        statistics: what it remembers of each prompt's rewards; part of a checkpoint.
    """

    def __init__(
        self, policy: Policy, sampler: Sampler, slots: Slots, sides: Sequence[Side],
        train: TrainConfig, advantage: AdvantageConfig, optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler, runtime: Runtime,
        rewards: Mapping[str, tuple[float, Reward]] | None = None,
    ):  # fmt: skip
        self._policy, self._sampler, self._slots = policy, sampler, slots
        self._rewards = rewards or {}
        self._sides, self._train, self._advantage = sides, train, advantage
        self._optimizer, self._scheduler, self._runtime = optimizer, scheduler, runtime
        self.statistics = PromptStatistics(advantage)
        self._others: Others = {
            name: partial(slots.active, name) for name in ("reference", "old") if name in slots
        }

    def learn(
        self, rollout: Rollout, seed: int, iteration: int
    ) -> tuple[dict[str, float], str | None]:
        """All updates of one iteration.

        Returns:
            The metrics of its optimizer steps, averaged, and what made one of them be skipped.

        Raises:
            GenRLError: the drift exceeds ``train.drift_tolerance``.
        """
        if rollout.problem is not None:
            return {"skipped": 1.0}, rollout.problem
        if not rollout.valid.any():
            return {"skipped": 1.0}, None
        advantage = self._advantages(rollout)
        # Every old and reference term of all updates is evaluated before the first of them.
        updates = [[self.prepare(side, rollout, advantage, 0) for side in self._sides]]
        for update in range(1, self._train.num_updates):
            again = zip(self._sides, updates[0], strict=True)
            updates.append([
                first if side.view == "steps" else self.prepare(side, rollout, advantage, update)
                for side, first in again
            ])  # fmt: skip
        history: list[dict[str, float]] = []
        problems: list[str] = []
        groups = int(rollout.group.max()) + 1
        for update, prepared in enumerate(updates):
            order = permutation(seed, "minibatch", iteration, update, size=groups)
            size = math.ceil(groups / self._train.num_minibatches)
            for first in range(0, groups, size):
                inside = torch.isin(rollout.group, torch.tensor(order[first : first + size]))
                fresh = rollout.on_policy and update == 0 and first == 0
                found, problem = self._step(prepared, rollout, inside, fresh)
                history.append(found)
                problems += [problem] if problem else []
        spread = float(advantage[rollout.valid].std(correction=0))
        return _average(history) | {"advantage_std": spread}, next(iter(problems), None)

    def _advantages(self, rollout: Rollout) -> Tensor:
        if self._advantage.combine == "normalise_then_sum" and rollout.rewards:
            return normalised_then_summed(
                self._advantage, rollout.rewards.values(), rollout.valid, rollout.group
            )
        known = (rollout.reward, rollout.valid, rollout.group)
        running = None
        if self._advantage.runs:
            running = self.statistics.update(*known, rollout.prompt_ids)
        return advantages(self._advantage, *known, running)

    def _step(
        self, prepared: Sequence[Prepared], rollout: Rollout, inside: Tensor, fresh: bool
    ) -> tuple[dict[str, float], str | None]:
        """One optimizer step on the groups ``inside``."""
        self._optimizer.zero_grad(set_to_none=True)
        found: dict[str, float] = {}
        total, drift, problem = 0.0, None, None
        for side, ready in zip(self._sides, prepared, strict=True):
            outcome = gradient.accumulate(
                ready.view, replace(ready.batch, valid=ready.batch.valid & inside), side.loss,
                rollout.columns, self._runtime,
                separable=side.separable and not _combined(ready),
                rows_per_forward=self._train.rows_per_forward,
                recorded=ready.recorded if fresh else None,
            )  # fmt: skip
            total += outcome.loss
            if outcome.drift is not None:
                drift = max(drift or 0.0, outcome.drift)
                self._check_drift(side.view, outcome.drift)
            problem = problem or _first_problem(ready.batch, outcome)
            found |= _summaries(outcome)
        self._runtime.reduce_gradients(self._slots.trainable.values())
        norm = _clip(self._slots.trainable.values(), self._train.max_grad_norm)
        if problem is None and not math.isfinite(norm):
            problem = "the gradient norm is not finite"
        if problem is None:
            self._optimizer.step()
            self._scheduler.step()
        else:
            self._optimizer.zero_grad(set_to_none=True)
        found |= {"loss": total, "grad_norm": norm, "skipped": float(problem is not None)}
        return found | ({} if drift is None else {"drift": drift}), problem

    def _check_drift(self, view: str, drift: float) -> None:
        if drift > self._train.drift_tolerance:
            what, why = _DRIFTS.get(view, _DRIFTS["steps"])
            raise GenRLError(
                f"drift: the {what} of the update differ from the recorded ones by up to "
                f"{drift:.3g} under the same weights (train.drift_tolerance is "
                f"{self._train.drift_tolerance:g}). {why}, or raise the tolerance for "
                "low-precision networks"
            )

    def prepare(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        if side.view == "steps":
            return self._prepare_steps(side, rollout, advantage)
        if side.view in ("bound", "matching"):
            return self._prepare_draws(side, rollout, advantage, update)
        return self._prepare_reward(side, rollout, advantage, update)

    def _prepare_steps(self, side: Side, rollout: Rollout, advantage: Tensor) -> Prepared:
        terms, total = rollout.terms, len(rollout.reward)
        chosen, weight = choose_calls(self._train.steps, terms.calls, rollout.streams("steps"))
        per_call = len(terms.mask) // max(terms.calls, 1)
        spread = partial(torch.repeat_interleave, repeats=per_call, dim=0)
        gather = partial(self._runtime.gather, columns=rollout.columns, total=total)
        selected = terms.mask & spread(gather(chosen.cpu()))
        weight = spread(gather(weight.cpu())).to(terms.log_probs)
        ones = torch.ones_like(terms.log_probs)
        batch = Batch(
            log_probs=terms.log_probs, old=terms.log_probs, events=terms.events, step=terms.step,
            mask=selected, population=terms.mask if self._train.steps.importance else selected,
            weight=weight if terms.weight is None else weight * terms.weight,
            scale=ones if terms.scale is None else terms.scale,
            duration=ones if terms.duration is None else terms.duration,
            advantage=(ones * advantage).to(ones), reward=rollout.reward.to(ones),
            group=rollout.group, valid=rollout.valid, old_value=terms.value,
            returns=(ones * rollout.reward).to(ones),
        )  # fmt: skip
        want = frozenset({"log_probs"}) | (side.needs & SCORED)
        view = StepsView(self._policy, self._sampler, rollout.trajectory, want, self._others)
        if "reference" in side.needs:
            plain = replace(view, want=frozenset({"log_probs"}), others={})
            batch = replace(batch, reference=self._under("reference", plain, batch, rollout))
        recorded = {"log_probs": terms.log_probs}
        if terms.value is not None and "value" in want:
            recorded["value"] = terms.value
        return Prepared(view, batch, recorded)

    def _prepare_draws(
        self, side: Side, rollout: Rollout, advantage: Tensor, update: int
    ) -> Prepared:
        draws, total = self._train.draws, len(rollout.reward)
        streams = rollout.streams(f"corrupt/{side.view}/{update}")
        corruption = self._policy.corrupt(
            rollout.trajectory.final, streams.joined(rollout.streams(f"corrupt/{side.view}")),
            draws, update, self._train.num_updates,
        )  # fmt: skip
        view: BoundView | MatchingView
        trajectory = rollout.trajectory
        if side.view == "bound":
            view = BoundView(self._policy, trajectory, corruption, draws)
        else:
            view = MatchingView(
                self._policy, trajectory, corruption, draws, side.mixtures, self._others
            )
        own = corruption.get("weight", torch.ones(draws, len(rollout.columns))).cpu()
        weights = self._runtime.gather(own.to(_dtype(self._policy)), rollout.columns, total)
        combined = side.view == "bound" and self._policy.combine_draws
        events = torch.ones(draws, 1, total, dtype=torch.int64)
        if isinstance(view, BoundView):
            events = self._runtime.gather(view.events, rollout.columns, total)
        events, weight, step = _draw_terms(events, weights, combined)
        ones, mask = torch.ones_like(weight), events > 0
        batch = Batch(
            log_probs=torch.zeros_like(ones), events=events, mask=mask,
            population=mask, scale=ones, weight=weight, step=step, draw_weight=weights,
            advantage=(ones * advantage).to(ones), reward=rollout.reward.to(ones),
            group=rollout.group, valid=rollout.valid, returns=(ones * rollout.reward).to(ones),
        )  # fmt: skip
        recorded = None
        if "old" in side.needs:
            raw = self._evaluate(view, batch, rollout)
            old = view.insert(batch, raw)
            batch = replace(batch, old=old.log_probs, log_probs=old.log_probs)
            recorded = raw
        if "reference" in side.needs:
            batch = replace(batch, reference=self._under("reference", view, batch, rollout))
        return Prepared(view, batch, recorded)

    def _prepare_reward(
        self, side: Side, rollout: Rollout, advantage: Tensor, update: int
    ) -> Prepared:
        """The recorded rewards are those of the finished samples in float, without rounded pixels.

        Of samples that end earlier they come from a pass without gradient.
        """
        steps, stop = replayed(side.replay, rollout.streams(f"replay/{update}"))
        applies = {name: ~each.isnan() for name, (_, each) in rollout.rewards.items()}
        given = {n: applies.get(n, rollout.valid)[rollout.columns] for n in self._rewards}
        view = RewardView(
            self._policy, self._sampler, rollout.trajectory, rollout.parts, self._rewards, given,
            steps, stop,
        )  # fmt: skip
        ones = torch.ones(1, len(rollout.reward), dtype=_dtype(self._policy))
        batch = Batch(
            log_probs=torch.zeros_like(ones), events=ones.long(), mask=ones.bool(),
            population=ones.bool(), scale=ones, weight=ones, step=torch.zeros_like(ones).long(),
            advantage=(ones * advantage).to(ones), reward=rollout.reward.to(ones),
            group=rollout.group, valid=rollout.valid, returns=(ones * rollout.reward).to(ones),
        )  # fmt: skip
        if update or not rollout.on_policy:
            return Prepared(view, batch, None)
        known = view if side.replay.stop else replace(view, again=False)
        return Prepared(view, batch, self._evaluate(known, batch, rollout))

    def _evaluate(self, view: gradient.View, batch: Batch, rollout: Rollout) -> Tensors:
        rows = self._train.rows_per_forward
        return gradient.evaluate(view, batch, rollout.columns, self._runtime, rows)

    def _under(self, slot: str, view: gradient.View, batch: Batch, rollout: Rollout) -> Tensor:
        """The numbers of the view under another weight slot."""
        with self._slots.active(slot):
            return view.insert(batch, self._evaluate(view, batch, rollout)).log_probs


def _dtype(policy: Policy) -> torch.dtype:
    """float32 or better, whatever the network's dtype."""
    parameter = next(policy.network.parameters(), None)
    return (
        torch.float64
        if parameter is not None and parameter.dtype == torch.float64
        else torch.float32
    )


def _draw_terms(events: Tensor, weight: Tensor, combined: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The events, weight and step (the draw) of all terms, ``[T, B]`` each.

    Args:
        events: ``[D, M, B]`` of every draw's terms.
        weight: ``[D, B]`` of the draws.
        combined: whether the draws are summed with their weights, so that T is M and a term exists
            where any draw has it; or else T is ``D * M``.
    """
    if combined:
        found = events.amax(0)
        return found, torch.ones_like(found, dtype=weight.dtype), torch.zeros_like(found)
    step = torch.arange(len(events)).view(-1, 1, 1).expand(events.shape)
    spread = weight.unsqueeze(1).expand(events.shape)
    return events.flatten(0, 1), spread.flatten(0, 1), step.flatten(0, 1)


def _combined(ready: Prepared) -> bool:
    blank = next(iter(ready.view.blank(ready.batch).values()))
    return blank.shape != ready.batch.mask.shape


def _clip(parameters: Any, limit: float | None) -> float:
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    return float(norm)


def _first_problem(batch: Batch, outcome: gradient.Outcome) -> str | None:
    """The first link of the chain that is not finite."""
    for name in ("old", "reference", "advantage"):
        values = getattr(batch, name)
        if values is not None and not values[batch.mask & batch.valid].isfinite().all():
            return f"a number in {name} is not finite"
    kept = batch.mask & batch.valid
    if not outcome.batch.log_probs[kept].isfinite().all():
        return "a log-density of the update is not finite"
    reward = outcome.batch.differentiable_reward
    if reward is not None and not reward[kept].isfinite().all():
        return "a differentiable reward is not finite"
    return None if math.isfinite(outcome.loss) else "the loss is not finite"


def _summaries(outcome: gradient.Outcome) -> dict[str, float]:
    batch, found = outcome.batch, {}
    for name, metric in outcome.metrics.items():
        kept = metric[batch.valid] if metric.dim() == 1 else metric[batch.mask & batch.valid]
        if len(kept):
            value = kept.max() if name.endswith("_max") else kept.double().mean()
            found[name] = float(value)
    if batch.entropy is not None:
        found["entropy"] = float(batch.entropy[batch.mask & batch.valid].mean())
    return found


def _average(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps; maxima of what is a maximum."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for step in history for name in step):
        values = [step[name] for step in history if name in step]
        if name.endswith("_max") or name == "drift":
            found[name] = max(values)
        else:
            found[name] = sum(values) / len(values)
    return found
