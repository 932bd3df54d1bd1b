"""Running statistics per prompt (DDPO): against a deque kept by hand, checkpoints, refusals."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from genrl_core.errors import RecipeError
from genrl_core.loop.advantage import PromptStatistics, advantages
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer
from genrl_core.run.saving import restore, save

Make = Callable[..., Recipe]

RUNNING = AdvantageConfig(
    baseline="prompt_mean", scale="prompt_std", buffer=6, min_count=4, epsilon=1e-6
)


def drawn(iteration: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Nine rewards of four groups, two of them of one prompt; some are missing."""
    generator = np.random.default_rng(iteration)
    prompts = ["a", "b", "a", "c" if iteration % 2 else "d"]
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    valid = torch.from_numpy(generator.random(9) < 0.8)
    reward = torch.from_numpy(generator.normal(size=9)) * 3 + group
    return torch.where(valid, reward, torch.nan), valid, group, prompts


def by_hand(
    memory: dict[str, deque[float]], reward: np.ndarray, valid: np.ndarray, names: list[str]
) -> np.ndarray:
    """The authors' tracker, with unbiased deviations: prompts one after the other."""
    found = np.zeros(len(names))
    for name in sorted(set(names)):
        rows = [b for b, other in enumerate(names) if other == name and valid[b]]
        memory.setdefault(name, deque(maxlen=6)).extend(reward[b] for b in rows)
        enough = len(memory[name]) >= 4
        behind = np.array(memory[name]) if enough else reward[valid]
        for b in rows:
            found[b] = (reward[b] - behind.mean()) / (behind.std(ddof=1) + 1e-6)
    return found


def test_advantages_equal_a_deque_kept_by_hand() -> None:
    statistics, memory = PromptStatistics(RUNNING), dict[str, deque[float]]()
    settled = 0
    for iteration in range(8):
        reward, valid, group, prompts = drawn(iteration)
        running = statistics.update(reward, valid, group, prompts)
        found = advantages(RUNNING, reward, valid, group, running)
        names = [prompts[slot] for slot in group.tolist()]
        exact = by_hand(memory, reward.numpy(), valid.numpy(), names)
        assert found.numpy() == pytest.approx(exact, abs=1e-12)
        settled += sum(len(values) == 6 for values in memory.values())
    assert settled > 10
    assert statistics.state_dict() == {"history": {n: list(v) for n, v in memory.items()}}


def test_baseline_and_scale_are_chosen_apart() -> None:
    reward, valid, group, prompts = drawn(0)
    kept = torch.where(valid, reward, torch.zeros_like(reward))
    for baseline, scale in (("prompt_mean", "batch_std"), ("batch_mean", "prompt_std")):
        config = RUNNING.model_copy(update={"baseline": baseline, "scale": scale, "min_count": 2})
        running = PromptStatistics(config).update(reward, valid, group, prompts)
        mean = running.mean if baseline == "prompt_mean" else reward[valid].mean()
        spread = running.std if scale == "prompt_std" else reward[valid].std()
        exact = torch.where(valid, (kept - mean) / (spread + 1e-6), torch.zeros_like(kept))
        torch.testing.assert_close(advantages(config, kept, valid, group, running), exact)


def test_equal_rewards_of_a_prompt_give_exactly_zero() -> None:
    config = RUNNING.model_copy(update={"epsilon": 0.0})
    statistics, group = PromptStatistics(config), torch.zeros(4).long()
    reward, valid = torch.full((4,), 0.1).double() * 3, torch.ones(4).bool()
    for _ in range(3):
        running = statistics.update(reward, valid, group, ["a"])
        assert advantages(config, reward, valid, group, running).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("number", [1e6 / 3, 0.7, 1e-9 / 3])
@pytest.mark.parametrize("scale", ["prompt_std", "group_std", "batch_std"])
@pytest.mark.parametrize("baseline", ["prompt_mean", "batch_mean"])
def test_equal_rewards_of_all_time_give_exactly_zero(
    baseline: str, scale: str, number: float
) -> None:
    """Large ones too: no absolute bound says what is equal."""
    fields = {"baseline": baseline, "scale": scale, "buffer": 32, "epsilon": 1e-4}
    config = RUNNING.model_copy(update=fields)
    statistics, group = PromptStatistics(config), torch.arange(14) // 7
    reward, valid = torch.full((14,), number, dtype=torch.float64), torch.ones(14).bool()
    for _ in range(3):
        running = statistics.update(reward, valid, group, ["a", "b"])
        assert advantages(config, reward, valid, group, running).tolist() == [0] * 14
    assert running.std.tolist() == [0] * 14


def test_statistics_reach_beyond_the_iteration() -> None:
    """One sample per prompt and equal rewards in the batch: only the past tells them apart."""
    statistics = PromptStatistics(RUNNING.model_copy(update={"min_count": 2}))
    group, valid = torch.tensor([0, 1]), torch.ones(2).bool()
    statistics.update(torch.tensor([0.0, 5.0]).double(), valid, group, ["a", "b"])
    now = torch.tensor([2.0, 2.0]).double()
    running = statistics.update(now, valid, group, ["a", "b"])
    found = advantages(RUNNING, now, valid, group, running)
    assert found[0] > 0.5 > -0.5 > found[1]


ONE_SAMPLE = [
    "advantage={baseline: prompt_mean, scale: prompt_std, buffer: 6, min_count: 2}",
    "train.num_generations=1", "train.num_prompts=4", "train.iterations=8",
]  # fmt: skip


@pytest.mark.parametrize("stop", [1, 5])
def test_resume_is_bit_identical(toy_recipe: Make, tmp_path: Path, stop: int) -> None:
    recipe = toy_recipe("toy_canvas", *ONE_SAMPLE)
    straight, first, second = (build_trainer(recipe) for _ in range(3))
    wanted = [straight.step().metrics for _ in range(8)]
    for _ in range(stop):
        first.step()
    save(first, recipe, tmp_path)
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    restore(second, recipe, newest)
    for expected in wanted[stop:]:
        found = second.step().metrics
        timeless = {k: v for k, v in expected.items() if not k.startswith("seconds")}
        assert timeless == {k: found[k] for k in timeless}
    weights = straight.weight_sets.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in second.weight_sets.state_dict().items())


def test_one_sample_per_prompt_learns(toy_recipe: Make) -> None:
    more = ["train.iterations=60", "train.num_prompts=20", "train.learning_rate=0.1"]
    trainer = build_trainer(toy_recipe("toy_canvas", *ONE_SAMPLE, *more))
    rewards = [trainer.step().metrics["reward"] for _ in range(60)]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.2


def test_what_cannot_work_is_refused(toy_recipe: Make) -> None:
    for key in ("baseline=prompt_mean", "scale=prompt_std"):
        with pytest.raises(RecipeError, match="Choose combine: sum, or baseline: group_mean"):
            toy_recipe("toy_canvas", f"advantage.{key}", "advantage.combine=normalise_then_sum")
    with pytest.raises(RecipeError, match="min_count 40 is never reached"):
        toy_recipe("toy_canvas", "advantage.scale=prompt_std", "advantage.min_count=40")
