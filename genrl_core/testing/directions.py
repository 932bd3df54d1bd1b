"""Which way an objective moves the enumerable toys: its mean update against the exact gradient."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from genrl_core.interfaces.configs import ObjectiveConfig
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import ViewName
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Tensors, Trajectory
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.objectives import build_objective
from genrl_core.loop.plan import plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing.enumerable import ToyReward
from genrl_core.testing.trajectories import every_trajectory
from genrl_core.testing.update import learner_for, rollout_of

GROUPS, SIZE = 128, 8
"""How many groups of how many samples a mean update is taken over."""
LEAST = 0.9
"""The cosine that an objective needs whose expected update is meant to be the gradient."""


def check_objective(
    config: ObjectiveConfig, policy: Policy, sampler: Sampler, view: ViewName, *, seed: int = 0,
    exact: Tensors | None = None,
) -> float:  # fmt: skip
    """Whether an objective climbs: the cosine of its mean update with the gradient of E[reward].

    It must be above ``LEAST`` where the config says ``on_policy_gradient`` and the view holds exact
    log-densities: in ``steps``, and in ``elbo`` where the toy's bound is its log-likelihood. All
    other objectives have to be above 0. Advantages are those that the config's defaults give.
    Coordinates that move no sample (a value's, those of states never reached) do not count.

    Args:
        config: an objective that learns from rewards; ``view`` is one that it can be asked for.
        policy, sampler: a toy, under weights of which it is its own ``reference`` and ``lagging``
            too.
        seed: of the samples.
        exact: ``reward_gradient(policy)``, where it is known already.

    Raises:
        ValueError: the objective reads no reward, so that no direction is right or wrong.
        AssertionError: it points elsewhere, with the cosine.
    """
    if not config.uses_reward:
        raise ValueError(
            f"{type(config).__name__} reads no reward: compare its update with a closed form"
        )
    found = mean_update(config, policy, sampler, view, seed=seed)
    cosine = cosine_of(found, reward_gradient(policy) if exact is None else exact)
    follows = config.on_policy_gradient and (view == "steps" or bound_is_likelihood(policy))
    least = LEAST if follows else 0.0
    assert cosine > least, (
        f"{type(config).__name__} in the view {view} moves {type(policy).__name__} with cosine "
        f"{cosine:.3f} to the gradient of the expected reward; expected more than {least:g}"
    )
    return cosine


def cosine_of(update: Tensors, gradient: Tensors) -> float:
    """The cosine of two sets of tensors, over the coordinates where ``gradient`` is not 0."""
    flat = torch.cat([gradient[name].flatten() for name in gradient])
    moved = torch.cat([update[name].flatten() for name in gradient])
    counted = flat.abs() > 1e-9
    assert counted.any(), "the gradient is 0 everywhere"
    return float(torch.cosine_similarity(moved[counted], flat[counted], 0))


def reward_gradient(policy: Policy, step: float = 1e-5) -> Tensors:
    """D E[toy reward] / d parameter, by central differences of the sum over all trajectories.

    No log-density enters: only the probabilities, or for the Gaussian toy the paths of fixed noise.
    """
    moved = copy.deepcopy(policy)
    found: Tensors = {}
    with torch.no_grad():
        for name, parameter in moved.network.named_parameters():
            flat = parameter.view(-1)
            slope = torch.zeros_like(flat)
            for place in range(len(flat)):
                start = float(flat[place])
                values = []
                for shift in (step, -step):
                    flat[place] = start + shift
                    values.append(_expected_reward(moved))
                flat[place] = start
                slope[place] = (values[0] - values[1]) / (2 * step)
            found[name] = slope.view_as(parameter)
    return found


def mean_update(
    config: ObjectiveConfig, policy: Policy, sampler: Sampler, view: ViewName, *,
    groups: int = GROUPS, size: int = SIZE, seed: int = 0,
) -> Tensors:  # fmt: skip
    """What one optimizer step over ``groups`` groups of ``size`` samples adds to the parameters.

    The samples are a Latin hypercube over all trajectories: place j of the groups together holds
    every trajectory as often as its probability says, in random order. The step goes through the
    learner of a training run, at a learning rate of 1, on a copy of the policy.
    """
    own = copy.deepcopy(policy)
    weight_sets = WeightSets(own)
    for name in ("reference", "lagging"):
        weight_sets.snapshot(name)
    objective = build_objective("it", config)
    advantage = AdvantageConfig.model_validate(config.advantage_defaults)
    learner = learner_for(
        own,
        sampler,
        {"it": (1.0, objective)},
        weight_sets,
        advantage,
        views=view,
        micro_batch_size=10**6,
    )
    before = {name: p.detach().clone() for name, p in own.network.named_parameters()}
    rollout = _samples(own, groups, size, seed)
    # The view reward draws its samples anew, from random streams that these do not come from.
    learner.learn(replace(rollout, on_policy=view != "reward"), seed, 0)
    return {name: p.detach() - before[name] for name, p in own.network.named_parameters()}


def bound_is_likelihood(policy: Policy) -> bool:
    """Whether a toy's bound is the exact log-likelihood of its trajectories."""
    trajectory, _ = every_trajectory(policy)
    count = len(trajectory)
    streams = plan_of(0, 0, 0, (Prompt("toy", "toy"),), count).streams("corrupt")
    drawn = {n: t[0] for n, t in policy.corrupt(trajectory.final, streams, 1, 0, 1).items()}
    with torch.no_grad():
        bound = policy.elbo(trajectory.final, trajectory.cond, drawn)
    return torch.allclose(bound.sum(1), trajectory.terms.log_probs.sum(0))


def _expected_reward(policy: Policy) -> float:
    trajectory, probability = every_trajectory(policy)
    return float((probability * _rewards(policy, trajectory)).sum())


def _rewards(policy: Policy, trajectory: Trajectory) -> Tensor:
    texts = policy.decode(trajectory.final)
    return torch.tensor(ToyReward()(texts, []), dtype=torch.float64)


def _samples(policy: Policy, groups: int, size: int, seed: int) -> Rollout:
    group = torch.arange(groups).repeat_interleave(size)
    every, probability = every_trajectory(policy)
    generator = torch.Generator().manual_seed(seed)
    share = (torch.arange(groups, dtype=torch.float64) + 0.5) / groups
    places = [share[torch.randperm(groups, generator=generator)] for _ in range(size)]
    cumulative = probability.cumsum(0) / probability.sum()
    drawn = torch.searchsorted(cumulative, torch.stack(places, 1).flatten())
    trajectory = every.select(drawn.clamp(max=len(every) - 1))
    return rollout_of(trajectory, _rewards(policy, trajectory), group)
