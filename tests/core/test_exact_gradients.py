"""Expected gradients on the enumerable toys, against the exact derivative."""

import pytest
import torch
from torch import Tensor

from genrl_core.functional import log_ratio
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import (
    AdvantageConfig,
    ToyGaussian,
    ToyReward,
    ToySequence,
    every_trajectory,
    expected_update,
    toys,
)
from genrl_core.testing.enumerable import DEVIATION, STEPS
from genrl_objectives import GrpoConfig, KlConfig, NftConfig, ReinforceConfig, SftConfig

NAMES = ["sequence", "canvas", "gaussian"]
Toy = tuple[Policy, Sampler]
NO_BASELINE = AdvantageConfig(baseline="none", scale="none")


@pytest.fixture(params=range(3), ids=NAMES)
def toy(request: pytest.FixtureRequest) -> Toy:
    return toys()[request.param]


def grpo(**fields: object) -> Objective:
    return GrpoConfig.model_validate({"epsilon": 0.2, "reduce": "sum"} | fields).build()


def exact_gradient(policy: Policy, sampler: Sampler) -> Tensor:
    """d E[reward] / d theta: by differentiating the sum over all trajectories.

    The Gaussian toy is differentiated through its draws instead (the pathwise derivative), so that
    no score function enters on this side.
    """
    parameter = next(policy.network.parameters())
    if isinstance(policy, ToyGaussian):
        trajectory, probability = every_trajectory(policy)
        x = torch.zeros_like(probability)
        path = trajectory.trace["action.next"]
        for step in range(STEPS):
            k = torch.full_like(probability, step, dtype=torch.int64)
            mean = policy.moments(x, k)[0]
            state = trajectory.trace["state.x"][:, step, 0]
            noise = (path[:, step] - policy.moments(state, k)[0].detach()) / DEVIATION
            x = mean + DEVIATION * noise
        expected = (probability * (x - 0.3 * x.square())).sum()
    else:
        trajectory, _ = every_trajectory(policy)
        calls, count = trajectory.terms.num_evals, len(trajectory)
        k, b = (g.flatten() for g in torch.meshgrid(
            torch.arange(calls), torch.arange(count), indexing="ij"))  # fmt: skip
        densities, action = sampler.densities(policy, trajectory, k, b)
        probability = densities.log_prob(action).sum(1).unflatten(0, (calls, count)).sum(0).exp()
        texts = policy.decode(trajectory.final)
        expected = (probability * torch.tensor(ToyReward()(texts, []), dtype=torch.float64)).sum()
    return torch.autograd.grad(expected, parameter)[0]


@pytest.mark.parametrize("name", ["reinforce", "grpo", "grpo_sequence"])
def test_expected_gradient_is_exact(toy: Toy, name: str) -> None:
    policy, sampler = toy
    objective = {
        "reinforce": ReinforceConfig(reduce="sum").build(),
        "grpo": grpo(),
        # One ratio per sample stands in each of its T terms: their mean counts it once.
        "grpo_sequence": grpo(level="sequence", reduce="sample_mean"),
    }[name]
    found = expected_update(policy, sampler, {name: (1.0, objective)}, advantage=NO_BASELINE)
    exact = exact_gradient(policy, sampler)
    assert exact.abs().max() > 0.02
    torch.testing.assert_close(found["table"], -exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("baseline", "factor"), [("group_mean", 0.5), ("leave_one_out", 1.0)])
def test_group_baselines_scale_the_gradient(toy: Toy, baseline: str, factor: float) -> None:
    """With two samples, the group mean holds half of each sample's own reward."""
    policy, sampler = toy
    advantage = AdvantageConfig.model_validate({"baseline": baseline, "scale": "none"})
    found = expected_update(
        policy, sampler, {"grpo": (1.0, grpo())}, group_size=2, advantage=advantage, nodes=5
    )
    exact = exact_gradient(policy, sampler)
    torch.testing.assert_close(found["table"], -factor * exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "group_mean and group_std"),
        ({"baseline": "leave_one_out", "scale": "none"}, "leave_one_out"),
        ({"baseline": "none"}, "group_std"),
    ],
)
def test_a_group_of_one_has_nothing_to_compare(fields: dict[str, str], named: str) -> None:
    policy, sampler = toys()[0]
    advantage = AdvantageConfig.model_validate(fields)
    with pytest.raises(ValueError, match=f"advantages by {named} compare.*take group_size=2"):
        expected_update(policy, sampler, {"grpo": (1.0, grpo())}, advantage=advantage)


def test_off_policy_ratio_is_exact() -> None:
    """Unclipped, the ratio corrects for samples drawn under other weights."""
    policy, sampler = toys()[0]
    drawn = every_trajectory(policy)
    with torch.no_grad():
        policy.network.table.add_(torch.linspace(-0.2, 0.3, 12, dtype=torch.float64).view(4, 3))
    wide = grpo(level="sequence", reduce="sample_mean", epsilon=0.999, epsilon_high=50.0)
    found = expected_update(
        policy, sampler, {"grpo": (1.0, wide)}, advantage=NO_BASELINE, drawn=drawn
    )
    exact = exact_gradient(policy, sampler)
    torch.testing.assert_close(found["table"], -exact, rtol=0, atol=1e-10)


