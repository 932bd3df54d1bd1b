"""The two-pass gradient against one pass through the whole graph, for losses that couple terms,
samples, draws and views; and the invariance of an update to how its rows are batched."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genrl_core.advantage import advantages
from genrl_core.collect import Rollout, draw
from genrl_core.config import AdvantageConfig
from genrl_core.gradient import _write
from genrl_core.objective import Objective, View
from genrl_core.plan import plan_of
from genrl_core.records import Batch, Prompt
from genrl_core.testing import ToyReward, learner_for, rollout_of, toys
from genrl_core.update import Learner
from genrl_core.weights import Slots
from genrl_objectives import GrpoConfig, KlConfig, ReinforceConfig

ADVANTAGE = AdvantageConfig(scale="batch_std")
PROMPTS = tuple(Prompt(str(i), "toy") for i in range(3))


class GroupCoupled(Objective):
    """Cross-entropy between a group's softmax of rewards and its softmax of densities."""

    separable = False

    def __init__(self, view: View = "steps"):
        self.view = view

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        score = torch.where(batch.mask, batch.log_probs, 0.0).sum(0)
        losses = []
        for group in batch.group[batch.valid].unique():
            inside = (batch.group == group) & batch.valid
            target = batch.reward[inside].softmax(0)
            losses.append(-(target * score[inside].log_softmax(0)).sum())
        return torch.stack(losses).mean(), {"score": score}


class ValueLoss(Objective):
    """Squared error of the value, clipped to the recorded one."""

    needs = frozenset({"value"})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value, old = batch.need("value"), batch.need("old_value")
        near = old + (value - old).clamp(-0.1, 0.1)
        target = batch.reward
        error = torch.maximum((value - target).square(), (near - target).square())
        loss = batch.reduce(error, "token_mean")
        return loss, {"value_error": error}


class EntropyBonus(Objective):
    view = None
    needs = frozenset({"entropy"})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        entropy = batch.need("entropy")
        return -batch.reduce(entropy, "token_mean"), {"entropy": entropy}


class NegativeAware(Objective):
    """The forward-process loss of arXiv 2509.16117: errors of mixtures with the reference."""

    view = "matching"
    mixtures = ({"current": 0.5, "reference": 0.5}, {"current": -0.5, "reference": 1.5})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        good, bad = batch.errors
        chance = torch.sigmoid(batch.advantage)
        return batch.reduce(chance * good + (1 - chance) * bad, "sample_mean"), {"error": good}


class PairedBound(Objective):
    """A pairwise logistic loss on the bound against the reference: couples draws and samples."""

    view = "bound"
    needs = frozenset({"reference", "old"})
    separable = False

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        score = (batch.weight * (batch.log_probs - batch.need("reference"))).sum(0)
        order = batch.reward.argsort()
        margin = score[order[-1]] - score[order[0]]
        return -torch.nn.functional.logsigmoid(0.3 * margin), {"score": score}


def analytic_kl() -> Objective:
    return KlConfig(estimator="analytic").build()


def clip(**fields: object) -> Objective:
    return GrpoConfig.model_validate({"epsilon": 0.1} | fields).build()


CASES: dict[str, tuple[int, list[Objective], bool]] = {
    "sequence_coupled": (0, [clip(level="sequence", over="mean")], False),
    "sequence_coupled_canvas": (1, [clip(level="sequence")], False),
    "group_coupled": (1, [GroupCoupled()], False),
    "analytic_kl": (2, [clip(), analytic_kl()], False),
    "analytic_kl_canvas": (1, [clip(level="sequence"), analytic_kl()], False),
    "value": (2, [clip(), ValueLoss()], False),
    "entropy": (1, [clip(), EntropyBonus()], False),
    "unbiased_kl": (0, [clip(), KlConfig().build()], False),
    "two_weighted_draws": (1, [PairedBound()], False),
    "combined_draws": (1, [PairedBound()], True),
    "combined_separable": (1, [clip(view="bound")], True),
    "group_coupled_bound": (1, [GroupCoupled("bound")], False),
    "matching": (2, [NegativeAware()], False),
    "matching_canvas": (1, [NegativeAware()], False),
    "two_views": (1, [clip(), PairedBound(), KlConfig(estimator="k2").build()], False),
    "three_views": (2, [clip(), PairedBound(), NegativeAware()], False),
    "reinforce": (1, [ReinforceConfig().build()], False),
}


