"""One iteration's learning: reference terms, advantages, minibatches, and the optimizer steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genrl_core import gradient
from genrl_core.advantage import advantages, normalised_then_summed
from genrl_core.collect import Rollout
from genrl_core.config import AdvantageConfig, TrainConfig
from genrl_core.errors import GenRLError
from genrl_core.objective import Objective
from genrl_core.plan import permutation
from genrl_core.policy import Policy
from genrl_core.records import Batch, Others, Tensors
from genrl_core.runtime import Runtime
from genrl_core.sampler import Sampler
from genrl_core.steps import choose_calls
from genrl_core.views import BoundView, MatchingView, StepsView
from genrl_core.weights import Slots

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


@dataclass(frozen=True)
class Prepared:
    """One side at one update: how to evaluate it, and the batch without its current numbers."""

    view: gradient.View
    batch: Batch
    recorded: Tensors | None


class Learner:
    """Turns a rollout into optimizer steps."""

    def __init__(
        self, policy: Policy, sampler: Sampler, slots: Slots, sides: Sequence[Side],
        train: TrainConfig, advantage: AdvantageConfig, optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler, runtime: Runtime,
    ):  # fmt: skip
        self._policy, self._sampler, self._slots = policy, sampler, slots
        self._sides, self._train, self._advantage = sides, train, advantage
        self._optimizer, self._scheduler, self._runtime = optimizer, scheduler, runtime
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
        return advantages(self._advantage, rollout.reward, rollout.valid, rollout.group)

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
            problem = problem or _first_problem(ready.batch, outcome)
            found |= _summaries(outcome)
        self._runtime.reduce_gradients(self._slots.trainable.values())
        norm = _clip(self._slots.trainable.values(), self._train.max_grad_norm)
        if problem is None and not math.isfinite(norm):
            problem = "the gradient norm is not finite"
        if drift is not None and drift > self._train.drift_tolerance:
            raise GenRLError(
                f"drift: the log-densities of the update differ from the recorded ones by up to "
                f"{drift:.3g} under the same weights (train.drift_tolerance is "
                f"{self._train.drift_tolerance:g}). The sampler does not score what it drew: check "
                "that temperature, guidance and every random choice enter log_prob as they "
                "entered sample, or raise the tolerance for low-precision networks"
            )
        if problem is None:
            self._optimizer.step()
            self._scheduler.step()
        else:
            self._optimizer.zero_grad(set_to_none=True)
        found |= {"loss": total, "grad_norm": norm, "skipped": float(problem is not None)}
        return found | ({} if drift is None else {"drift": drift}), problem

    def prepare(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        if side.view == "steps":
            return self._prepare_steps(side, rollout, advantage)
        if side.view in ("bound", "matching"):
            return self._prepare_draws(side, rollout, advantage, update)
        raise GenRLError(f"the view {side.view!r} has no gradient rule yet: use steps or bound")

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
        corruption = self._policy.corrupt(
            rollout.trajectory.final, rollout.streams(f"corrupt/{side.view}/{update}"), draws,
            update, self._train.num_updates,
        )  # fmt: skip
        view: BoundView | MatchingView
        trajectory = rollout.trajectory
        if side.view == "bound":
            view = BoundView(self._policy, trajectory, corruption, draws)
        else:
            view = MatchingView(
                self._policy, trajectory, corruption, draws, side.mixtures, self._others
            )
        weight = corruption.get("weight")
        own = torch.ones(draws, len(rollout.columns)) if weight is None else weight.cpu()
        weights = self._runtime.gather(own.to(_dtype(self._policy)), rollout.columns, total)
        combined = side.view == "bound" and self._policy.combine_draws
        ones = torch.ones(1 if combined else draws, total, dtype=weights.dtype)
        batch = Batch(
            log_probs=torch.zeros_like(ones), events=ones.long(), mask=ones.bool(),
            population=ones.bool(), scale=ones, weight=ones if combined else weights,
            step=torch.arange(len(ones)).unsqueeze(1).expand(ones.shape), draw_weight=weights,
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
    current = outcome.batch.log_probs[batch.mask & batch.valid]
    if not current.isfinite().all():
        return "a log-density of the update is not finite"
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
