"""Which way every objective moves the enumerable toys on average, and closed forms of that."""

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core import Batch, Objective, ObjectiveConfig, Policy, Sampler, Trajectory
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import ToyReward, every_trajectory, expected_update, toys

Make = Callable[..., ObjectiveConfig]
NAMES = ["sequence", "canvas", "gaussian"]
ALONE = AdvantageConfig(baseline="none", scale="none")
CENTRED = AdvantageConfig(baseline="group_mean", scale="none")
RATIOS = [
    "reinforce", "grpo", "dr_grpo", "dapo", "bnpo", "gspo", "gmpo", "cispo", "sapo", "rloo",
    "reinforce_pp", "grpo_guard", "flow_dppo",
]  # fmt: skip
PAIRS = [
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down",
]  # fmt: skip


def core_tests() -> Any:
    """The core's tests of exact gradients, for their derivative of the expected reward."""
    path = Path(__file__).parents[2] / "core" / "test_exact_gradients.py"
    spec = importlib.util.spec_from_file_location("core_exact_gradients", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


exact_gradient = core_tests().exact_gradient


def with_slots(policy: Policy) -> WeightSets:
    weight_sets = WeightSets(policy)
    for name in ("reference", "lagging"):
        weight_sets.snapshot(name)
    return weight_sets


class PerGroup(Objective):
    """The expectation of an objective that sees one group at a time: losses weighted by chance.

    Objectives that couple samples cannot take the probabilities as weights of their terms, as
    ``expected_update`` does for the others.
    """

    separable = False

    def __init__(self, inner: Objective, chance: Tensor):
        self.needs, self.mixtures = inner.needs, inner.mixtures
        self._inner, self._chance = inner, chance

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, size = len(batch.group), len(batch.group) // len(self._chance)
        # What the terms carry are the probabilities: without them, ones, or the draws' own weights.
        own_weight = torch.ones_like(batch.weight)
        if batch.draw_weight is not None and batch.draw_weight.shape == own_weight.shape:
            own_weight = batch.draw_weight
        batch = replace(batch, weight=own_weight)
        losses = []
        for first in range(0, total, size):
            own = slice(first, first + size)
            one: dict[str, Any] = {"errors": tuple(error[:, own] for error in batch.errors)}
            for item in fields(batch):
                value = getattr(batch, item.name)
                if isinstance(value, Tensor):
                    one[item.name] = value[..., own]
            one["group"] = torch.zeros_like(one["group"])
            losses.append(self._inner.loss(replace(batch, **one))[0])
        return (self._chance * torch.stack(losses)).sum(), {}


def finished(policy: Policy) -> tuple[Trajectory, Tensor]:
    """One trajectory for every finished sample, with the probability of that sample."""
    trajectory, probability = every_trajectory(policy, nodes=4)
    (final,) = trajectory.final.values()
    _, index = final.unique(dim=0, return_inverse=True)
    first = torch.stack([(index == i).nonzero()[0, 0] for i in range(int(index.max()) + 1)])
    chance = torch.zeros(len(first), dtype=probability.dtype).index_add(0, index, probability)
    return trajectory.select(first), chance


def mean_of_groups(
    policy: Policy, sampler: Sampler, config: ObjectiveConfig, advantage: AdvantageConfig = CENTRED
) -> Tensor:
    view = config.view_wanted()
    drawn = finished(policy) if view != "steps" else every_trajectory(policy, 5)
    members = torch.tensor(list(itertools.product(range(len(drawn[1])), repeat=2)))
    chance = drawn[1][members].prod(1)
    return expected_update(
        policy, sampler, {"it": (1.0, PerGroup(config.build(), chance))}, group_size=2,
        advantage=advantage, weight_sets=with_slots(policy), drawn=drawn, views=view,
    )["table"]  # fmt: skip


def cosine(found: Tensor, exact: Tensor) -> float:
    assert found.abs().max() > 1e-4
    return float(torch.cosine_similarity(found.flatten(), -exact.flatten(), 0))


@pytest.mark.parametrize("index", range(3), ids=NAMES)
@pytest.mark.parametrize("name", RATIOS)
def test_surrogates_follow_the_expected_reward(proposed: Make, name: str, index: int) -> None:
    """On policy all of them are its gradient up to a factor, which centring alone keeps exact."""
    policy, sampler = toys()[index]
    found = expected_update(
        policy, sampler, {name: (1.0, proposed(name).build())}, group_size=2, advantage=CENTRED,
        weight_sets=with_slots(policy), nodes=5,
    )["table"]  # fmt: skip
    assert cosine(found, exact_gradient(policy, sampler)) > 1 - 1e-9


@pytest.mark.parametrize("name", RATIOS)
def test_presets_with_their_own_advantages_rise(proposed: Make, name: str) -> None:
    """A pair's z-score keeps the sign of its difference alone: less exact, and still uphill."""
    policy, sampler = toys()[0]
    config = proposed(name)
    found = expected_update(
        policy, sampler, {name: (1.0, config.build())}, group_size=2,
        weight_sets=with_slots(policy),
        advantage=AdvantageConfig.model_validate(config.advantage_defaults),
    )["table"]  # fmt: skip
    assert cosine(found, exact_gradient(policy, sampler)) > 0.85


@pytest.mark.parametrize("index", range(3), ids=NAMES)
def test_ppo_follows_the_expected_reward_whatever_its_values(proposed: Make, index: int) -> None:
    """With lam 1 the baseline of a state cannot bias the gradient; below 1 it may, a little."""
    policy, sampler = toys()[index]
    drawn = slice(0, 2) if index == 2 else slice(None)  # the Gaussian's table holds values too
    exact = exact_gradient(policy, sampler)[:, drawn]
    for lam, least in ((1.0, 1 - 1e-9), (0.95, 0.9)):
        objective = proposed("ppo", lam=lam).build()
        found = expected_update(policy, sampler, {"ppo": (1.0, objective)}, advantage=ALONE)
        assert cosine(found["table"][:, drawn], exact) > least


@pytest.mark.parametrize("index", [0, 1], ids=NAMES[:2])
def test_values_follow_the_rewards_that_their_states_lead_to(proposed: Make, index: int) -> None:
    """With lam 1 the value of a state s moves by ``c P(s) (E[reward | s] - V(s))``, by enumeration.

    ``c`` is vf_coef over the terms of a sample: the loss is a mean over all terms.
    """
    policy, sampler = toys()[index]
    objective = proposed("ppo", lam=1.0, vf_coef=0.6).build()
    found = expected_update(policy, sampler, {"ppo": (1.0, objective)}, advantage=ALONE)["value"]
    trajectory, chance = every_trajectory(policy)
    reward = torch.tensor(ToyReward()(policy.decode(trajectory.final), []), dtype=torch.float64)
    if index == 0:
        first = 1 + trajectory.trace["tokens"][:, 0]
        states = torch.stack([torch.zeros_like(first), first], 1)
    else:
        states = (trajectory.trace["state.canvas"] * 3 ** torch.arange(3)).sum(-1)
    value = policy.network.value.detach()
    exact = torch.zeros_like(value)
    for b, path in enumerate(states.tolist()):
        for state in path:
            exact[state] += 0.6 / len(path) * chance[b] * (value[state] - reward[b])
    assert exact.abs().max() > 1e-2
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["awm", "dgpo", "rwr", "best_of_n", "wd1", "dpo", "grpo", "gspo"])
@pytest.mark.parametrize("index", [0, 1], ids=NAMES[:2])
def test_bounds_follow_the_expected_reward(proposed: Make, name: str, index: int) -> None:
    """On the sequence toy the bound is the likelihood, on the canvas one draw of a bound."""
    policy, sampler = toys()[index]
    found = mean_of_groups(policy, sampler, proposed(name, view="elbo"))
    likeness = cosine(found, exact_gradient(policy, sampler))
    on_policy = index == 0 and name in ("awm", "dgpo", "grpo", "gspo")
    assert likeness > (1 - 1e-9 if on_policy else 0.3)


