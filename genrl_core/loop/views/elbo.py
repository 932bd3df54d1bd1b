"""The view ``elbo``: a lower bound on the log-likelihood of the finished samples."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Tensors, Trajectory, select_rows, split_evals
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views.common import (
    Context,
    Prepared,
    View,
    Wanted,
    filled,
    make_batch,
    padded,
)
from genrl_core.loop.weights import REFERENCE


@dataclass(frozen=True)
class ElboView(View):
    """An ELBO of the finished samples, on corruptions shared by all weight sets.

    The M terms of the draws are all separate, ``[D * M, B]``, or with ``policy.combine_draws`` M
    weighted means over the draws, ``[M, B]``; a term that a draw lacks counts as 0 in its mean.

    Attributes:
        corruption: of ``Policy.corrupt``, name -> ``[D, b, ...]``.
        num_evals: D.
        per_draw: M of all ranks' samples.
    """

    name = "elbo"
    capability = Capability.ELBO
    gives = frozenset({"old_log_probs", "reference"})

    policy: Policy
    trajectory: Trajectory
    corruption: Tensors
    num_evals: int
    per_draw: int

    @classmethod
    def prepare(
        cls, wanted: Wanted, rollout: Rollout, advantage: Tensor, update: int, context: Context
    ) -> Prepared:
        policy, draws = context.policy, context.train.draws
        # The streams are named as in older runs, so that these can be repeated.
        corruption, weights, events = corrupted("corrupt/bound", rollout, update, context)
        view = cls(policy, rollout.trajectory, corruption, draws, events.shape[1])
        terms = draw_terms(events, weights, policy.combine_draws)
        batch = draws_batch(cls.name, rollout, advantage, terms, weights)
        recorded = None
        if "old_log_probs" in wanted.needs:
            recorded = context.evaluate(view, batch, rollout)
            old = view.with_current(batch, recorded).log_probs
            batch = replace(batch, old_log_probs=old, log_probs=old)
        if "reference" in wanted.needs:
            reference = context.log_probs_under(REFERENCE, view, batch, rollout)
            batch = replace(batch, reference=reference)
        # A mean over several draws is no sum over rows.
        return Prepared(view, batch, recorded, separable=not policy.combine_draws or draws == 1)

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        final, cond = select_rows(self.trajectory.final, b), select_rows(self.trajectory.cond, b)
        found = self.policy.elbo(final, cond, corruption_rows(self.corruption, k, b))
        return {"log_probs": padded(found, self.per_draw)}

    def fill_values(self, batch: Batch) -> Tensors:
        return filled(batch, ["log_probs"], self.num_evals * self.per_draw)

    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        draws = values["log_probs"]
        if not self.policy.combine_draws:
            return replace(batch, log_probs=draws)
        weighted = split_evals(draws, self.num_evals) * batch.need("draw_weight").unsqueeze(1)
        return replace(batch, log_probs=weighted.mean(0))


def corrupted(
    purpose: str, rollout: Rollout, update: int, context: Context
) -> tuple[Tensors, Tensor, Tensor]:
    """This rank's corruptions, and of all ranks the weight ``[D, B]`` and events ``[D, M, B]``.

    Args:
        purpose: the name of the random streams that they are drawn from.
        rollout, update, context: as for ``View.prepare``.
    """
    train = context.train
    streams = rollout.streams(f"{purpose}/{update}").joined(rollout.streams(purpose))
    final = rollout.trajectory.final
    corruption = context.policy.corrupt(final, streams, train.draws, update, train.num_updates)
    gather = partial(
        context.runtime.gather, sample_index=rollout.sample_index, total=len(rollout.reward)
    )
    own = corruption.get("weight", torch.ones(train.draws, len(rollout.sample_index))).cpu()
    events = torch.ones(train.draws, 1, len(rollout.reward), dtype=torch.int64)
    weights = gather(own.to(context.dtype))
    if (given := corruption.get("events")) is not None:
        events = gather(given.transpose(1, 2).cpu())
    return corruption, weights, events


def corruption_rows(corruption: Tensors, k: Tensor, b: Tensor) -> Tensors:
    """The rows (draw, sample) of what the policy itself reads of a corruption."""
    return {n: t[k, b] for n, t in corruption.items() if n not in ("weight", "events")}


DrawTerms = tuple[Tensor, Tensor, Tensor]


def draw_terms(events: Tensor, weight: Tensor, combined: bool) -> DrawTerms:
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
    weights = weight.unsqueeze(1).expand(events.shape)
    return events.flatten(0, 1), weights.flatten(0, 1), step.flatten(0, 1)


def draws_batch(
    view: str, rollout: Rollout, advantage: Tensor, terms: DrawTerms, draw_weight: Tensor
) -> Batch:
    """The batch of a view whose terms are draws of a corruption."""
    events, weight, step = terms
    mask = events > 0
    return make_batch(
        view, rollout, advantage, torch.ones_like(weight), events=events, mask=mask,
        denominator_mask=mask, weight=weight, step=step, draw_weight=draw_weight,
    )  # fmt: skip
