"""The two-pass gradient against one pass through the whole graph, for losses that couple terms,
samples, draws and views; and the invariance of an update to how its rows are batched."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from updates import called_separable, moved, one_pass, table_of, update

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.objective import Objective
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.gradient import _write, accumulate
from genrl_core.loop.rollout import Rollout
from genrl_core.testing import SingleUpdates, toys
from genrl_objectives import GrpoConfig, KlConfig, ReinforceConfig


class GroupCoupled(Objective):
    """Cross-entropy between a group's softmax of rewards and its softmax of densities."""

    def __init__(self, reads: str = "steps"):
        self.reads = reads

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
    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value, old = batch.need("value"), batch.need("old_value")
        near = old + (value - old).clamp(-0.1, 0.1)
        target = batch.reward
        error = torch.maximum((value - target).square(), (near - target).square())
        loss = batch.reduce(error, "token_mean")
        return loss, {"value_error": error}


class EntropyBonus(Objective):
    needs = frozenset({"entropy"})
    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        entropy = batch.need("entropy")
        return -batch.reduce(entropy, "token_mean"), {"entropy": entropy}


class NegativeAware(Objective):
    """The forward-process loss of arXiv 2509.16117: errors of mixtures with the reference."""

    reads = "denoising"
    separable = True
    mixtures = ({"current": 0.5, "reference": 0.5}, {"current": -0.5, "reference": 1.5})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        good, bad = batch.errors
        chance = torch.sigmoid(batch.advantage)
        return batch.reduce(chance * good + (1 - chance) * bad, "sample_mean"), {"error": good}


class PairedBound(Objective):
    """A pairwise logistic loss on the bound against the reference: couples draws and samples."""

    reads = "elbo"
    needs = frozenset({"reference", "old_log_probs"})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        score = (batch.weight * (batch.log_probs - batch.need("reference"))).sum(0)
        order = batch.reward.argsort()
        margin = score[order[-1]] - score[order[0]]
        return -torch.nn.functional.logsigmoid(0.3 * margin), {"score": score}


