"""One update of a learner by the two-pass rule, and the same by a single backward pass.

Tests import it by its own name (``pythonpath`` in pyproject.toml): ``from updates import moved``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import SingleUpdates, ToyReward, learner_for, rollout_of

ADVANTAGE = AdvantageConfig(scale="batch_std")
PROMPTS = tuple(Prompt(str(i), "toy") for i in range(3))


def moved(
    policy: Policy, sampler: Sampler, members: Mapping[str, tuple[float, Objective]], *,
    views: str | Mapping[str, str] = "steps", moves: bool = True, **train: object,
) -> tuple[SingleUpdates, Rollout]:  # fmt: skip
    """A learner, and a rollout of 3 groups of 4 samples whose weights have moved since.

    The weights that drew are the reference and the lagging ones. ``moves=False`` leaves the policy
    where it was: on policy, or for the view reward, which draws its samples again.
    """
    weight_sets = WeightSets(policy)
    for name in ("reference", "lagging"):
        weight_sets.snapshot(name)
    plan = plan_of(3, 0, 0, PROMPTS, 4)
    trajectory, media = generate(policy, sampler, plan, 99)
    if moves:
        with torch.no_grad():
            policy.network.table.mul_(1.3).add_(0.2 * policy.network.table.cos())
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    rollout = replace(rollout_of(trajectory, reward, plan.group), parts=(plan,), on_policy=False)
    settings: dict[str, object] = {"draws": 2, "drift_tolerance": 1e-9}
    learner = learner_for(
        policy, sampler, members, weight_sets, ADVANTAGE, views=views, **settings | train
    )
    return learner, rollout


def table_of(learner: SingleUpdates) -> Tensor:
    """The parameters of a toy's network."""
    found: Tensor = learner.learner.context.policy.network.table
    return found


@contextmanager
def called_separable(objectives: Sequence[Objective], claim: bool) -> Iterator[None]:
    """Objectives say for a while that their loss is a sum over terms, or that it is not."""
    before = [objective.separable for objective in objectives]
    for objective in objectives:
        objective.separable = claim
    try:
        yield
    finally:
        for objective, said in zip(objectives, before, strict=True):
            objective.separable = said


def update(learner: SingleUpdates, rollout: Rollout) -> Tensor:
    """What one learn() subtracts from the table."""
    table = table_of(learner)
    before = table.detach().clone()
    _, problem = learner.learn(rollout, 0, 0)
    assert problem is None
    return before - table.detach()


def one_pass(learner: SingleUpdates, rollout: Rollout) -> Tensor:
    """The same update by a single backward through the graph of the whole batch."""
    total = torch.zeros((), dtype=torch.float64)
    for group, ready in zip(learner.learner.groups, learner.prepare(rollout), strict=True):
        blank = ready.view.fill_values(ready.batch)
        rows, samples = next(iter(blank.values())).shape
        calls = ready.view.num_evals
        k = torch.arange(calls).repeat_interleave(samples)
        b = torch.arange(samples).repeat(calls)
        place = (k.unsqueeze(1) * (rows // calls) + torch.arange(rows // calls), b.unsqueeze(1))
        fresh = ready.view.evaluate(k, b)
        values = {n: matrix.index_put(place, fresh[n]) for n, matrix in blank.items()}
        total = total + group.loss(ready.view.with_current(ready.batch, values))[0]
    (gradient,) = torch.autograd.grad(total, table_of(learner))
    return gradient
