"""Every trajectory of the enumerable policies, with its probability."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Tensors, Trajectory
from genrl_core.interfaces.sampler import MarkovSampler
from genrl_core.testing.enumerable import (
    DEVIATION,
    POSITIONS,
    STEPS,
    SYMBOLS,
    ToyCanvas,
    ToyCanvasSampler,
    ToyGaussian,
    ToyGaussianSampler,
    ToySequence,
    ToySequenceSampler,
)


def every_trajectory(policy: Policy, nodes: int = 12) -> tuple[Trajectory, Tensor]:
    """All trajectories of a toy and their probabilities ``[B]`` under its current weights.

    For the Gaussian toy the trajectories are the nodes of a Gauss-Hermite quadrature, exact for
    polynomials up to degree ``2 nodes - 1`` in each noise.
    """
    if isinstance(policy, ToySequence):
        tokens = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=2)))
        cond = {"length": torch.zeros(len(tokens), dtype=torch.int64)}
        found = ToySequenceSampler().record(policy, cond, tokens)
        return found, found.terms.log_probs.sum(0).exp()
    if isinstance(policy, ToyCanvas):
        paths = itertools.product(
            itertools.permutations(range(POSITIONS)), itertools.product((0, 1), repeat=POSITIONS)
        )
        pairs = [(order, symbols) for order, symbols in paths]
        place = torch.tensor([order for order, _ in pairs])
        token = torch.tensor([symbols for _, symbols in pairs])
        actions = [{"place": place[:, s], "token": token[:, s]} for s in range(POSITIONS)]
        found = follow(ToyCanvasSampler(), policy, actions)
        return found, found.terms.log_probs.sum(0).exp()
    assert isinstance(policy, ToyGaussian)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.tensor(list(itertools.product(points, repeat=STEPS)))
    probability = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=STEPS)))
    x, actions = torch.zeros(len(grid), dtype=torch.float64), []
    for step in range(STEPS):
        k = torch.full((len(grid),), step)
        x = policy.moments(x, k)[0].detach() + DEVIATION * grid[:, step]
        actions.append({"next": x})
    return follow(ToyGaussianSampler(), policy, actions), probability.prod(1)


def follow(sampler: MarkovSampler[Any], policy: Policy, actions: Sequence[Tensors]) -> Trajectory:
    """The trajectory of given actions, one entry per step: a rollout without its randomness."""
    count = len(next(iter(actions[0].values())))
    rows = torch.zeros(count, dtype=torch.int64)
    plan = Plan(0, 0, 0, (Prompt("toy", "toy"),), rows, torch.arange(count))
    with torch.no_grad():
        return sampler.walk(policy, {"length": rows}, plan, actions)
