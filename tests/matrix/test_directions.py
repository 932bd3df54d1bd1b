"""Every objective that learns from rewards moves the enumerable toys uphill.

The mean update of every cell of a toy, at the advantages that the objective's config gives, against
the exact gradient of the expected reward. What has no reward has a closed form instead:
``sft``, ``kl`` and ``entropy`` in ``tests/plugins/objectives/test_expected_updates.py``.
"""

import copy
import functools

import pytest
import torch

from genrl_core import Batch, Objective, ObjectiveConfig, Policy, Tensors
from genrl_core.cli.matrix import Cell, requested_fields
from genrl_core.testing import ToyCanvas, ToyGaussian, ToySequence, check_objective, toys
from genrl_core.testing.directions import LEAST, bound_is_likelihood, mean_update, reward_gradient

from .conftest import REGISTRY, TOYS, TRAINS, name, objective_of, timed

CLIMBING = [cell for cell in TOYS if REGISTRY.objectives[cell.objective].uses_reward]


@functools.cache
def exact(policy: str) -> Tensors:
    return reward_gradient(REGISTRY.policies[policy]().build())


@pytest.mark.parametrize("cell", CLIMBING, ids=name)
def test_the_mean_update_points_uphill(cell: Cell) -> None:
    policy = REGISTRY.policies[cell.policy](**requested_fields(REGISTRY, cell)).build()
    sampler = REGISTRY.samplers[cell.sampler]().build()
    known = exact(cell.policy)
    with timed(cell):
        check_objective(objective_of(cell), policy, sampler, cell.view, exact=known)


def test_what_reads_no_reward_has_a_closed_form_elsewhere() -> None:
    silent = {cell.objective for cell in TRAINS} - {cell.objective for cell in CLIMBING}
    assert silent == {"sft", "kl", "entropy"}


def test_most_of_the_steps_are_held_to_the_gradient_itself() -> None:
    steps = {c.objective for c in CLIMBING if c.view == "steps"}
    strict = {n for n in steps if REGISTRY.objectives[n].on_policy_gradient}
    assert strict == steps - {"dpo", "dgpo", "rwr", "best_of_n", "wd1"}
    assert LEAST == 0.9


# --- the check itself ---


def test_the_gradient_by_differences_is_that_by_differentiation() -> None:
    """Sequence: ``sum p(a) p(b | a) r(a, b)`` written out, by autograd."""
    from genrl_core.testing import ToyReward

    policy = ToySequence()
    log_p = policy.network.table.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            chance = (log_p[0, first] + log_p[1 + first, second]).exp()
            total = total + chance * ToyReward.of([first, second])
    (known,) = torch.autograd.grad(total, policy.network.table)
    torch.testing.assert_close(reward_gradient(policy)["table"], known, rtol=0, atol=1e-8)


def test_whose_bound_is_a_likelihood() -> None:
    assert [bound_is_likelihood(policy) for policy, _ in toys()] == [True, False, False]


def test_the_gaussian_bound_is_tight_at_the_start() -> None:
    """Where its proposal is the posterior, all draws of a sample have the same bound."""
    policy = ToyGaussian()
    final = {"x": torch.linspace(-1, 2, 5, dtype=torch.float64).unsqueeze(1)}
    noise = torch.linspace(-2, 2, 7, dtype=torch.float64)

    def spread() -> float:
        gaps = []
        for place in range(5):
            one = {"x": final["x"][place].expand(7, 1)}
            bound = policy.elbo(one, {}, {"noise": noise})[:, 0]
            gaps.append((bound + noise.square() / 2).std())  # minus the proposal's log-density
        return float(torch.stack(gaps).max())

    with torch.no_grad():
        assert spread() < 1e-12
        policy.network.table += 0.1
        assert spread() > 1e-3


class Partial(Objective):
    """REINFORCE on the steps up to ``last``; or where ``sign`` is 1 its opposite."""

    def __init__(self, sign: float, last: int):
        self._sign, self._last = sign, last

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Tensors]:
        kept = (batch.step <= self._last) * batch.log_probs
        return batch.reduce(self._sign * batch.advantage * kept), {}


class PartialConfig(ObjectiveConfig):
    sign: float = -1.0
    last: int = 99

    def build(self) -> Objective:
        return Partial(self.sign, self.last)


class PromisingConfig(PartialConfig):
    on_policy_gradient = True


def test_an_objective_that_descends_is_caught() -> None:
    policy, sampler = toys()[0]
    assert check_objective(PromisingConfig(), policy, sampler, "steps") > LEAST
    with pytest.raises(AssertionError, match=r"cosine -0\.9\d+ .* expected more than 0$"):
        check_objective(PartialConfig(sign=1.0), policy, sampler, "steps")


def test_an_objective_that_promises_the_gradient_is_held_to_it() -> None:
    """The first step of two alone is uphill, and not the gradient."""
    policy, sampler = toys()[2]
    assert 0 < check_objective(PartialConfig(last=0), policy, sampler, "steps") < LEAST
    with pytest.raises(AssertionError, match=r"expected more than 0\.9$"):
        check_objective(PromisingConfig(last=0), policy, sampler, "steps")


def test_an_objective_without_a_reward_is_refused() -> None:
    policy, sampler = toys()[0]
    with pytest.raises(ValueError, match="reads no reward: compare its update with a closed form"):
        check_objective(REGISTRY.objectives["sft"](), policy, sampler, "elbo")


def test_the_policy_is_left_as_it_was() -> None:
    policy, sampler = toys()[1]
    before: Policy = copy.deepcopy(policy)
    config = REGISTRY.objectives["reinforce"]()
    found = mean_update(config, policy, sampler, "steps", groups=8)
    assert isinstance(policy, ToyCanvas)
    assert torch.equal(policy.network.table, before.network.table)
    assert found["table"].abs().max() > 1e-3
