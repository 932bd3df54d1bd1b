"""The loop on the toys: learning, invariance, drift, guards, filters, resume, two processes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrl_core.errors import CheckpointError, GenRLError, RecipeError, RewardError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.records import Tensors
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Transition
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer, train
from genrl_core.run.saving import restore, save
from genrl_core.testing.enumerable import ToyCanvas, ToyCanvasSampler, ToyReward, _CanvasStep

Make = Callable[..., Recipe]
TOYS = ["toy_sequence", "toy_canvas", "toy_gaussian"]


def table(trainer: Trainer) -> Tensor:
    return next(trainer.parts.policy.network.parameters()).detach().clone()


def tables(recipe: Recipe, **injected: Any) -> list[Tensor]:
    trainer = build_trainer(recipe, **injected)
    found = []
    for _ in range(recipe.train.iterations):
        trainer.step()
        found.append(table(trainer))
    return found


@pytest.mark.parametrize("name", TOYS)
def test_reward_rises(toy_recipe: Make, name: str) -> None:
    """Over three seeds the mean reward of the last iterations beats that of the first."""
    gains = []
    for seed in range(3):
        recipe = toy_recipe(name, "train.iterations=40", f"run.seed={seed}")
        rewards = [record.metrics["reward"] for record in train(recipe)]
        gains.append(sum(rewards[-8:]) / 8 - sum(rewards[:8]) / 8)
    assert min(gains) > 0.25, gains


@pytest.mark.parametrize("name", TOYS)
def test_chunks_and_forwards_change_nothing(toy_recipe: Make, name: str) -> None:
    """Rows per forward and samples per forward are about memory alone (float64, 1e-10)."""
    more = ["train.num_updates=2", "train.num_minibatches=3"]
    whole = tables(toy_recipe(name, *more))
    pieces = tables(
        toy_recipe(name, *more, "train.micro_batch_size=5", "train.rollout_batch_size=7")
    )
    for first, second in zip(whole, pieces, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


def test_grpo_equals_reinforce_at_one_update(toy_recipe: Make) -> None:
    clipped = tables(toy_recipe("toy_canvas"))
    plain = tables(toy_recipe("toy_canvas", objective={"reinforce": {}}))
    torch.testing.assert_close(clipped[-1], plain[-1], rtol=0, atol=1e-10)


def test_a_second_update_moves_ratios_and_clips(toy_recipe: Make) -> None:
    recipe = toy_recipe(
        "toy_canvas", "train.num_updates=4", "train.learning_rate=0.3",
        "objective.grpo.epsilon=0.05", "train.iterations=2",
    )  # fmt: skip
    first, second = train(recipe)
    for record in (first, second):
        assert record.metrics["ratio_max"] > 1.05
        assert record.metrics["clip_fraction"] > 0.05
    (alone,) = train(toy_recipe("toy_canvas", "train.iterations=1"))
    assert alone.metrics["ratio_max"] == 1 and alone.metrics["clip_fraction"] == 0


@pytest.mark.parametrize("estimator", ["k2", "k3", "unbiased", "analytic"])
@pytest.mark.parametrize("name", TOYS)
def test_kl_is_zero_at_the_reference_and_pulls_away_from_it(
    toy_recipe: Make, name: str, estimator: str
) -> None:
    """Value and gradient: zero at the reference, both positive away from it."""
    alone = {"kl": {"estimator": estimator}, "reinforce": {"weight": 0.0}}
    recipe = toy_recipe(name, "train.max_grad_norm=null", objective=alone)
    trainer = build_trainer(recipe)
    at = trainer.step().metrics
    assert abs(at["kl"]) < 1e-12 and at["grad_norm"] < 1e-12
    with torch.no_grad():
        trainer.parts.policy.network.table.mul_(1.5).add_(0.3)
    away = trainer.step().metrics
    assert away["kl"] > 1e-4 and away["grad_norm"] > 1e-4


class Forgetful(ToyCanvasSampler):
    """Divides by a temperature when it draws, and forgets it when it scores."""

    def transition(self, policy: ToyCanvas, state: Tensors, k: Tensor, cond: Tensors) -> Transition:
        sharp = (policy.log_p(state["canvas"]) / 0.7).log_softmax(-1)
        plain = _CanvasStep(policy.log_p(state["canvas"]), state["canvas"])
        return plain if torch.is_grad_enabled() else _CanvasStep(sharp, state["canvas"])


def test_a_forgotten_temperature_fails_the_drift_check(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_canvas")
    with pytest.raises(GenRLError, match="does not score what it drew"):
        next(train(recipe, sampler=Forgetful()))
    (record,) = train(toy_recipe("toy_canvas", "train.iterations=1"), sampler=ToyCanvasSampler())
    assert record.metrics["drift"] < 1e-12


class Broken(Reward):
    """Returns whatever it was given."""

    def __init__(self, answer: Callable[[int], Sequence[Any]]):
        self._answer = answer

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        return self._answer(len(prompts))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: [1.0] * (n - 1), "gave 11 values for 12 samples"),
        (lambda n: [True] * n, "gave True for sample 0"),
        (lambda n: ["high"] * n, "gave 'high' for sample 0"),
        (lambda n: [1 / 0] * n, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_reward_stops_the_run(
    toy_recipe: Make, answer: Callable[[int], Sequence[Any]], message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        next(train(toy_recipe("toy_canvas"), rewards={"mine": Broken(answer)}))


def test_non_finite_rewards_skip_steps_and_stop_after_three(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_canvas", "train.iterations=9")
    trainer = build_trainer(
        recipe, rewards={"mine": Broken(lambda n: [math.inf] + [1.0] * (n - 1))}
    )
    before = table(trainer)
    for _ in range(2):
        record = trainer.step()
        assert record.problem == "reward 'mine' is not finite"
        assert torch.equal(before, table(trainer))
    with pytest.raises(GenRLError, match="3 optimizer steps in a row were skipped"):
        trainer.step()


def test_non_finite_weights_are_named_and_not_stepped(toy_recipe: Make) -> None:
    trainer = build_trainer(toy_recipe("toy_gaussian"))
    with torch.no_grad():
        trainer.parts.policy.network.table[0, 0] = math.nan
    state = trainer.parts.optimizer.state_dict()["state"]
    record = trainer.step()
    assert record.problem and "not finite" in record.problem
    assert not state and not trainer.parts.optimizer.state_dict()["state"]


def test_missing_rewards_leave_their_siblings_alone(toy_recipe: Make) -> None:
    """A sample without a reward has no advantage and does not enter its group's statistics."""

    class Partly(ToyReward):
        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float | None]:  # type: ignore[override]
            values: list[float | None] = list(super().__call__(media, prompts))
            return [None if place % 4 == 3 else value for place, value in enumerate(values)]

    trainer = build_trainer(toy_recipe("toy_canvas"), rewards={"mine": Partly()})
    record = trainer.step()
    assert record.problem is None and math.isfinite(record.metrics["reward"])
    assert record.metrics["grad_norm"] > 0


