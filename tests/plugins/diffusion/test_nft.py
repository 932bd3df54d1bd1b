"""DiffusionNFT's adaptive weight, against the paper's loss written out in plain torch."""

import pytest
import torch

from genrl_core import load_recipe
from genrl_core.interfaces.records import Terms, Trajectory
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.check import find_problems
from genrl_core.registry import Registry
from genrl_core.testing import AdvantageConfig, learner_for, rollout_of
from genrl_objectives import NftConfig

DRAWS, BETA, LIMIT = 3, 0.5, 5.0


def clean(kind, prediction, x, alpha, sigma):
    """The clean sample that a prediction implies of ``x = alpha x0 + sigma eps``."""
    return {
        "velocity": lambda: x - sigma * prediction,  # alpha + sigma is 1 there
        "v": lambda: alpha * x - sigma * prediction,
        "epsilon": lambda: (x - sigma * prediction) / alpha,
        "sample": lambda: prediction,
    }[kind]()


def wanted(policy, weight_sets, x0, share, cond, made):
    """Arxiv 2509.16117 with ``mean (x0_hat - x0)^2 / sg(mean |x0_hat - x0|)``, times its scale."""
    loss = 0.0
    for time, noise in zip(made["time"], made["noise"], strict=True):
        alpha, sigma = (f.view(-1, 1, 1) for f in policy.alpha_sigma(time))
        x = alpha * x0 + sigma * noise
        current = policy.predict(x, time, cond)
        with weight_sets.using("lagging"), torch.no_grad():
            old = policy.predict(x, time, cond)
        for part, factor in ((share, BETA), (1 - share, -BETA)):
            mixed = factor * current + (1 - factor) * old
            gap = clean(policy.prediction, mixed, x, alpha, sigma) - x0
            error = gap.square().mean((1, 2)) / gap.abs().mean((1, 2)).detach()
            loss = loss + (part * error).mean() / DRAWS
    return LIMIT / BETA * loss


@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.parametrize("kind", ["velocity", "v", "epsilon", "sample"])
def test_normalised_errors_are_those_of_the_clean_sample(make_policy, kind, rows):
    policy = make_policy(prediction=kind)
    noise = torch.Generator().manual_seed(0)
    (weight_sets := WeightSets(policy)).snapshot("lagging")
    weights = list(policy.network.parameters())
    with torch.no_grad():
        for parameter in weights:
            parameter.add_(0.1)
    start = [parameter.detach().clone() for parameter in weights]
    x0 = torch.randn(8, 2, 3, generator=noise, dtype=torch.float64)
    reward = torch.randn(8, generator=noise, dtype=torch.float64)
    cond, corrupt, made = {"prompt": torch.ones(8, dtype=torch.int64)}, policy.corrupt, {}
    policy.corrupt = lambda *args: made | (made.update(corrupt(*args)) or made)
    nft = NftConfig(beta=BETA, advantage_clip=LIMIT, pull=0.0, normalize=True).build()
    learner = learner_for(
        policy, None, {"nft": (1.0, nft)}, weight_sets, AdvantageConfig(), draws=DRAWS,
        micro_batch_size=rows, views="denoising",
    )  # fmt: skip
    trajectory = Trajectory(cond, {}, {"latents": x0}, Terms.empty(8))
    learner.learn(rollout_of(trajectory, reward, torch.arange(8) // 4), 0, 0)
    found = [before - after.detach() for before, after in zip(start, weights, strict=True)]
    with torch.no_grad():
        for parameter, before in zip(weights, start, strict=True):
            parameter.copy_(before)
    groups = reward.view(2, 4)
    advantage = (groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)
    share = 0.5 + advantage.flatten().clamp(-LIMIT, LIMIT) / (2 * LIMIT)
    right = torch.autograd.grad(wanted(policy, weight_sets, x0, share, cond, made), weights)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_what_implies_no_clean_sample_is_refused_before_anything_loads():
    tree = {"extends": "digits/masked", "objective": {"grpo": None, "nft": {"normalize": True}}}
    problems = find_problems(load_recipe(tree, [], Registry.discover()))
    assert any("clean sample" in problem.message for problem in problems)
