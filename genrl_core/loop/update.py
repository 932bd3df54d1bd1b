"""One iteration's learning: views are prepared, then minibatches take optimizer steps."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.loop import gradient
from genrl_core.loop.metrics import Scalar, largest, over_steps, scalars
from genrl_core.loop.objectives import ObjectiveGroup
from genrl_core.loop.plan import permutation
from genrl_core.loop.precision import DRIFT_TOLERANCE
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views import Context, Prepared, View, Wanted

Step = dict[str, Scalar]


class Learner:
    """Turns a rollout and its advantages into optimizer steps.

    Attributes:
        skipped: optimizer steps in a row that something not finite has held back.
    """

    def __init__(
        self, groups: Sequence[ObjectiveGroup], context: Context,
        optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler,
    ):  # fmt: skip
        self.groups, self.context = groups, context
        self.optimizer, self.scheduler = optimizer, scheduler
        self.skipped = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an iteration that keeps all its groups."""
        return self.context.train.num_updates * self.context.train.num_minibatches

    def learn(
        self, rollout: Rollout, advantage: Tensor, seed: int, iteration: int
    ) -> tuple[dict[str, float], str | None]:
        """All updates of one iteration.

        A step in which no objective of the mix has a gradient moves nothing, neither by momentum
        nor by weight decay, nor the schedule. The metric ``empty`` counts such steps.

        Args:
            rollout: the samples.
            advantage: ``[B]`` float64; not read where nothing can be learned.
            seed, iteration: decide which groups share a minibatch.

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
        train = self.context.train
        updates = self._prepare(rollout, advantage)
        history: list[Step] = []
        problems: list[str] = []
        groups = int(rollout.group.max()) + 1
        for update, prepared in enumerate(updates):
            order = torch.tensor(permutation(seed, "minibatch", iteration, update, size=groups))
            for chosen in order.tensor_split(min(train.num_minibatches, groups)):
                inside = torch.isin(rollout.group, chosen)
                fresh = rollout.on_policy and not history
                found, problem = self._step(prepared, rollout, inside, fresh)
                history.append(found)
                problems += [problem] if problem else []
                if problem or not found["skipped"].value:
                    self.skipped = self.skipped + 1 if problem else 0
        deviation = float(advantage[rollout.valid].std(correction=0))
        return over_steps(history) | {"advantage_std": deviation}, next(iter(problems), None)

    def _prepare(self, rollout: Rollout, advantage: Tensor) -> list[list[Prepared]]:
        """The views of all updates: behavior and reference weights are asked before any step."""
        updates: list[list[Prepared]] = []
        for update in range(self.context.train.num_updates):
            updates.append([
                self.prepare(group, rollout, advantage, update)
                if not update or group.view.changes_by_update() else updates[0][place]
                for place, group in enumerate(self.groups)
            ])  # fmt: skip
        return updates

    def prepare(
        self, group: ObjectiveGroup, rollout: Rollout, advantage: Tensor, update: int
    ) -> Prepared:
        """The view of one group at an update."""
        backprop = group.backprop if group.view.name == "reward" else None
        wanted = Wanted(group.needs, group.mixtures, backprop)
        return group.view.prepare(wanted, rollout, advantage, update, self.context)

    def _step(
        self, prepared: Sequence[Prepared], rollout: Rollout, inside: Tensor, fresh: bool
    ) -> tuple[Step, str | None]:
        """One optimizer step on the groups ``inside``."""
        context, parameters = self.context, list(self.context.weight_sets.trainable.values())
        self.optimizer.zero_grad(set_to_none=True)
        outcomes: list[gradient.Outcome] = []
        for group, ready in zip(self.groups, prepared, strict=True):
            outcomes.append(gradient.accumulate(
                ready.view, replace(ready.batch, valid=ready.batch.valid & inside), group.loss,
                rollout.sample_index, context.runtime,
                separable=group.separable and ready.separable,
                micro_batch_size=context.train.micro_batch_size,
                recorded=ready.recorded if fresh else None,
            ))  # fmt: skip
            self._check_drift(group.view, outcomes[-1].drift)
        context.runtime.reduce_gradients(parameters)
        limit = context.train.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))
        found = [_first_problem(r.batch, o) for r, o in zip(prepared, outcomes, strict=True)]
        problem = next(filter(None, found), None)
        if problem is None and not math.isfinite(norm):
            problem = "the gradient norm is not finite"
        moves = any(outcome.moves for outcome in outcomes)
        taken = problem is None and moves
        if taken:
            self.optimizer.step()
            self.scheduler.step()
        # The next rollout needs the memory of the gradients.
        self.optimizer.zero_grad(set_to_none=True)
        step = scalars(outcomes) | {
            "loss": Scalar(sum(outcome.loss for outcome in outcomes)), "grad_norm": Scalar(norm),
            "skipped": Scalar(float(not taken)),
            "empty": Scalar(float(problem is None and not moves)),
        }  # fmt: skip
        drifts = [outcome.drift for outcome in outcomes if outcome.drift is not None]
        if drifts:
            step["drift"] = Scalar(largest(drifts), "max")
        return step, problem

    def _check_drift(self, view: type[View], drift: float | None) -> None:
        precision = self.context.policy.precision
        tolerance = self.context.train.drift_tolerance or DRIFT_TOLERANCE.get(precision, 1e-3)
        if drift is not None and drift > tolerance:
            what, why = view.compared
            raise GenRLError(
                f"drift: the {what} of the update differ from the recorded ones by up to "
                f"{drift:.3g} under the same weights (train.drift_tolerance is {tolerance:g}; the "
                f"network computes in {str(precision).removeprefix('torch.')}). {why}, or raise "
                "the tolerance for low-precision networks"
            )


def _first_problem(batch: Batch, outcome: gradient.Outcome) -> str | None:
    """The first link of the chain that is not finite; all are looked at in one wait."""
    links = {
        "a number in old_log_probs": batch.old_log_probs,
        "a number in reference": batch.reference,
        "a number in advantage": batch.advantage,
        "a log-density of the update": outcome.batch.log_probs,
        "a differentiable reward": outcome.batch.differentiable_reward,
    }
    known = {name: values for name, values in links.items() if values is not None}
    outside = ~(batch.mask & batch.valid)
    finite = torch.stack([(v.isfinite() | outside).all() for v in known.values()]).tolist()
    for name, good in zip(known, finite, strict=True):
        if not good:
            return f"{name} is not finite"
    return None if math.isfinite(outcome.loss) else "the loss is not finite"
