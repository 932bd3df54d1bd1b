"""NFT's pull to the reference, made of denoising errors alone, against its closed forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genrl_core import Batch, ObjectiveConfig, Plan, Policy, Prompt, Tensors
from genrl_core.interfaces.records import Terms, Trajectory, select_rows
from genrl_core.loop.views import DenoisingView
from genrl_core.loop.weights import WeightSets
from genrl_core.registry import Registry

Make = Callable[..., ObjectiveConfig]
COUNT = 6
PARADIGMS = ["masked", "autoregressive", "diffusion"]


def shift(policy: Policy, seed: int, size: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            drawn = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
            parameter.add_(size * drawn)


def digits(paradigm: str) -> tuple[Policy, WeightSets]:
    """A digit policy in float64; the reference and, apart from it, the old weights are near."""
    policy = Registry.discover().policies[f"digits_{paradigm}"]().build()
    policy.network.double()
    shift(policy, 4, 0.1)
    weight_sets = WeightSets(policy)
    for seed, slot in enumerate(("reference", "lagging")):
        weight_sets.snapshot(slot)
        with weight_sets.using(slot):
            shift(policy, seed, 0.05)
    return policy, weight_sets


def finished(paradigm: str) -> Tensors:
    noise = torch.Generator().manual_seed(5)
    if paradigm == "diffusion":
        return {"latents": torch.randn(COUNT, 1, 8, 8, generator=noise, dtype=torch.float64)}
    tokens = {"tokens": torch.randint(0, 64, (COUNT, 16), generator=noise)}
    fixed = {"length": torch.full((COUNT,), 16)}
    return tokens | (fixed if paradigm == "autoregressive" else {})


def drawn(paradigm: str, policy: Policy) -> tuple[Trajectory, Tensors]:
    """Finished samples with a corruption each."""
    rows = torch.arange(COUNT)
    prompts = tuple(Prompt(str(i), "a handwritten three") for i in range(2))
    plan = Plan(0, 0, 0, prompts, rows % 2, rows)
    cond = select_rows(policy.encode(prompts), rows % 2)
    final = finished(paradigm)
    corruption = policy.corrupt(final, plan.streams("corrupt"), 1, 0, 1)
    return Trajectory(cond, {}, final, Terms.empty(COUNT)), corruption


def distance(paradigm: str, one: Tensor, other: Tensor, corruption: Tensors) -> Tensor:
    """What the pull is said to be: ``[COUNT]``."""
    if paradigm == "diffusion":
        return (one - other).square().flatten(1).mean(1)
    overlap = (one.softmax(-1) * other.softmax(-1)).sqrt().sum(-1).log()
    if paradigm == "autoregressive":
        return -4 * overlap.mean(-1)
    masked = corruption["masked"][0]
    return -4 * (overlap * masked).sum(-1) / masked.sum(-1)


def batch_of(errors: dict[str, Tensor]) -> Batch:
    ones = torch.ones(1, COUNT, dtype=torch.float64)
    advantage = torch.linspace(-2, 3, COUNT, dtype=torch.float64).unsqueeze(0)
    return Batch(
        log_probs=ones, events=ones.long(), step=ones.long(), mask=ones.bool(),
        denominator_mask=ones.bool(), weight=ones, scale=ones, advantage=advantage, reward=ones[0],
        group=torch.zeros(COUNT, dtype=torch.int64), valid=ones[0].bool(),
        errors=tuple(error.T for error in errors.values()),
    )  # fmt: skip


@pytest.mark.parametrize("partner", ["lagging", "reference"])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_pull_is_a_distance_to_the_reference(
    proposed: Make, paradigm: str, partner: str
) -> None:
    """Its value by sample, and its gradient as the difference that it makes to the loss."""
    policy, weight_sets = digits(paradigm)
    trajectory, corruption = drawn(paradigm, policy)
    rows = torch.arange(COUNT)

    def loss(pull: float) -> tuple[Tensor, dict[str, Tensor]]:
        objective = proposed("nft", pull=pull, partner=partner).build()
        view = DenoisingView(policy, trajectory, corruption, 1, objective.mixtures, weight_sets)
        return objective.loss(batch_of(view.evaluate(torch.zeros_like(rows), rows)))

    picked = {name: tensor[0] for name, tensor in corruption.items()}
    with weight_sets.using("reference"), torch.no_grad():
        reference = policy.denoising(trajectory.final, trajectory.cond, picked).prediction
    current = policy.denoising(trajectory.final, trajectory.cond, picked).prediction
    exact = distance(paradigm, current, reference, corruption)
    pulled, metrics = loss(0.7)
    torch.testing.assert_close(metrics["pull"][0], exact, rtol=0, atol=1e-10)
    assert (metrics["pull"] > 1e-4).all()

    weights = list(weight_sets.trainable.values())
    ours = torch.autograd.grad(pulled - loss(0.0)[0], weights)
    wanted = torch.autograd.grad(0.7 * exact.mean(), weights)
    assert max(float(one.abs().max()) for one in wanted) > 1e-3
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_without_a_pull_no_reference_is_asked_for(proposed: Make) -> None:
    weight_sets = {slot for mix in proposed("nft", pull=0.0).build().mixtures for slot in mix}
    assert weight_sets == {"current", "lagging"}
    weight_sets = {slot for mix in proposed("nft").build().mixtures for slot in mix}
    assert weight_sets == {"current", "lagging", "reference"}