class Pairs(Objective):
    """Neighbouring samples pull on each other; nothing is said about chunks."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        score = torch.where(batch.mask, batch.log_probs, 0.0).sum(0)
        return ((score[0::2] - 1) * score[1::2]).mean(), {"score": score}


class Centred(Objective):
    """REINFORCE on log-densities less their mean: where nothing has moved, the chunks' losses add
    up to the batch's, and their gradients do not.
    """

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        centred = batch.log_probs - batch.log_probs[batch.denominator_mask].mean()
        return -batch.reduce(centred * batch.reward), {"centred": centred}


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
    "combined_separable": (1, [clip(view="elbo")], True),
    "group_coupled_bound": (1, [GroupCoupled("elbo")], False),
    "denoising": (2, [NegativeAware()], False),
    "matching_canvas": (1, [NegativeAware()], False),
    "two_views": (1, [clip(), PairedBound(), KlConfig(estimator="k2").build()], False),
    "three_views": (2, [clip(), PairedBound(), NegativeAware()], False),
    "reinforce": (1, [ReinforceConfig().build()], False),
    "pairs": (0, [Pairs()], False),
    "centred": (1, [Centred()], False),
}


def reads(objective: Objective) -> str:
    """The view of an objective: its class says it here, or its config."""
    return getattr(objective, "reads", getattr(getattr(objective, "config", None), "view", "steps"))


def setting(
    name: str, count: int | None = None, *, moves: bool = True, **train: object
) -> tuple[SingleUpdates, Rollout]:
    """The update of a case, or of its first ``count`` objectives, see ``moved``."""
    index, objectives, combine = CASES[name]
    policy, sampler = toys()[index]
    policy.combine_draws = combine
    members = {str(i): (1.0 + 0.5 * i, objective) for i, objective in enumerate(objectives[:count])}
    views = {label: reads(objective) for label, (_, objective) in members.items()}
    return moved(policy, sampler, members, views=views, moves=moves, **train)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("name", CASES)
def test_two_passes_equal_one(name: str, rows: int) -> None:
    learner, rollout = setting(name, micro_batch_size=rows)
    exact = one_pass(learner, rollout)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(update(learner, rollout), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if all(o.separable for o in c[1])])
def test_separable_objectives_are_separable(name: str) -> None:
    """The chunked sum equals the two-pass rule, with chunks that split samples and groups."""
    with called_separable(CASES[name][1], False):
        expected = update(*setting(name, micro_batch_size=3))
    found = update(*setting(name, micro_batch_size=3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("name", ["pairs", "centred", "group_coupled", "sequence_coupled_canvas"])
def test_a_coupled_loss_that_says_separable_stops_the_run(name: str, on_policy: bool) -> None:
    """With both sums, and before a step is taken; in one chunk there is nothing wrong.

    Under the drawing weights too, where every ratio is 1 and only the gradients tell.
    """
    for rows, right in ((1000, True), (3, False), (1, False)):
        said = ""
        with called_separable(CASES[name][1], True):
            learner, rollout = setting(
                name, moves=not on_policy, micro_batch_size=rows, drift_tolerance=1e6
            )
            before = table_of(learner).detach().clone()
            try:
                learner.learn(replace(rollout, on_policy=on_policy), 0, 0)
            except GenRLError as error:
                said = str(error)
        told = re.search(r"chunks add up to (\S+), and that of the whole batch is (\S+);", said)
        assert (told is None) == right, f"{rows} rows in a chunk: {said!r}"
        assert right or torch.equal(before, table_of(learner))


class Numbers:
    """A view of one number per sample, ``[1, B]`` float32: a parameter itself, doubled."""

    num_evals = 1

    def __init__(self, values: Tensor):
        self.table = values.requires_grad_()

    def evaluate(self, k: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"log_probs": 2 * self.table[b].unsqueeze(1)}

    def fill_values(self, batch: Batch) -> dict[str, Tensor]:
        return {"log_probs": torch.zeros_like(batch.log_probs)}

    def with_current(self, batch: Batch, values: dict[str, Tensor]) -> Batch:
        return replace(batch, **values)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_rounding_is_no_coupling(size: float) -> None:
    """Sums that cancel, in float32: 512 samples whose losses add up to 0, in chunks of groups."""
    generator = torch.Generator().manual_seed(0)
    count, zero = 512, torch.zeros(1, 512)
    advantage = torch.randn(count // 8, 8, generator=generator)
    advantage = (advantage - advantage.mean(1, keepdim=True)).view(1, count)
    values = size * (1 + 1e-6 * torch.randn(count, generator=generator))
    true = torch.ones(1, count, dtype=torch.bool)
    batch = Batch(
        zero, zero.long(), zero.long(), true, true, zero + 1, zero + 1, advantage, zero[0],
        torch.arange(count) // 8, true[0],
    )  # fmt: skip
    for loss in (
        lambda b: b.reduce(-b.advantage * b.log_probs),
        lambda b: b.reduce(-b.advantage * (b.log_probs - b.log_probs.detach()).exp()),
    ):
        view, together = Numbers(values.clone()), Numbers(values.clone())
        accumulate(
            view, batch, lambda b, f=loss: (f(b), {}), torch.arange(count), Runtime("cpu"),
            separable=True, micro_batch_size=8,
        )  # fmt: skip
        loss(
            together.with_current(batch, {"log_probs": 2 * together.table.unsqueeze(0)})
        ).backward()
        torch.testing.assert_close(view.table.grad, together.table.grad)


@pytest.mark.parametrize("name", ["sequence_coupled_canvas", "two_views", "value", "denoising"])
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
    both = update(*setting("analytic_kl"))
    assert (both - update(*setting("analytic_kl", 1))).abs().max() > 1e-3


def test_write_keeps_the_dtype() -> None:
    values = {"x": torch.zeros(2, 2, dtype=torch.float64)}
    _write(values, {"x": torch.ones(1, 1)}, (torch.tensor([[1]]), torch.tensor([[0]])))
    assert values["x"].tolist() == [[0, 0], [1, 0]]