def setting(name: str, **train: object) -> tuple[Learner, Rollout]:
    """A learner and a rollout whose weights have moved since it was drawn."""
    index, objectives, combine = CASES[name]
    policy, sampler = toys()[index]
    policy.combine_draws = combine
    slots = Slots(policy)
    slots.freeze("reference")
    plan = plan_of(3, 0, 0, PROMPTS, 4)
    trajectory, media = draw(policy, sampler, plan, 99)
    with torch.no_grad():
        policy.network.table.mul_(1.3).add_(0.2 * policy.network.table.cos())
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    rollout = rollout_of(trajectory, reward, plan.group)
    members = {str(i): (1.0 + 0.5 * i, objective) for i, objective in enumerate(objectives)}
    learner = learner_for(
        policy, sampler, members, slots, ADVANTAGE, draws=2, drift_tolerance=1e-9, **train
    )
    return learner, replace(rollout, on_policy=False)


def update(learner: Learner, rollout: Rollout) -> Tensor:
    """What one learn() subtracts from the table."""
    table = learner._policy.network.table
    before = table.detach().clone()
    _, problem = learner.learn(rollout, 0, 0)
    assert problem is None
    return before - table.detach()


def one_pass(learner: Learner, rollout: Rollout) -> Tensor:
    """The same update by a single backward through the graph of the whole batch."""
    advantage = advantages(ADVANTAGE, rollout.reward, rollout.valid, rollout.group)
    total = torch.zeros((), dtype=torch.float64)
    for side in learner._sides:
        ready = learner.prepare(side, rollout, advantage, 0)
        blank = ready.view.blank(ready.batch)
        rows, samples = next(iter(blank.values())).shape
        calls = ready.view.calls
        k = torch.arange(calls).repeat_interleave(samples)
        b = torch.arange(samples).repeat(calls)
        place = (k.unsqueeze(1) * (rows // calls) + torch.arange(rows // calls), b.unsqueeze(1))
        fresh = ready.view.evaluate(k, b)
        values = {n: matrix.index_put(place, fresh[n]) for n, matrix in blank.items()}
        total = total + side.loss(ready.view.insert(ready.batch, values))[0]
    (gradient,) = torch.autograd.grad(total, learner._policy.network.table)
    return gradient


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("name", CASES)
def test_two_passes_equal_one(name: str, rows: int) -> None:
    learner, rollout = setting(name, rows_per_forward=rows)
    exact = one_pass(learner, rollout)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(update(learner, rollout), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if all(o.separable for o in c[1])])
def test_separable_objectives_are_separable(name: str) -> None:
    """The chunked sum equals the two-pass rule, with chunks that split samples and groups."""
    chunked, rollout = setting(name, rows_per_forward=3)
    coupled, _ = setting(name, rows_per_forward=3)
    for side in coupled._sides:
        for _, _, objective in side.members:
            objective.separable = False
    try:
        expected = update(coupled, rollout)
    finally:
        for side in coupled._sides:
            for _, _, objective in side.members:
                objective.separable = True
    torch.testing.assert_close(update(chunked, rollout), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sequence_coupled_canvas", "two_views", "value", "matching"])
def test_batch_order_changes_nothing(name: str) -> None:
    """The samples of a rollout in another order give the same update."""
    learner, rollout = setting(name)
    straight = update(learner, rollout)
    learner, rollout = setting(name)
    order = torch.randperm(len(rollout.reward), generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        rollout, trajectory=rollout.trajectory.select(order),
        terms=rollout.trajectory.select(order).terms, reward=rollout.reward[order],
        group=rollout.group[order], parts=(rollout.parts[0].select(order),),
    )  # fmt: skip
    torch.testing.assert_close(update(learner, shuffled), straight, rtol=0, atol=1e-10)


def test_one_leaf_field_alone_would_lose_gradients() -> None:
    """The leaf is the whole record: with log_probs alone the analytic KL had no gradient."""
    learner, rollout = setting("analytic_kl")
    both = update(learner, rollout)
    learner, rollout = setting("analytic_kl")
    object.__setattr__(learner._sides[0], "members", learner._sides[0].members[:1])
    assert (both - update(learner, rollout)).abs().max() > 1e-3


def test_write_keeps_the_dtype() -> None:
    values = {"x": torch.zeros(2, 2, dtype=torch.float64)}
    _write(values, {"x": torch.ones(1, 1)}, (torch.tensor([[1]]), torch.tensor([[0]])))
    assert values["x"].tolist() == [[0, 0], [1, 0]]
