"""Faults of a learner that leave every number plausible: each test names one and would see it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.reward import Reward
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import permutation, plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views import steps as steps_view
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import build_trainer, train
from genrl_core.testing import (
    SingleUpdates,
    ToyCanvas,
    ToyCanvasSampler,
    ToyReward,
    learner_for,
    rollout_of,
)
from genrl_objectives import GrpoConfig

Make = Callable[..., Recipe]
PROMPTS = tuple(Prompt(str(i), "toy") for i in range(3))


def clip() -> dict[str, tuple[float, Objective]]:
    return {"grpo": (1.0, GrpoConfig(epsilon=0.1).build())}


def setting(rate: float = 1.0, **train: Any) -> tuple[SingleUpdates, Rollout, Tensor]:
    """A learner by plain gradient descent, a rollout of three groups of four, and the weights."""
    policy, sampler = ToyCanvas(), ToyCanvasSampler()
    plan = plan_of(3, 0, 0, PROMPTS, 4)
    trajectory, media = generate(policy, sampler, plan, 99)
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    learner = learner_for(policy, sampler, clip(), rate=rate, **train)
    return (
        learner,
        rollout_of(trajectory, reward, plan.group),
        next(policy.network.parameters()).data,
    )


def moved(learner: SingleUpdates, rollout: Rollout, table: Tensor) -> Tensor:
    """What one ``learn`` subtracts from the weights."""
    before = table.clone()
    _, problem = learner.learn(rollout, 0, 0)
    assert problem is None
    return before - table


def test_importance_weights_make_up_for_the_calls_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three calls, each weighing 3: the mean of the updates is the update of all calls."""
    everything = moved(*setting())
    parts = []
    for call in range(3):

        def one(config: object, calls: int, streams: Sequence[object], call: int = call) -> Any:
            chosen = torch.arange(calls).unsqueeze(1).expand(calls, len(streams)) == call
            return chosen, torch.full(chosen.shape, float(calls))

        monkeypatch.setattr(steps_view, "choose_evals", one)
        steps = {"choose": "random", "count": 1, "importance": True}
        parts.append(moved(*setting(steps=steps)))
    assert everything.norm() > 0.1
    torch.testing.assert_close(torch.stack(parts).mean(0), everything, rtol=0, atol=1e-12)
    assert (parts[0] - everything).abs().max() > 0.01


def test_a_missing_reward_is_not_a_reward_of_zero(toy_recipe: Make) -> None:
    """Mean and spread are those of the rewards given, whatever the others might have been."""
    given: list[list[float]] = []

    class Partly(ToyReward):
        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float | None]:  # type: ignore[override]
            values = [10 + value for value in super().__call__(media, prompts)]
            given.extend(values[first : first + 3] for first in range(0, len(values), 4))
            return [None if place % 4 == 3 else value for place, value in enumerate(values)]

    (record,) = train(toy_recipe("toy_canvas", "train.iterations=1"), rewards={"mine": Partly()})
    groups = torch.tensor(given, dtype=torch.float64)
    assert groups.shape == (3, 3)
    assert record.metrics["reward"] == pytest.approx(groups.mean().item())
    assert record.metrics["reward_std"] == pytest.approx(groups.std().item())
    assert record.metrics["spread"] == pytest.approx(groups.std(dim=1).mean().item())


def test_a_bound_is_compared_with_what_it_was_before_the_first_update(toy_recipe: Make) -> None:
    """The second update meets a ratio that is not 1, on draws of its own."""
    recipe = toy_recipe(
        "toy_canvas", "train.iterations=1", "train.learning_rate=0.3",
        objective={"grpo": {"epsilon": 0.2, "view": "elbo"}},
    )  # fmt: skip
    (once,) = train(recipe)
    assert once.metrics["ratio_max"] == 1
    (twice,) = train(recipe.with_overrides("train.num_updates=2"))
    assert twice.metrics["ratio_max"] > 1.05


