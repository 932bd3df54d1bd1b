"""One iteration's learning: advantages, minibatches, and the optimizer steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop import gradient
from genrl_core.loop.advantage import PromptStatistics, advantages, normalised_then_summed
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.plan import permutation
from genrl_core.loop.precision import DRIFT_TOLERANCE
from genrl_core.loop.preparation import Prepared, Preparer, Side
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.weights import WeightSets

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


class Learner:
    """Turns a rollout into optimizer steps.

    Attributes:
        statistics: what it remembers of each prompt's rewards; part of a checkpoint.
        skipped: optimizer steps in a row that something not finite has held back; part of one too.
    """

    def __init__(
        self, policy: Policy, sampler: Sampler, weight_sets: WeightSets, sides: Sequence[Side],
        train: TrainConfig, advantage: AdvantageConfig, optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler, runtime: Runtime,
        rewards: Mapping[str, tuple[float, Reward]] | None = None,
    ):  # fmt: skip
        self._policy, self._sampler, self._weight_sets = policy, sampler, weight_sets
        self._sides, self._train, self._advantage = sides, train, advantage
        self._optimizer, self._scheduler, self._runtime = optimizer, scheduler, runtime
        self._prepare = Preparer(
            policy, sampler, weight_sets, train, runtime, rewards or {}, advantage
        )
        self.statistics = PromptStatistics(advantage)
        self.skipped = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an iteration that keeps all its groups."""
        return self._train.num_updates * self._train.num_minibatches

    def learn(
        self, rollout: Rollout, seed: int, iteration: int
    ) -> tuple[dict[str, float], str | None]:
        """All updates of one iteration.

        A step in which no objective of the mix has a gradient moves nothing, neither by momentum
        nor by weight decay, nor the schedule. The metric ``empty`` counts such steps.

        Returns:
            The metrics of its optimizer steps, averaged, and what made one of them be skipped.

        Raises:
            GenRLError: the drift exceeds ``train.drift_tolerance``.
        """
        if rollout.problem is not None:
            self.skipped += self.steps
            return {"skipped": 1.0, "empty": 0.0}, rollout.problem
        if not rollout.valid.any():
            return {"skipped": 1.0, "empty": 1.0}, None
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
            order = torch.tensor(permutation(seed, "minibatch", iteration, update, size=groups))
            for chosen in order.tensor_split(min(self._train.num_minibatches, groups)):
                inside = torch.isin(rollout.group, chosen)
                fresh = rollout.on_policy and not history
                found, problem = self._step(prepared, rollout, inside, fresh)
                history.append(found)
                problems += [problem] if problem else []
                if problem or not found["skipped"]:
                    self.skipped = self.skipped + 1 if problem else 0
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
        total, drift, problem, moves = 0.0, None, None, False
        for side, ready in zip(self._sides, prepared, strict=True):
            outcome = gradient.accumulate(
                ready.view, replace(ready.batch, valid=ready.batch.valid & inside), side.loss,
                rollout.sample_index, self._runtime,
                separable=side.separable and not _combined(ready),
                micro_batch_size=self._train.micro_batch_size,
                recorded=ready.recorded if fresh else None,
            )  # fmt: skip
            total += outcome.loss
            moves |= outcome.moves
            if outcome.drift is not None:
                drift = _largest([drift or 0.0, outcome.drift])
                self._check_drift(side.view, outcome.drift)
            problem = problem or _first_problem(ready.batch, outcome)
            _add_metrics(found, outcome)
        self._runtime.reduce_gradients(self._weight_sets.trainable.values())
        norm = _clip(self._weight_sets.trainable.values(), self._train.max_grad_norm)
        if problem is None and not math.isfinite(norm):
            problem = "the gradient norm is not finite"
        taken = problem is None and moves
        if taken:
            self._optimizer.step()
            self._scheduler.step()
        # Their memory is the next rollout's.
        self._optimizer.zero_grad(set_to_none=True)
        found |= {"loss": total, "grad_norm": norm, "skipped": float(not taken)}
        found["empty"] = float(problem is None and not moves)
        return found | ({} if drift is None else {"drift": drift}), problem

    def _check_drift(self, view: str, drift: float) -> None:
        precision = self._policy.precision
        tolerance = self._train.drift_tolerance or DRIFT_TOLERANCE.get(precision, 1e-3)
        if drift > tolerance:
            what, why = _DRIFTS.get(view, _DRIFTS["steps"])
            raise GenRLError(
                f"drift: the {what} of the update differ from the recorded ones by up to "
                f"{drift:.3g} under the same weights (train.drift_tolerance is {tolerance:g}; the "
                f"network computes in {str(precision).removeprefix('torch.')}). {why}, or raise "
                "the tolerance for low-precision networks"
            )

    def prepare(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        """One side at one update, see ``Preparer``."""
        return self._prepare(side, rollout, advantage, update)


def _combined(ready: Prepared) -> bool:
    blank = next(iter(ready.view.blank(ready.batch).values()))
    return blank.shape != ready.batch.mask.shape


def _clip(parameters: Any, limit: float | None) -> float:
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    return float(norm)


def _first_problem(batch: Batch, outcome: gradient.Outcome) -> str | None:
    """The first link of the chain that is not finite; all are looked at in one wait."""
    links = {
        "a number in old": batch.old_log_probs, "a number in reference": batch.reference,
        "a number in advantage": batch.advantage,
        "a log-density of the update": outcome.batch.log_probs,
        "a differentiable reward": outcome.batch.differentiable_reward,
    }  # fmt: skip
    known = {name: values for name, values in links.items() if values is not None}
    outside = ~(batch.mask & batch.valid)
    finite = torch.stack([(v.isfinite() | outside).all() for v in known.values()]).tolist()
    for name, good in zip(known, finite, strict=True):
        if not good:
            return f"{name} is not finite"
    return None if math.isfinite(outcome.loss) else "the loss is not finite"


def _add_metrics(found: dict[str, float], outcome: gradient.Outcome) -> None:
    """Means (maxima of ``_max``) over the trained entries; a name that is taken gets its label."""
    batch = outcome.batch
    trained = batch.mask & batch.valid
    for full, metric in outcome.metrics.items():
        name = full.partition("/")[2]
        kept = metric[batch.valid] if metric.dim() == 1 else metric[trained]
        if len(kept):
            value = kept.max() if name.endswith("_max") else kept.double().mean()
            found[full if name in found else name] = float(value)
    if batch.entropy is not None and trained.any():
        found["entropy"] = float(batch.entropy[trained].mean())


def _largest(values: Sequence[float]) -> float:
    """The largest; NaN wins, which ``max`` loses where another number comes first."""
    return max(values, key=lambda value: (math.isnan(value), value))


def _average(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps; maxima of what is a maximum."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for step in history for name in step):
        values = [step[name] for step in history if name in step]
        if name.endswith("_max") or name == "drift":
            found[name] = _largest(values)
        else:
            found[name] = sum(values) / len(values)
    return found
