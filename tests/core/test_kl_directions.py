"""Which way round the divergences are: KL(current || reference), KL(old || current)."""

import pytest
import torch
from torch import Tensor

from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Trajectory
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.views import StepsView
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import ToyCanvas, ToySequence, every_trajectory, toys

FIELDS = {"reference": "kl_reference", "lagging": "kl_behavior"}


def scored(
    policy: Policy, sampler: Sampler, trajectory: Trajectory, weight_sets: WeightSets, slot: str
) -> Tensor:
    """The closed-form divergence of every row, ``[R, M]``, with gradient."""
    calls, count = trajectory.terms.num_evals, len(trajectory)
    k = torch.arange(calls).repeat_interleave(count)
    b = torch.arange(count).repeat(calls)
    want, per_eval = frozenset({"log_probs", FIELDS[slot]}), len(trajectory.terms.mask) // calls
    view = StepsView(policy, sampler, trajectory, weight_sets, want, calls, per_eval)
    return view.evaluate(k, b)[FIELDS[slot]]


def setting(index: int, slot: str) -> tuple[Policy, Sampler, Trajectory, WeightSets, Tensor]:
    """A toy whose current table has moved away from the slot's, which is the last item."""
    policy, sampler = toys()[index]
    trajectory, _ = every_trajectory(policy, 4)
    weight_sets = WeightSets(policy)
    weight_sets.snapshot(slot)
    table = next(iter(weight_sets.trainable.values()))
    before = table.detach().clone()
    with torch.no_grad():
        table.add_(2 * torch.arange(table.numel(), dtype=torch.float64).cos().view_as(table))
    return policy, sampler, trajectory, weight_sets, before


def by_hand(policy: Policy, trajectory: Trajectory, p: Tensor, q: Tensor) -> Tensor:
    """``sum p log(p / q)`` of the steps of every row: tables of logits in, ``[R, M]`` out."""
    first, second = p.log_softmax(-1), q.log_softmax(-1)
    rows = (first.exp() * (first - second)).sum(-1)
    if isinstance(policy, ToySequence):
        start = torch.zeros(len(trajectory), dtype=torch.int64)
        return torch.stack([rows[start], rows[1 + trajectory.trace["tokens"][:, 0]]], 1)
    assert isinstance(policy, ToyCanvas)
    canvas = trajectory.trace["state.canvas"].transpose(0, 1).flatten(0, 1)
    empty = canvas == 2
    code = (canvas * 3 ** torch.arange(3)).sum(-1)
    return ((rows[code] * empty).sum(-1) / empty.sum(-1)).unsqueeze(1)


@pytest.mark.parametrize("slot", ["lagging", "reference"])
@pytest.mark.parametrize("index", [0, 1], ids=["sequence", "canvas"])
def test_the_direction_of_categorical_steps(index: int, slot: str) -> None:
    """By enumeration of the symbols, value and gradient; the other way round differs in both."""
    policy, sampler, trajectory, weight_sets, before = setting(index, slot)
    table = weight_sets.trainable["table"]
    pair = (before, table) if slot == "lagging" else (table, before)
    found = scored(policy, sampler, trajectory, weight_sets, slot)
    exact, reverse = by_hand(policy, trajectory, *pair), by_hand(policy, trajectory, *pair[::-1])
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    assert (found - reverse).abs().max() > 1e-2
    weight = torch.linspace(0.5, 2.0, found.numel(), dtype=torch.float64).view_as(found)
    gradients = [
        torch.autograd.grad((weight * kl).sum(), table)[0] for kl in (found, exact, reverse)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
    assert (gradients[0] - gradients[2]).abs().max() > 1e-2


def test_gaussian_steps_of_one_deviation_have_no_direction() -> None:
    found = []
    for slot in ("lagging", "reference"):
        policy, sampler, trajectory, weight_sets, _ = setting(2, slot)
        kl = scored(policy, sampler, trajectory, weight_sets, slot)
        table = weight_sets.trainable["table"]
        found.append((kl, torch.autograd.grad(kl.sum(), table)[0]))
    assert found[0][0].max() > 1e-2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