def test_a_minibatch_trains_its_own_groups_and_no_others() -> None:
    """Three minibatches of one group each equal three rollouts of one group, one after another."""
    learner, rollout, table = setting(0.2, num_minibatches=3)
    together = moved(learner, rollout, table)
    learner, rollout, table = setting(0.2)
    before = table.clone()
    for place, group in enumerate(permutation(0, "minibatch", 0, 0, size=3)):
        inside = (rollout.group == group).nonzero().flatten()
        alone = rollout_of(
            rollout.trajectory.select(inside), rollout.reward[inside], torch.zeros(4).long()
        )
        moved(learner, replace(alone, on_policy=place == 0), table)
    assert together.norm() > 0.01
    torch.testing.assert_close(together, before - table, rtol=0, atol=1e-12)


def test_no_gradient_is_left_over_for_the_next_step() -> None:
    """From the same weights the same rollout gives the same step again."""
    learner, rollout, table = setting()
    before = table.clone()
    first = moved(learner, rollout, table)
    table.copy_(before)
    torch.testing.assert_close(moved(learner, rollout, table), first, rtol=0, atol=0)
    table.copy_(before)
    (parameter,) = learner.learner.context.policy.network.parameters()
    parameter.grad = torch.ones_like(parameter)  # of an injected policy that was trained before
    torch.testing.assert_close(moved(learner, rollout, table), first, rtol=0, atol=0)


def test_scores_that_are_no_numbers_are_no_drift_of_zero() -> None:
    learner, rollout, table = setting()
    table.fill_(math.nan)
    metrics, problem = learner.learn(rollout, 0, 0)
    assert math.isnan(metrics["drift"])
    assert problem is not None and "log-density" in problem


def test_the_largest_of_an_iteration_is_no_number_where_one_step_has_none() -> None:
    """The first step ends in weights that are no numbers, and so are the ratios after it."""
    learner, rollout, table = setting(num_minibatches=3)
    learner.learner.optimizer.register_step_post_hook(lambda *_: table.fill_(math.nan))
    metrics, problem = learner.learn(rollout, 0, 0)
    assert problem is not None and metrics["drift"] < 1e-12
    assert math.isnan(metrics["ratio_max"])


def test_gradients_are_clipped_to_their_norm() -> None:
    free = moved(*setting()).norm().item()
    assert free > 0.1
    clipped = moved(*setting(max_grad_norm=free / 10)).norm().item()
    assert clipped == pytest.approx(free / 10, rel=1e-4)


class Telling(Reward):
    """Depends on the sample and on its prompt; equal for all samples of the shorter prompts."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        pairs = zip(media.texts, prompts, strict=True)
        return [1.0 if len(p.text) < 3 else float(text) * len(p.text) for text, p in pairs]


def test_numbers_stay_with_their_samples(toy_recipe: Make, tmp_path: Path) -> None:
    """Small forwards, rejected groups, new ones in their place: rows are never mixed up."""
    file = tmp_path / "lengths.txt"
    file.write_text("".join("x" * length + "\n" for length in range(1, 6)))
    recipe = toy_recipe(
        "toy_gaussian", "filter={min_std: 0, then: resample, max_attempts: 9}",
        "train.num_prompts=5", "train.rollout_batch_size=3",
        prompts={"file": str(file), "evaluate": str(file)},
    )  # fmt: skip
    reward = Telling()
    trainer = build_trainer(recipe, rewards={"mine": reward})
    rollout = trainer.rollouts.collect(0)
    assert rollout.metrics["attempts"] > 1 and rollout.metrics["groups_rejected"] >= 2
    trajectory, prompts = rollout.trajectory, rollout.prompts
    assert rollout.reward.tolist() == reward(rollout.media, prompts)
    assert trainer.parts.policy.decode(trajectory.final).texts == rollout.media.texts
    assert trajectory.cond["length"].tolist() == [len(prompt.text) for prompt in prompts]
    for group in range(5):
        inside = rollout.group == group
        assert inside.sum() == 4
        assert len({p.id for p, i in zip(prompts, inside, strict=True) if i}) == 1
    k, b = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(2), torch.arange(20), indexing="ij")
    )
    densities, action = trainer.parts.sampler.densities(trainer.parts.policy, trajectory, k, b)
    found = densities.log_prob(action).detach().view(2, 20)
    torch.testing.assert_close(found, rollout.terms.log_probs, rtol=0, atol=1e-12)
    assert len(set(rollout.media.texts)) == 20, "a new attempt repeats the draws of an earlier one"
