"""Where there is nothing to learn from, nothing moves, and the run says so."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.reward import Reward
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer
from genrl_core.run.runner import run
from genrl_core.run.saving import save
from genrl_core.testing.enumerable import ToyReward

Make = Callable[..., Recipe]
PLAIN = ["evaluate=null", "prompts.evaluate=null"]
MOVING = [*PLAIN, "train.weight_decay=0.5", "weights.ema={decay: 0.5}", "train.learning_rate=0.1",
          "train.lr_scheduler=linear", "train.iterations=9"]  # fmt: skip


class Sometimes(ToyReward):
    """Its own rewards, until it is told to give the same number, or none, for every sample."""

    dull: float | None = 0.0
    on = True

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        values = super().__call__(media, prompts)
        return values if self.on else [self.dull] * len(values)  # type: ignore[list-item]


def everything(trainer: Trainer, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, but for the counters of iterations."""
    save(trainer, recipe, folder)
    snapshot, _ = checkpoint.latest(folder)
    assert snapshot is not None
    tensors = {f"{g}/{n}": t for g, named in snapshot.tensors.items() for n, t in named.items()}
    state = {
        k: v
        for k, v in snapshot.state.items()
        if k not in ("filter", "statistics", "idle", "barren")
    }
    return tensors | state


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())


KINDS: dict[str, tuple[float | None, list[str], str]] = {
    "equal": (1 / 3, [], "no objective has a gradient"),
    "none": (None, [], "no sample has all the rewards"),
    "rejected": (0.5, ["filter.min_std=0"], "the filter rejected every group"),
    "several steps": (0.5, ["train.num_updates=2", "train.num_minibatches=3"], "no objective has"),
    "in chunks": (0.5, ["train.micro_batch_size=5"], "no objective has a gradient"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_without_a_gradient_moves_nothing(
    toy_recipe: Make, tmp_path: Path, kind: str
) -> None:
    """Weights, moments, weight decay, averages and schedule stay; then learning goes on."""
    dull, more, why = KINDS[kind]
    reward = Sometimes()
    reward.dull = dull
    recipe = toy_recipe("toy_canvas", *MOVING, *more)
    trainer = build_trainer(recipe, rewards={"mine": reward})
    trainer.step()
    before = everything(trainer, recipe, tmp_path / "before")
    reward.on = False
    record = trainer.step()
    assert same(before, everything(trainer, recipe, tmp_path / "after"))
    assert record.metrics.get("empty") == 1
    assert record.metrics["skipped"] == 1 and record.problem is None
    assert why in str(getattr(record, "empty", None))
    reward.on = True
    again = trainer.step()
    assert not same(before, everything(trainer, recipe, tmp_path / "later"))
    assert (again.metrics["skipped"], again.metrics["empty"]) == (0, 0)


def test_a_minibatch_without_a_gradient_is_counted_and_the_others_move(toy_recipe: Make) -> None:
    class One(ToyReward):
        """Only the first group has a difference."""

        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
            values = super().__call__(media, prompts)
            return [v if place < 4 else 0.3 for place, v in enumerate(values)]

    recipe = toy_recipe("toy_canvas", *PLAIN, "train.num_minibatches=3")
    record = build_trainer(recipe, rewards={"mine": One()}).step()
    assert record.metrics["skipped"] == pytest.approx(2 / 3)
    assert record.metrics["empty"] == pytest.approx(2 / 3)
    assert record.empty is None


@pytest.mark.parametrize("mixed", ["kl={weight: 0.5, estimator: k2}", "entropy={weight: 0.5}"])
def test_equal_rewards_beside_another_gradient_are_not_empty(toy_recipe: Make, mixed: str) -> None:
    """Advantages of 0 leave the pull to the reference, or to entropy: a step is taken."""
    reward = Sometimes()
    recipe = toy_recipe("toy_canvas", *PLAIN, "train.learning_rate=0.1", f"objective.{mixed}")
    trainer = build_trainer(recipe, rewards={"mine": reward})
    trainer.step()
    reward.on = False
    before = next(trainer.parts.policy.network.parameters()).detach().clone()
    record = trainer.step()
    assert (record.metrics["skipped"], record.metrics["empty"]) == (0, 0)
    assert (next(trainer.parts.policy.network.parameters()) - before).abs().max() > 1e-3


class Constant(Reward):
    def __init__(self, value: float | None):
        self._value = value

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        return [self._value] * len(prompts)


@pytest.mark.parametrize("value", [None, float("inf")])
def test_a_run_that_never_took_a_step_fails(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    """It does not end as done: status failed, said in events from the first iteration on."""
    more = [*PLAIN, "train.iterations=2", "run.name=dull"]
    recipe = toy_recipe("toy_canvas", *more)
    monkeypatch.setattr(type(recipe.reward["toy_reward"]), "build", lambda _: Constant(value))
    said = ""
    try:
        run(recipe, tmp_path, quiet=True)
    except GenRLError as error:
        said = str(error)
    assert "none of 2 iterations took an optimizer step" in said
    folder = tmp_path / "dull"
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["kind"] == "warning"]
    assert any("iteration 1 moved nothing" in w or "step skipped" in w for w in warnings)


def test_a_run_of_equal_rewards_says_at_its_end_that_no_weight_has_moved(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a trial of two iterations; its weights are those of the beginning."""
    recipe = toy_recipe("toy_canvas", *PLAIN, "train.iterations=2", "run.name=equal")
    monkeypatch.setattr(type(recipe.reward["toy_reward"]), "build", lambda _: Constant(1.0))
    assert run(recipe, tmp_path, quiet=True) == 0
    folder = tmp_path / "equal"
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["kind"] == "warning"]
    assert any("iteration 1 moved nothing" in warning for warning in warnings)
    assert any("none of 2 iterations took an optimizer step" in warning for warning in warnings)


def test_a_run_that_learned_once_is_done(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across a resume too: what was learned before it counts."""
    recipe = toy_recipe("toy_canvas", *PLAIN, "train.iterations=3", "run.name=once")
    reward = Sometimes()
    monkeypatch.setattr(type(recipe.reward["toy_reward"]), "build", lambda _: reward)
    assert run(recipe, tmp_path, stop_after=1, quiet=True) == 75
    reward.on = False
    assert run(recipe, tmp_path, resume=tmp_path / "once", quiet=True) == 0
    assert json.loads((tmp_path / "once" / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize(("minibatches", "updates"), [(1, 1), (3, 1), (3, 2)])
def test_the_guard_counts_the_steps_that_were_skipped(
    toy_recipe: Make, minibatches: int, updates: int
) -> None:
    """Three iterations' worth: their optimizer steps, however many an iteration has."""
    more = [f"train.num_minibatches={minibatches}", f"train.num_updates={updates}"]
    recipe = toy_recipe("toy_canvas", *PLAIN, *more, "train.iterations=9")
    trainer = build_trainer(recipe, rewards={"mine": Constant(float("inf"))})
    trainer.step()
    trainer.step()
    with pytest.raises(GenRLError) as caught:
        trainer.step()
    assert f"{3 * minibatches * updates} optimizer steps in a row were skipped" in str(caught.value)
