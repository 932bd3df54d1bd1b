"""One reward of several, alike for filter, advantages, objectives and the differentiable one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.reward import Reward
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing.enumerable import ToyReward

Make = Callable[..., Recipe]
ROWS: dict[str, list[float | None]] = {
    "large": [0, 1000, 2000, 3000, 5, 5, 5, 5, 1000, 4000, 9000, 2000],
    "small": [0, -1, -2, 0, 0.1, 0.1, 0.1, 0.1, 1, 2, 3, 5],
    "partly": [None, None, None, None, 1 / 3, 1 / 3, 1 / 3, 1 / 3, None, None, None, None],
}
WEIGHTS = {"large": 0.001, "small": 1.0, "partly": 2.0}


class Listed(Reward):
    """Twelve numbers, whatever it judges."""

    def __init__(self, values: Sequence[float | None]):
        self._values = values

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        return self._values[: len(prompts)]


def sections(names: Sequence[str]) -> dict[str, Any]:
    return {"reward": {n: {"use": "toy_reward", "weight": WEIGHTS[n]} for n in names}}


def normalised(rows: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted sum of z-scores within groups of four; what is equal or absent adds nothing."""
    total = np.zeros(12)
    for values, weight in zip(rows, weights, strict=True):
        for part in np.split(np.arange(12), 3):
            own = values[part]
            if not np.isnan(own).any() and own.std() > 1e-9:
                total[part] += weight * (own - own.mean()) / (own.std(ddof=1) + 1e-4)
    return total


def seen_by(trainer: Trainer) -> list[Batch]:
    """The batches that the one objective is going to see."""
    seen: list[Batch] = []
    ((_, _, objective),) = trainer.parts.objectives[0].members
    loss = objective.loss

    def watch(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(batch)
        return loss(batch)

    objective.loss = watch  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("combine", ["sum", "normalise_then_sum"])
def test_everything_reads_the_same_combination(toy_recipe: Make, combine: str) -> None:
    more = [f"advantage.combine={combine}", "train.iterations=1", "evaluate=null",
            "prompts.evaluate=null"]  # fmt: skip
    recipe = toy_recipe("toy_canvas", *more, **sections([*ROWS]))
    trainer = build_trainer(recipe, rewards={name: Listed(values) for name, values in ROWS.items()})
    seen = seen_by(trainer)
    metrics = trainer.step().metrics
    rows = [np.array([np.nan if v is None else v for v in ROWS[name]]) for name in ROWS]
    plain = sum(WEIGHTS[n] * np.nan_to_num(r) for n, r in zip(ROWS, rows, strict=True))
    exact = plain if combine == "sum" else normalised(rows, [*WEIGHTS.values()])
    batch = seen[-1]
    # Groups come in the order of their prompts: three of four samples, in the plan's order.
    assert batch.reward.numpy() == pytest.approx(exact, abs=1e-9)
    spreads = exact.reshape(3, 4).std(1, ddof=1)
    assert metrics["spread"] == pytest.approx(spreads.mean(), abs=1e-9)
    assert metrics["zero_spread"] == pytest.approx(1 / 3)
    assert metrics["reward"] == pytest.approx(plain.mean()), "the metric is the plain sum"
    advantage = (exact - exact.mean()) / (exact.std(ddof=1) + 1e-4)
    if combine == "normalise_then_sum":
        assert batch.advantage[0].numpy() == pytest.approx(advantage, abs=1e-9)
        assert batch.advantage[0, 4:8].tolist() == [0.0] * 4


def test_the_filter_keeps_what_the_combination_tells_apart(toy_recipe: Make) -> None:
    """Three rewards whose plain sum is 0 for all, while their z-scores do not cancel."""
    rows = {"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0, -1.0, -2.0, 0.0], "c": [0.0, 0.0, 0.0, -3.0]}
    kept = {}
    for combine in ("sum", "normalise_then_sum"):
        recipe = toy_recipe(
            "toy_canvas", f"advantage.combine={combine}", "filter.min_std=0", "evaluate=null",
            "prompts.evaluate=null", reward={n: {"use": "toy_reward"} for n in rows},
        )  # fmt: skip
        trainer = build_trainer(recipe, rewards={n: Listed(v * 3) for n, v in rows.items()})
        kept[combine] = trainer.step().metrics["groups_kept"]
    assert kept == {"sum": 0, "normalise_then_sum": 3}


def test_equal_rewards_have_equal_sums(toy_recipe: Make) -> None:
    """Weighted sums of equal rewards are rejected, and counted, whatever the numbers."""
    for size in (3, 5, 7, 8):
        more = ["filter.min_std=0", f"train.num_generations={size}", "train.iterations=1",
                "train.num_prompts=2", "evaluate=null", "prompts.evaluate=null"]  # fmt: skip
        weights = {"x": 0.3, "y": 0.7, "z": 1.1}
        recipe = toy_recipe(
            "toy_canvas", *more,
            reward={n: {"use": "toy_reward", "weight": w} for n, w in weights.items()},
        )  # fmt: skip
        rewards = {n: Listed([v] * 99) for n, v in zip(weights, (0.1, 1e5 / 3, 1 / 7), strict=True)}
        metrics = build_trainer(recipe, rewards=rewards).step().metrics
        assert (metrics["groups_kept"], metrics["zero_spread"]) == (0, 1)
        assert (metrics["spread"], metrics["reward_std"]) == (0, 0)


class Slope(ToyReward):
    """The place itself, in hundreds."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        return [100 * float(text) for text in media.texts]

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 100 * pixels.flatten()


def test_the_differentiable_reward_is_combined_like_the_others(toy_recipe: Make) -> None:
    more = ["advantage.combine=normalise_then_sum", "train.iterations=1", "evaluate=null",
            "prompts.evaluate=null", "train.micro_batch_size=5"]  # fmt: skip
    recipe = toy_recipe(
        "toy_gaussian", *more, objective={"reward_gradient": {"steps": 2}},
        reward={"toy": {"use": "toy_reward", "weight": 0.5},
                "slope": {"use": "toy_reward", "weight": 3.0}},
    )  # fmt: skip
    trainer = build_trainer(recipe, rewards={"toy": ToyReward(), "slope": Slope()})
    seen = seen_by(trainer)
    record = trainer.step()
    rows = [np.array(reward(record.media, [])) for reward in (ToyReward(), Slope())]
    exact = normalised(rows, [0.5, 3.0])
    whole = seen[-1]
    assert whole.differentiable_reward is not None
    assert whole.differentiable_reward[0].detach().numpy() == pytest.approx(exact, abs=1e-9)
    assert record.metrics["reward_gap"] < 1e-9


def test_a_weighted_sum_that_overflows_is_named(toy_recipe: Make) -> None:
    recipe = toy_recipe(
        "toy_canvas", "evaluate=null", "prompts.evaluate=null",
        reward={"huge": {"use": "toy_reward", "weight": 10.0}, "toy": {"use": "toy_reward"}},
    )  # fmt: skip
    values = [0.0, 1e308, *[1.0] * 10]
    trainer = build_trainer(recipe, rewards={"huge": Listed(values), "toy": ToyReward()})
    before = next(trainer.parts.policy.network.parameters()).detach().clone()
    record = trainer.step()
    said = str(record.problem)
    assert "sum of rewards overflows for prompt" in said
    assert "huge 1e+308" in said
    assert torch.equal(before, next(trainer.parts.policy.network.parameters()))
