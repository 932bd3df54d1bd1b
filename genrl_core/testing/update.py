"""One update without a run: rollouts of given trajectories, and a learner for them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Trajectory
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.preparation import Prepared, Side, sides_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.update import Learner
from genrl_core.loop.weights import WeightSets
from genrl_core.testing.enumerable import ToyReward


def rollout_of(
    trajectory: Trajectory, reward: Tensor, group: Tensor, weight: Tensor | None = None
) -> Rollout:
    """A rollout record of given trajectories: B samples with rewards and groups, ``[B]`` each.

    ``weight`` (``[B]``) multiplies every term of a sample in sums, not in denominators, so that a
    mean over B samples becomes an expectation when it is B times their probabilities.
    """
    count = len(reward)
    terms = trajectory.terms
    if weight is not None:
        terms = replace(terms, weight=weight.expand_as(terms.log_probs).to(terms.log_probs))
    # Every group has a prompt of its own, so that no two samples share a random stream.
    prompts = tuple(Prompt(f"group {g}", "toy") for g in range(int(group.max()) + 1))
    plan = Plan(0, 0, 0, prompts, group, torch.arange(count))
    return Rollout(
        replace(trajectory, terms=terms), torch.arange(count), terms, reward.double(),
        torch.ones(count, dtype=torch.bool), group, (plan,), Media("text", texts=("",) * count),
        tuple(plan.sample_prompts()), {}, None,
    )  # fmt: skip


def learner_for(
    policy: Policy, sampler: Sampler, objectives: Mapping[str, tuple[float, Objective]],
    weight_sets: WeightSets | None = None, advantage: AdvantageConfig | None = None,
    rate: float = 1.0,
    chance: Tensor | None = None, **train: object,
) -> Learner:  # fmt: skip
    """A learner with plain gradient descent, for tests that look at single updates.

    ``chance`` (``[B]``) multiplies the terms of the views elbo and denoising, as the ``weight`` of
    ``rollout_of`` does those of the steps. The view reward differentiates the toys' own.
    """
    weight_sets = weight_sets or WeightSets(policy)
    wanted = next(o.view for _, o in objectives.values() if o.view is not None)
    sides = sides_of((o.view or wanted, label, w, o) for label, (w, o) in objectives.items())
    fields = {"iterations": 1, "num_prompts": 1, "learning_rate": rate, "max_grad_norm": None}
    config = TrainConfig.model_validate(fields | train)
    optimizer = torch.optim.SGD(list(weight_sets.trainable.values()), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    learner = Learner if chance is None else partial(_WeighedLearner, chance)
    return learner(
        policy, sampler, weight_sets, sides, config, advantage or AdvantageConfig(), optimizer,
        scheduler, Runtime("cpu"), {"toy_reward": (1.0, ToyReward())},
    )  # fmt: skip


class _WeighedLearner(Learner):
    """Every sample counts as much as it is probable, on the views whose terms are drawn anew."""

    def __init__(self, chance: Tensor, *parts: Any):
        super().__init__(*parts)
        self._chance = chance

    def prepare(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        ready = super().prepare(side, rollout, advantage, update)
        if side.view == "steps":  # their terms carry it already
            return ready
        weight = ready.batch.weight * self._chance.to(ready.batch.weight)
        return replace(ready, batch=replace(ready.batch, weight=weight))