def test_a_sample_that_lacks_one_of_two_rewards_is_left_out(toy_recipe: Make) -> None:
    """Its sum would stand beside its siblings' as if the other reward were 0. A reward that a whole
    group lacks does not apply there, and the group is judged by the rest.
    """
    tries = ([5.0] * 12, [5.0] * 8 + [None] * 4, [5.0] * 3 + [None] + [5.0] * 8)
    base = [0.1, 0.2, 0.3, 0.4] * 3
    kept = []
    for values in tries:
        rewards = {"one": Broken(lambda n: base[:n]), "two": Broken(lambda n, v=values: v[:n])}
        recipe = toy_recipe("toy_canvas", "evaluate=null", "prompts.evaluate=null")
        (record,) = train(recipe.with_overrides("train.iterations=1"), rewards=rewards)
        kept.append(record.metrics)
    assert kept[0]["reward"] == pytest.approx(5.25)
    assert kept[1]["reward"] == pytest.approx(0.25 + 5 * 2 / 3)
    assert kept[2]["reward"] == pytest.approx(5 + (3 - 0.4) / 11)
    spread = torch.tensor([0.1, 0.2, 0.3, 0.4]).std().item()
    assert kept[0]["spread"] == pytest.approx(spread, rel=1e-6)
    assert kept[1]["spread"] == pytest.approx(spread, rel=1e-6)
    assert kept[2]["spread"] == pytest.approx((2 * spread + 0.1) / 3, rel=1e-6)


