"""What a learner must keep apart, refuse or not invent: metrics of views, fields, minibatches."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.configs import ObjectiveConfig
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import Objective, ViewName
from genrl_core.interfaces.records import Tensors, Terms, split_evals
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import (
    SingleUpdates,
    ToyCanvas,
    ToyCanvasSampler,
    ToyReward,
    ToySequence,
    ToySequenceSampler,
    learner_for,
    rollout_of,
    toys,
)
from genrl_objectives import EntropyConfig, GrpoConfig, GrpoGuardConfig

Make = Callable[..., Recipe]
PROMPTS = tuple(Prompt(str(i), "toy") for i in range(5))


class Telling(Objective):
    """The sum of log-densities, and a metric that tells the view."""

    def __init__(self, *needs: str):
        self.needs = frozenset(needs)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        told = {"steps": 1.0, "elbo": 2.0}.get(batch.view, 3.0)
        entries = batch.errors[0] if batch.errors else batch.log_probs
        return batch.reduce(-entries), {"told": torch.full_like(entries, told)}


def setting(
    members: Mapping[str, Objective], groups: int = 3, **train: Any
) -> tuple[SingleUpdates, Rollout]:
    policy, sampler = ToyCanvas(), ToyCanvasSampler()
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    plan = plan_of(3, 0, 0, PROMPTS[:groups], 4)
    trajectory, media = generate(policy, sampler, plan, 99)
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    objectives = {label: (1.0, objective) for label, objective in members.items()}
    learner = learner_for(policy, sampler, objectives, weight_sets, **train)
    return learner, rollout_of(trajectory, reward, plan.group)


def test_a_metric_of_one_view_does_not_hide_that_of_another() -> None:
    views = {"first": "steps", "second": "elbo"}
    learner, rollout = setting({label: Telling() for label in views}, views=views)
    metrics, _ = learner.learn(rollout, 0, 0)
    assert (metrics["told"], metrics.get("second/told")) == (1.0, 2.0)


def test_a_minibatch_without_a_reward_has_no_entropy_to_report() -> None:
    members = {"grpo": GrpoConfig(epsilon=0.1).build(), "entropy": EntropyConfig().build()}
    learner, rollout = setting(members, num_minibatches=3)
    known, _ = learner.learn(rollout, 0, 0)
    learner, rollout = setting(members, num_minibatches=3)
    metrics, problem = learner.learn(replace(rollout, valid=rollout.group > 0), 0, 0)
    assert problem is None and all(value == value for value in metrics.values()), metrics
    assert metrics["entropy"] == pytest.approx(known["entropy"], rel=0.3)


@pytest.mark.parametrize(("groups", "asked"), [(5, 4), (5, 2), (4, 4), (5, 3)])
def test_there_are_as_many_optimizer_steps_as_minibatches(groups: int, asked: int) -> None:
    """All groups stand in one minibatch each; the schedule counts on the number of them."""
    objective = GrpoConfig(epsilon=0.1).build()
    learner, rollout = setting({"grpo": objective}, groups, num_minibatches=asked)
    seen: list[Tensor] = []
    taken: list[int] = []
    loss = objective.loss

    def watch(batch: Batch) -> Any:  # all rows are in one chunk, so once for each step
        seen.append(batch.valid)
        return loss(batch)

    objective.loss = watch  # type: ignore[method-assign]
    learner.learner.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    learner.learn(rollout, 0, 0)
    assert len(seen) == len(taken) == asked
    assert (torch.stack(seen).sum(0) == 1).all()


def test_no_gradient_is_kept_while_the_next_samples_are_drawn() -> None:
    learner, rollout = setting({"grpo": GrpoConfig(epsilon=0.1).build()})
    learner.learn(rollout, 0, 0)
    assert all(p.grad is None for p in learner.learner.context.policy.network.parameters())


@pytest.mark.parametrize(
    ("view", "name"),
    [
        ("denoising", "reference"),
        ("denoising", "lagging"),
        ("elbo", "entropy"),
        ("steps", "refernce"),
    ],
)
def test_a_field_that_the_view_does_not_give_is_refused(view: ViewName, name: str) -> None:
    objective = Telling(name)
    objective.mixtures = ({"current": 1.0},) if view == "denoising" else ()
    with pytest.raises(GenRLError, match=f"objective it needs {name}, .* view {view} "):
        setting({"it": objective}, views=view)


def test_a_trust_region_is_around_the_weights_that_draw(toy_recipe: Make) -> None:
    """Lagging weights that draw nothing are not those whose KL the objective wants."""
    recipe = toy_recipe("toy_canvas", objective={"grpo_guard": {"epsilon": 0.1}})
    build_trainer(recipe)
    lagging = recipe.with_overrides("weights.lagging={decay: 0.9}")
    with pytest.raises(GenRLError, match=r"weights\.lagging.*decay.*0\.9.*drew"):
        build_trainer(lagging)
    assert GrpoGuardConfig(epsilon=0.1).draws_with() == "current"


def longer(terms: Terms, calls: int, per_call: int) -> Terms:
    """The terms as a rank sees them where another rank's samples have more: zeros, no mask."""
    matrices = {
        name: torch.nn.functional.pad(
            split_evals(matrix, terms.num_evals),
            (0, 0, 0, per_call - len(matrix) // terms.num_evals, 0, calls - terms.num_evals),
        ).flatten(0, 1)
        for name, matrix in terms.matrices()
    }
    return replace(terms, num_evals=calls).with_matrices(matrices)


COUPLED: dict[str, Callable[[], ObjectiveConfig]] = {
    "term": lambda: GrpoConfig(epsilon=0.1),
    "sequence": lambda: GrpoConfig(epsilon=0.1, level="sequence"),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize(("toy", "calls", "per_call"), [(0, 1, 4), (1, 5, 1), (1, 4, 3)])
def test_terms_of_other_ranks_change_nothing_here(
    name: str, toy: int, calls: int, per_call: int
) -> None:
    """Samples of this rank have fewer calls, or fewer terms per call, than those elsewhere."""
    moves = []
    for pads in (False, True):
        policy, sampler = toys()[toy]
        plan = plan_of(3, 0, 0, PROMPTS, 4)
        trajectory, media = generate(policy, sampler, plan, 99)
        reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
        members = {name: (1.0, COUPLED[name]().build())}
        learner = learner_for(policy, sampler, members, micro_batch_size=7)
        rollout = rollout_of(trajectory, reward, plan.group)
        if pads:
            rollout = replace(rollout, terms=longer(rollout.terms, calls, per_call))
        before = next(policy.network.parameters()).detach().clone()
        _, problem = learner.learn(rollout, 0, 0)
        assert problem is None
        moves.append(next(policy.network.parameters()).detach() - before)
    assert moves[0].norm() > 0.01
    torch.testing.assert_close(moves[1], moves[0], rtol=0, atol=1e-12)


class Tokenwise(ToySequence):
    """Its bound has a term for each of both symbols."""

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        return {"events": torch.ones(draws, len(streams), 2, dtype=torch.int64)}

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        return self.log_probs(final["tokens"])[0]


class Beside(Runtime):
    """Another rank's samples have a third term in every draw."""

    def gather(self, local: Tensor, sample_index: Tensor, total: int) -> Tensor:
        found = super().gather(local, sample_index, total)
        return torch.nn.functional.pad(found, (0, 0, 0, 1)) if found.dim() == 3 else found


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("combine", [False, True])
def test_terms_of_other_ranks_bounds_change_nothing_here(name: str, combine: bool) -> None:
    moves = []
    for runtime in (Runtime("cpu"), Beside("cpu")):
        policy, sampler = Tokenwise(), ToySequenceSampler()
        policy.combine_draws = combine
        plan = plan_of(3, 0, 0, PROMPTS, 4)
        trajectory, media = generate(policy, sampler, plan, 99)
        reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
        members = {name: (1.0, COUPLED[name]().build())}
        learner = learner_for(policy, sampler, members, draws=2, micro_batch_size=7, views="elbo")
        learner.learner.context = replace(learner.learner.context, runtime=runtime)
        before = policy.network.table.detach().clone()
        _, problem = learner.learn(rollout_of(trajectory, reward, plan.group), 0, 0)
        assert problem is None
        moves.append(policy.network.table.detach() - before)
    assert moves[0].norm() > 0.01
    torch.testing.assert_close(moves[1], moves[0], rtol=0, atol=1e-12)
