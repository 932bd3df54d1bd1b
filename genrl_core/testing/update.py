"""One update without a run: rollouts of given trajectories, and a learner for them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Trajectory
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.advantage import Advantages
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.objectives import group_objectives
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.update import Learner
from genrl_core.loop.views import Context, Prepared, View, view_class
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
        trajectory=replace(trajectory, terms=terms), sample_index=torch.arange(count), terms=terms,
        reward=reward.double(), valid=torch.ones(count, dtype=torch.bool), group=group,
        parts=(plan,), media=Media("text", texts=("",) * count),
        prompts=tuple(plan.sample_prompts()),
    )  # fmt: skip


@dataclass
class SingleUpdates:
    """A learner without a run: what tests look at one update through.

    Attributes:
        learner: of the training loop, with plain gradient descent.
        advantages: the section ``advantage`` at work.
    """

    learner: Learner
    advantages: Advantages

    def learn(
        self, rollout: Rollout, seed: int = 0, iteration: int = 0
    ) -> tuple[dict[str, float], str | None]:
        """All updates of an iteration, as a trainer makes them."""
        return self.learner.learn(rollout, self.advantages(rollout), seed, iteration)

    def prepare(self, rollout: Rollout, update: int = 0) -> list[Prepared]:
        """What an update begins with, group by group."""
        advantage = self.advantages(rollout)
        groups = self.learner.groups
        return [self.learner.prepare(group, rollout, advantage, update) for group in groups]


def learner_for(
    policy: Policy, sampler: Sampler, objectives: Mapping[str, tuple[float, Objective]],
    weight_sets: WeightSets | None = None, advantage: AdvantageConfig | None = None,
    rate: float = 1.0, chance: Tensor | None = None, *,
    views: str | Mapping[str, str] = "steps", **train: object,
) -> SingleUpdates:  # fmt: skip
    """A learner with plain gradient descent, for tests that look at single updates.

    Args:
        policy, sampler: of whom rollouts are.
        objectives: label -> (weight, objective).
        weight_sets: with what the objectives compare with; silent: the current weights alone.
        advantage: the section; silent: its defaults.
        rate: the learning rate.
        chance: ``[B]``, multiplies the terms of the views elbo and denoising, as the ``weight`` of
            ``rollout_of`` does those of the steps.
        views: of all objectives, or label -> view.
        train: fields of the section ``train``.

    The view reward differentiates the toys' own.
    """
    weight_sets = weight_sets or WeightSets(policy)
    named = {label: views if isinstance(views, str) else views[label] for label in objectives}
    groups = group_objectives(
        (weighed(named[label], chance), label, w, o) for label, (w, o) in objectives.items()
    )
    fields = {"iterations": 1, "num_prompts": 1, "learning_rate": rate, "max_grad_norm": None}
    settings = advantage or AdvantageConfig()
    context = Context(
        policy, sampler, weight_sets, TrainConfig.model_validate(fields | train), settings,
        Runtime("cpu"), {"toy_reward": (1.0, ToyReward())},
    )  # fmt: skip
    optimizer = torch.optim.SGD(list(weight_sets.trainable.values()), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return SingleUpdates(Learner(groups, context, optimizer, scheduler), Advantages(settings))


@cache
def _weighed(view: type[View], chance: Tensor) -> type[View]:
    class Weighed(view):  # type: ignore[misc,valid-type]  # a class made of another
        @classmethod
        def prepare(cls, *given: Any) -> Prepared:
            ready = view.prepare(*given)
            weight = ready.batch.weight * chance.to(ready.batch.weight)
            return replace(ready, batch=replace(ready.batch, weight=weight))

    return Weighed


def weighed(name: str, chance: Tensor | None) -> type[View]:
    """A view whose samples count as much as they are probable, where its terms are drawn anew.

    The terms of the view ``steps`` carry their weight already.
    """
    view = view_class(name)
    return view if chance is None or name == "steps" else _weighed(view, chance)