@pytest.mark.parametrize("loss_type", PAIRS)
@pytest.mark.parametrize("level", ["sequence", "term"])
def test_pairs_follow_the_expected_reward(proposed: Make, loss_type: str, level: str) -> None:
    smoothing = 0.1 if loss_type in ("robust", "exo_pair") else 0.0
    config = proposed("dpo", loss_type=loss_type, level=level, label_smoothing=smoothing)
    policy, sampler = toys()[0]
    found = mean_of_groups(policy, sampler, config)
    assert cosine(found, exact_gradient(policy, sampler)) > 0.8


def test_pairs_on_gaussian_steps(proposed: Make) -> None:
    policy, sampler = toys()[2]
    for fields_ in ({}, {"level": "term", "ratio_clip": 0.1}):
        found = mean_of_groups(policy, sampler, proposed("dpo", **fields_))
        assert cosine(found, exact_gradient(policy, sampler)) > 0.5


@pytest.mark.parametrize("partner", ["lagging", "reference"])
def test_nft_follows_the_expected_reward(proposed: Make, partner: str) -> None:
    policy, sampler = toys()[1]
    found = mean_of_groups(policy, sampler, proposed("nft", partner=partner))
    assert cosine(found, exact_gradient(policy, sampler)) > 0.3


def weighted_error(policy: Policy, sampler: Sampler, view: str, factor: Tensor) -> Tensor:
    """The gradient of the mean of ``factor`` times the negative bound, for pairs of samples."""

    class Weighted(Objective):
        needs = frozenset[str]()

        def __init__(self) -> None:
            self.mixtures = ({"current": 1.0},) if view == "denoising" else ()

        def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            error = batch.errors[0] if view == "denoising" else -batch.log_probs
            return batch.reduce(factor * error, "sample_mean"), {}

    return expected_update(
        policy, sampler, {"it": (1.0, Weighted())}, group_size=2, drawn=finished(policy), views=view
    )["table"]


