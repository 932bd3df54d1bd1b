"""The package's own tests: mathematics, conformance, and short runs of both recipes."""

import itertools
import math

import pytest
import torch
from genrl_orders import OrderConfig, PickConfig, SortConfig, in_order

from genrl_core import Media, Plan, Policy, Prompt, Trajectory, load_recipe, select_rows, train
from genrl_core.testing import check_objective, check_sampler, toys

PROMPTS = [Prompt("up", "in ascending order"), Prompt("down", "in descending order")]
SAMPLERS = [PickConfig(temperature=1.5), SortConfig(temperature=1.5)]


@pytest.mark.parametrize("config", SAMPLERS)
def test_a_sampler_scores_what_it_drew(config) -> None:
    assert check_sampler(OrderConfig().build(), config.build(), PROMPTS).drift < 1e-5


def every_order(policy: Policy) -> Trajectory:
    """All orders of four items under the first prompt, as if they had been picked."""
    orders = torch.tensor(list(itertools.permutations(range(4))))
    rows = torch.zeros(len(orders), dtype=torch.int64)
    plan = Plan(0, 0, 0, (PROMPTS[0],), group=rows, sample=torch.arange(len(orders)))
    cond = select_rows(policy.encode(PROMPTS[:1]), rows)
    actions = [{"item": orders[:, place]} for place in range(4)]
    with torch.no_grad():
        return SAMPLERS[0].build().walk(policy, cond, plan, actions)


def test_probabilities_add_up_to_one() -> None:
    chance = every_order(OrderConfig().build()).terms.log_probs.sum(0).exp()
    assert len(chance) == math.factorial(4)
    assert chance.std() > 1e-3
    torch.testing.assert_close(chance.sum(), torch.tensor(1.0))


def test_both_samplers_have_the_same_density() -> None:
    policy = OrderConfig().build()
    every = every_order(policy)
    rows = torch.arange(len(every))
    picks, action = SAMPLERS[1].build().densities(policy, every, torch.zeros_like(rows), rows)
    torch.testing.assert_close(picks.log_prob(action).T, every.terms.log_probs)


def test_entropy_and_kl_are_those_of_the_probabilities() -> None:
    policy, other = OrderConfig().build(), OrderConfig().build()
    with torch.no_grad():
        other.network.table.add_(other.network.table.cos())
    every, sampler = every_order(policy), SAMPLERS[0].build()
    k, b = torch.tensor([0, 1, 2]), torch.tensor([0, 5, 9])
    mine, _ = sampler.densities(policy, every, k, b)
    theirs, _ = sampler.densities(other, every, k, b)
    p, q = mine.log_p.double().exp(), theirs.log_p.double().exp()
    entropy = -torch.xlogy(p, p).sum(1, keepdim=True).float()
    kl = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1, keepdim=True).float()
    torch.testing.assert_close(mine.entropy(), entropy)
    torch.testing.assert_close(mine.kl(theirs), kl)
    assert kl.abs().max() > 1e-3


def test_reward_of_a_rising_order() -> None:
    assert in_order(Media("text", texts=("0 1 2 3",) * 2), PROMPTS) == [1.0, 0.0]


def test_the_objective_climbs() -> None:
    from genrl_orders.winners import WinnersConfig

    for policy, sampler in toys():
        check_objective(WinnersConfig(), policy, sampler, "steps")


@pytest.mark.parametrize("name", ["orders/learn", "orders/learn_sorted"])
def test_a_recipe_trains_for_two_iterations(name: str) -> None:
    records = list(train(load_recipe(name, ["train.iterations=2"])))
    assert [record.iteration for record in records] == [1, 2]
    for record in records:
        assert record.metrics["drift"] < 1e-5
        assert record.metrics["grad_norm"] > 0
        assert 0 < record.metrics["won"] < 1


def test_the_reward_rises() -> None:
    rewards = [record.metrics["reward"] for record in train("orders/learn_sorted")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