def test_equal_rewards_leave_the_weights(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_canvas", "train.weight_decay=0.0")
    trainer = build_trainer(recipe, rewards={"mine": Broken(lambda n: [0.3] * n)})
    before = table(trainer)
    record = trainer.step()
    assert record.metrics["zero_spread"] == 1 and record.metrics["grad_norm"] == 0
    assert torch.equal(before, table(trainer))


def test_filter_drops_and_resamples_up_to_its_limit(toy_recipe: Make) -> None:
    class Sometimes(Reward):
        """Equal rewards for the prompts 0 and 1, rugged ones for the others."""

        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
            values = ToyReward()(media, prompts)
            dull = ("prompt 0", "prompt 1")
            return [1.0 if p.text in dull else v for v, p in zip(values, prompts, strict=True)]

    plain = ("filter.min_std=0.0", "train.num_prompts=5")
    (dropped,) = train(
        toy_recipe("toy_canvas", *plain, "train.iterations=1"), rewards={"r": Sometimes()}
    )
    assert dropped.metrics["groups_kept"] == 3 and dropped.metrics["groups_rejected"] == 2
    assert len(dropped.prompts) == 12
    resample = (*plain, "filter.then=resample", "filter.max_attempts=9", "train.iterations=1")
    (again,) = train(toy_recipe("toy_canvas", *resample), rewards={"r": Sometimes()})
    assert again.metrics["groups_kept"] == 5 and again.metrics["attempts"] > 1
    assert len(again.prompts) == 20
    nothing = {"r": Broken(lambda n: [1.0] * n)}
    (limited,) = train(toy_recipe("toy_canvas", *resample), rewards=nothing)
    assert limited.metrics["attempts"] == 9 and limited.metrics["groups_kept"] == 0
    assert limited.problem is None and limited.metrics["skipped"] == 1


def test_global_seeds_change_nothing(toy_recipe: Make) -> None:
    """Two runs of one recipe under different global seeds give identical metrics."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        recipe = toy_recipe("toy_canvas", "train.steps={choose: random, count: 2}")
        runs.append([record.metrics for record in train(recipe)])
        assert torch.initial_seed() == seed
    for first, second in zip(*runs, strict=True):
        timeless = {k: v for k, v in first.items() if not k.startswith("seconds")}
        assert timeless == {k: second[k] for k in timeless}


RESUMED = [
    "train.iterations=6", "train.num_updates=2", "train.lr_scheduler=cosine",
    "train.warmup_steps=3", "filter={std_percentile: 30, warmup: 4, then: resample}",
    "train.steps={choose: stratified, count: 2}", "objective.kl={weight: 0.1}",
]  # fmt: skip


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_resume_is_bit_identical(toy_recipe: Make, tmp_path: Path, stop: int) -> None:
    """Weights and metrics after a stop at any iteration equal those of the straight run."""
    recipe = toy_recipe("toy_canvas", *RESUMED)
    straight = build_trainer(recipe)
    wanted = [straight.step().metrics for _ in range(6)]
    first = build_trainer(recipe)
    for _ in range(stop):
        first.step()
    save(first, recipe, tmp_path)
    newest, problems = checkpoint.latest(tmp_path)
    assert newest is not None and not problems
    second = build_trainer(recipe)
    restore(second, recipe, newest)
    for expected in wanted[stop:]:
        found = second.step().metrics
        timeless = {k: v for k, v in expected.items() if not k.startswith("seconds")}
        assert timeless == {k: found[k] for k in timeless}
    assert torch.equal(table(straight), table(second))


def test_a_checkpoint_of_another_recipe_is_refused(toy_recipe: Make, tmp_path: Path) -> None:
    recipe = toy_recipe("toy_canvas")
    trainer = build_trainer(recipe)
    trainer.step()
    save(trainer, recipe, tmp_path)
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    other = toy_recipe("toy_canvas", "train.learning_rate=0.01")
    with pytest.raises(CheckpointError, match="written by another recipe"):
        restore(build_trainer(other), other, newest)


def test_another_reference_is_refused(toy_recipe: Make, tmp_path: Path) -> None:
    recipe = toy_recipe("toy_canvas", "objective.kl={weight: 0.1}")
    trainer = build_trainer(recipe)
    save(trainer, recipe, tmp_path)
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    moved = ToyCanvas()
    with torch.no_grad():
        moved.network.table.add_(1.0)
    with pytest.raises(CheckpointError, match="reference weights"):
        restore(build_trainer(recipe, policy=moved), recipe, newest)


def test_too_many_chosen_calls_are_refused(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_canvas", "train.steps={choose: last, count: 7}")
    with pytest.raises(RecipeError, match="has 3 network evaluations"):
        next(train(recipe))


class Tall(ToyCanvasSampler):
    """A chain of any length over the toy's table, to measure memory by steps."""

    def __init__(self, steps: int):
        self.num_steps = steps

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        return state  # the canvas stays empty: every step has the same distribution

    def start(self, policy: ToyCanvas, cond: Tensors, streams: Streams) -> Tensors:
        return super().start(policy, cond, streams)


class Wide(nn.Module):
    """A network whose activations outweigh the matrix of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(27, 512, dtype=torch.float64)
        layers = [nn.Linear(512, 512, dtype=torch.float64), nn.Tanh()]
        self.head = nn.Sequential(*layers, nn.Linear(512, 6, dtype=torch.float64))

    def forward(self, state: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(state)).unflatten(-1, (3, 2))
        return found


def peak_saved_bytes(recipe: Recipe, steps: int) -> int:
    """The largest number of bytes held for a backward at any moment of one update."""
    held = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor):
            nonlocal held, peak
            own = tensor.untyped_storage().data_ptr() in weights
            self.tensor, self.size = tensor, 0 if own else tensor.numel() * tensor.element_size()
            held += self.size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    policy = ToyCanvas()
    policy.network = Wide()
    weights = {p.untyped_storage().data_ptr() for p in policy.network.parameters()}
    rewards = {"r": Broken(range)}
    trainer = build_trainer(recipe, policy=policy, sampler=Tall(steps), rewards=rewards)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        trainer.step()
    return peak


@pytest.mark.parametrize("level", ["term", "sequence"])
def test_memory_is_flat_in_the_trained_steps(toy_recipe: Make, level: str) -> None:
    """Bytes saved for backward: those of one chunk, from 2 to 16 steps, coupled terms or not."""
    recipe = toy_recipe("toy_canvas", "train.micro_batch_size=12", f"objective.grpo.level={level}")
    small, large = peak_saved_bytes(recipe, 2), peak_saved_bytes(recipe, 16)
    whole = peak_saved_bytes(recipe.with_overrides("train.micro_batch_size=512"), 16)
    assert large < 1.1 * small, (small, large)
    assert whole > 5 * large, (large, whole)


WORKER = """
import json, os, sys, torch
from pathlib import Path
from genrl_core.testing import enumerable as toys
from genrl_core.registry import Registry
from genrl_core.recipe.recipe import load_recipe
from genrl_core.loop.distributed import Runtime
from genrl_core.run.assembly import build_trainer
runtime = Runtime("cpu")
for path in sys.argv[1:]:
    recipe = load_recipe(Path(path), [], Registry.discover(modules=[toys]))
    trainer = build_trainer(recipe, runtime=runtime)
    metrics = [trainer.step().metrics for _ in range(recipe.train.iterations)]
    found = trainer.evaluate().metrics
    table = trainer.parts.policy.network.table.detach().flatten().tolist()
    result = {"table": table, "metrics": metrics, "evaluation": found, "world": runtime.world_size}
    Path(path).with_suffix(f".{runtime.rank}").write_text(json.dumps(result))
runtime.close()
os._exit(0)  # on a crowded machine a thread of gloo may outlive the interpreter, which then aborts
"""


def test_two_processes_equal_one(toy_recipe: Make, tmp_path: Path) -> None:
    """gloo, float64: weights to 1e-10, also with an uneven split, filters and two updates."""
    recipes = {
        name: toy_recipe(
            name, "train.num_updates=2", "train.num_minibatches=2", "train.micro_batch_size=7",
            "filter={min_std: 0.4, then: resample}", "objective.kl={weight: 0.1}",
            "objective.grpo.level=sequence",
        )
        for name in TOYS
    }  # fmt: skip
    recipes["reward_view"] = toy_recipe(
        "toy_gaussian", "train.num_updates=2", "train.num_minibatches=2",
        "filter={min_std: 0.2, then: resample}", "train.micro_batch_size=7",
        objective={"reward_gradient": {"steps": 2, "random_steps": True}, "kl": {"weight": 0.1}},
    )  # fmt: skip
    recipes["running"] = toy_recipe(
        "toy_canvas", "advantage={baseline: prompt_mean, scale: prompt_std, min_count: 2}",
        "train.num_generations=1", "train.num_prompts=5", "train.iterations=4",
    )  # fmt: skip
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(script)]
    command += [str(tmp_path / f"{name}.yaml") for name in recipes]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=180)
    for name, recipe in recipes.items():
        trainer = build_trainer(recipe)
        alone = [trainer.step().metrics for _ in range(recipe.train.iterations)]
        evaluation = trainer.evaluate().metrics
        for rank in range(2):
            result = json.loads((tmp_path / f"{name}.{rank}").read_text())
            assert result["world"] == 2
            found = torch.tensor(result["table"], dtype=torch.float64)
            torch.testing.assert_close(found, table(trainer).flatten(), rtol=0, atol=1e-10)
            assert result["evaluation"] == pytest.approx(evaluation, abs=1e-10)
            for ours, theirs in zip(alone, result["metrics"], strict=True):
                same = {k: v for k, v in ours.items() if not k.startswith("seconds")}
                assert same == pytest.approx({k: theirs[k] for k in same}, abs=1e-9)


def test_only_the_chosen_parameters_train(toy_recipe: Make) -> None:
    """Frozen parameters stay, and switching slots does not change who trains."""

    class Frozen(ToyCanvas):
        def __init__(self) -> None:
            super().__init__()
            self.network.register_parameter(
                "extra", nn.Parameter(torch.ones(2), requires_grad=False)
            )

    recipe = toy_recipe("toy_canvas", "objective.kl={weight: 0.1}")
    trainer = build_trainer(recipe, policy=Frozen())
    assert list(trainer.weight_sets.trainable) == ["table"]
    current = trainer.parts.policy.network
    trainer.step()
    assert trainer.parts.policy.network is current
    assert current.table.requires_grad and not current.extra.requires_grad
    with trainer.weight_sets.using("reference") as policy:
        assert not any(p.requires_grad for p in policy.network.parameters())
        assert policy.network is not current


def test_a_slot_comes_back_after_an_error(toy_recipe: Make) -> None:
    trainer = build_trainer(toy_recipe("toy_canvas", "objective.kl={weight: 0.1}"))
    current = trainer.parts.policy.network
    with pytest.raises(RuntimeError), trainer.weight_sets.using("reference"):
        raise RuntimeError
    assert trainer.parts.policy.network is current


def test_injected_optimizer_and_records(toy_recipe: Make) -> None:
    recipe = replace(toy_recipe("toy_canvas"))
    made: list[torch.optim.Optimizer] = []

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[0]

    records = list(train(recipe, optimizer=factory))
    assert [record.iteration for record in records] == [1, 2, 3]
    assert made and records[0].metrics["learning_rate"] == 0.1
    assert len(records[0].media) == len(records[0].prompts) == 12