def centred_rewards(policy: Policy) -> Tensor:
    """The advantages of ``CENTRED``, by hand, of all pairs of finished samples: ``[B]``."""
    trajectory, _ = finished(policy)
    reward = torch.tensor(ToyReward()(policy.decode(trajectory.final), []), dtype=torch.float64)
    pairs = torch.tensor(list(itertools.product(reward.tolist(), repeat=2)), dtype=torch.float64)
    return (pairs - pairs.mean(1, keepdim=True)).flatten()


@pytest.mark.parametrize("index", [1, 2], ids=NAMES[1:])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_nft_at_the_old_weights(proposed: Make, beta: float, index: int) -> None:
    """The gradient is that of the advantage times the error, whatever beta."""
    policy, sampler = toys()[index]
    config = proposed("nft", beta=beta, partner="reference", advantage_clip=2.0)
    found = expected_update(
        policy, sampler, {"nft": (1.0, config.build())}, group_size=2, advantage=CENTRED,
        weight_sets=with_slots(policy), drawn=finished(policy), views=config.view_wanted(),
    )["table"]  # fmt: skip
    factor = centred_rewards(policy).clamp(-2, 2)
    exact = weighted_error(policy, sampler, "denoising", factor)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("index", range(3), ids=NAMES)
def test_awm_at_the_old_weights(proposed: Make, index: int) -> None:
    """The gradient is that of minus the advantage times the bound, whatever epsilon."""
    policy, sampler = toys()[index]
    advantage = AdvantageConfig(baseline="group_mean", scale="none", clip=1.0)
    config = proposed("awm", epsilon=0.01)
    found = expected_update(
        policy, sampler, {"awm": (1.0, config.build())}, group_size=2, advantage=advantage,
        weight_sets=with_slots(policy), drawn=finished(policy), views=config.view_wanted(),
    )["table"]  # fmt: skip
    exact = weighted_error(policy, sampler, "elbo", centred_rewards(policy).clamp(-1, 1))
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_sft_is_the_gradient_of_the_bound(proposed: Make) -> None:
    config = proposed("sft")
    for policy, sampler in toys():
        found = expected_update(
            policy, sampler, {"sft": (1.0, config.build())}, group_size=2,
            drawn=finished(policy), views=config.view_wanted(),
        )["table"]  # fmt: skip
        ones = torch.ones(len(finished(policy)[1]) ** 2 * 2, dtype=torch.float64)
        exact = weighted_error(policy, sampler, "elbo", ones)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_entropy_of_the_sequence_by_hand(proposed: Make) -> None:
    policy, sampler = toys()[0]
    objective = proposed("entropy", reduce="sum").build()
    found = expected_update(
        policy, sampler, {"entropy": (1.0, objective)}, advantage=ALONE
    )["table"]  # fmt: skip
    log_p = policy.network.table.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    reached = torch.cat([torch.ones(1, dtype=torch.float64), log_p[0].exp()]).detach()
    (exact,) = torch.autograd.grad(-(reached * entropy).sum(), policy.network.table)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", ["unbiased", "analytic", "k2"])
def test_kl_by_hand(proposed: Make, estimator: str) -> None:
    """Sequence toy: the sum of the KLs of the steps, weighted by how often they are reached."""
    policy, sampler = toys()[0]
    weight_sets = with_slots(policy)
    with weight_sets.using("reference"), torch.no_grad():
        policy.network.table.add_(torch.arange(12, dtype=torch.float64).cos().view(4, 3))
        other = policy.network.table.log_softmax(-1)
    objective = proposed("kl", estimator=estimator, reduce="sum").build()
    found = expected_update(
        policy, sampler, {"kl": (1.0, objective)}, advantage=ALONE, weight_sets=weight_sets
    )["table"]  # fmt: skip
    log_p = policy.network.table.log_softmax(-1)
    kl = (log_p.exp() * (log_p - other)).sum(-1)
    reached = torch.cat([torch.ones(1, dtype=torch.float64), log_p[0].exp()]).detach()
    (exact,) = torch.autograd.grad((reached * kl).sum(), policy.network.table)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