def shifted_reference(policy: Policy) -> WeightSets:
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    with weight_sets.using("reference"), torch.no_grad():
        table = policy.network.table
        table.add_(torch.arange(table.numel(), dtype=torch.float64).cos().view_as(table))
    return weight_sets


def test_unbiased_kl_has_the_gradient_of_the_closed_form(toy: Toy) -> None:
    policy, sampler = toy
    weight_sets = shifted_reference(policy)
    found = {}
    for estimator in ("unbiased", "analytic", "k3"):
        objective = KlConfig.model_validate({"estimator": estimator, "reduce": "sum"}).build()
        found[estimator] = expected_update(
            policy,
            sampler,
            {"kl": (1.0, objective)},
            advantage=NO_BASELINE,
            weight_sets=weight_sets,
            nodes=40,
        )["table"]
    assert found["analytic"].abs().max() > 0.01
    torch.testing.assert_close(found["unbiased"], found["analytic"], rtol=0, atol=1e-10)
    if not isinstance(policy, ToyGaussian):  # of equal variances, both directions agree
        assert (found["k3"] - found["analytic"]).abs().max() > 1e-3


def test_analytic_kl_of_the_sequence_toy_by_hand() -> None:
    policy, sampler = toys()[0]
    assert isinstance(policy, ToySequence)
    weight_sets = shifted_reference(policy)
    objective = KlConfig(estimator="analytic", reduce="sum").build()
    found = expected_update(
        policy, sampler, {"kl": (1.0, objective)}, advantage=NO_BASELINE, weight_sets=weight_sets
    )["table"]
    with weight_sets.using("reference"):
        other = policy.network.table.detach().log_softmax(-1)
    log_p = policy.network.table.log_softmax(-1)
    kl = (log_p.exp() * (log_p - other)).sum(-1)
    reached = torch.cat([torch.ones(1, dtype=torch.float64), log_p[0].exp()]).detach()
    (exact,) = torch.autograd.grad((reached * kl).sum(), policy.network.table)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_sft_is_the_likelihood_gradient() -> None:
    """On all nine sequences once: the gradient of their mean negative log-likelihood."""
    policy, sampler = toys()[0]
    assert isinstance(policy, ToySequence)
    objective = SftConfig().build()
    trajectory, chance = every_trajectory(policy)
    found = expected_update(
        policy, sampler, {"sft": (1.0, objective)}, advantage=NO_BASELINE, views="elbo",
        drawn=(trajectory, torch.full_like(chance, 1 / 9)),
    )["table"]  # fmt: skip
    log_p = policy.network.table.log_softmax(-1)
    joint = log_p[0].unsqueeze(1) + log_p[1:]
    (exact,) = torch.autograd.grad(-joint.mean(), policy.network.table)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_log_ratio_levels() -> None:
    new, old = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.zeros(2, 2)
    events, mask = torch.tensor([[2, 4], [2, 9]]), torch.tensor([[True, True], [True, False]])
    assert log_ratio(new, old, events, mask).tolist() == [[1, 2], [3, 0]]
    assert log_ratio(new, old, events, mask, over="mean").tolist() == [[0.5, 0.5], [1.5, 0]]
    assert log_ratio(new, old, events, mask, "sequence").tolist() == [[4, 2], [4, 2]]
    assert log_ratio(new, old, events, mask, "sequence", "mean").tolist() == [[1, 0.5], [1, 0.5]]


def test_the_bound_view_is_weighted_by_probability() -> None:
    """Where the bound is the likelihood, REINFORCE on it is the gradient of the expected reward."""
    policy, sampler = toys()[0]
    objective = ReinforceConfig(view="elbo").build()
    found = expected_update(
        policy, sampler, {"it": (1.0, objective)}, advantage=NO_BASELINE, views="elbo"
    )
    exact = exact_gradient(policy, sampler)
    torch.testing.assert_close(found["table"], -exact, rtol=0, atol=1e-10)


def test_the_matching_view_is_weighted_by_probability() -> None:
    """An expectation over four samples, against the four updates that see one of them alone."""
    policy, sampler = toys()[1]
    trajectory = every_trajectory(policy)[0].select(torch.tensor([0, 9, 20, 47]))
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    objective = NftConfig(partner="reference").build()

    def update(chance: list[float]) -> Tensor:
        drawn = (trajectory, torch.tensor(chance, dtype=torch.float64))
        return expected_update(
            policy, sampler, {"it": (1.0, objective)}, advantage=NO_BASELINE,
            weight_sets=weight_sets, drawn=drawn, views="denoising",
        )["table"]  # fmt: skip

    chance = [0.4, 0.3, 0.2, 0.1]
    alone = [update([float(i == j) for j in range(4)]) for i in range(4)]
    exact = torch.stack([p * one for p, one in zip(chance, alone, strict=True)]).sum(0)
    assert (exact - torch.stack(alone).mean(0)).abs().max() > 1e-2
    torch.testing.assert_close(update(chance), exact, rtol=0, atol=1e-12)
