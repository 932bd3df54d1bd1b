"""Weight slots: who trains after every switch, LoRA, the average and the lagging weights."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from genrl_core.errors import RecipeError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.objective import Objective
from genrl_core.loop.settings import EmaConfig, LoraConfig
from genrl_core.loop.trainer import Trainer
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer
from genrl_core.run.saving import restore, save
from genrl_core.testing.enumerable import ToyCanvas

Make = Callable[..., Recipe]


class Layers(nn.Module):
    """A network with linear layers over the toy's canvas; ``kinds`` are those of its layers."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = (
            nn.Linear(*size) if kind == "Linear" else Conv1D(size[1], size[0])
            for kind, size in zip(kinds, ((27, 8), (8, 6)), strict=True)
        )
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.5, generator=generator)

    def forward(self, state: Tensor) -> Tensor:
        hidden = self.first(nn.functional.one_hot(state, 27).double()).tanh()
        found: Tensor = self.last(hidden).unflatten(-1, (3, 2))
        return found


class Layered(ToyCanvas):
    lora_targets = ("first", "last")
    kinds = ("Linear", "Linear")

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            self.network = Layers(*self.kinds)


class Transposed(Layered):
    """GPT-2's way: weights ``[in, out]``."""

    kinds = ("Conv1D", "Conv1D")


class Mixed(Layered):
    kinds = ("Linear", "Conv1D")


KINDS = pytest.mark.parametrize("kind", [Layered, Transposed, Mixed])


LORA = LoraConfig(rank=2)


def trained(policy: ToyCanvas) -> set[str]:
    return {name for name, p in policy.network.named_parameters() if p.requires_grad}


@KINDS
def test_only_the_current_adapter_trains_after_every_switch(kind: type[Layered]) -> None:
    policy = kind()
    weight_sets = WeightSets(policy, LORA)
    wanted = set(weight_sets.trainable)
    assert wanted
    assert all("lora_" in name and ".current." in name for name in wanted)
    weight_sets.snapshot("reference")
    weight_sets.snapshot("lagging")
    weight_sets.snapshot("ema")
    assert trained(policy) == wanted
    for name in ("reference", "lagging", "ema", "current", "lagging"):
        with weight_sets.using(name):
            assert trained(policy) == wanted
        assert trained(policy) == wanted


@KINDS
def test_adapters_answer_for_their_slot(kind: type[Layered]) -> None:
    policy, plain = kind(), kind()
    weight_sets = WeightSets(policy, LORA)
    weight_sets.snapshot("reference")
    weight_sets.snapshot("lagging")
    state = torch.arange(27)
    torch.testing.assert_close(policy.network(state), plain.network(state))
    with torch.no_grad():
        for parameter in weight_sets.trainable.values():
            parameter.add_(0.3)
    moved = policy.network(state)
    assert (moved - plain.network(state)).abs().max() > 0.05
    for name in ("reference", "lagging"):
        with weight_sets.using(name) as other:
            torch.testing.assert_close(other.network(state), plain.network(state))
    torch.testing.assert_close(policy.network(state), moved)
    weight_sets.ema_update("lagging", 0.0)
    with weight_sets.using("lagging") as other:
        torch.testing.assert_close(other.network(state), moved)


@KINDS
def test_an_adapter_is_its_product_added_to_the_weight(kind: type[Layered]) -> None:
    """By hand, and by peft's own merge; without a warning, for the first slot and the second."""
    policy, plain, state = kind(), kind(), torch.arange(27)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight_sets = WeightSets(policy, LoraConfig(rank=2, alpha=3))
        weight_sets.snapshot("lagging")
    with torch.no_grad():
        for parameter in weight_sets.trainable.values():
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
        for name, layer in plain.network.named_children():
            a, b = (weight_sets.trainable[f"{name}.lora_{x}.current.weight"] for x in "AB")
            added = b @ a * 1.5
            layer.weight += added.T if isinstance(layer, Conv1D) else added
    torch.testing.assert_close(policy.network(state), plain.network(state), rtol=0, atol=1e-12)
    for layer, other in zip(policy.network.children(), plain.network.children(), strict=True):
        layer.merge(adapter_names=["current"])
        torch.testing.assert_close(layer.get_base_layer().weight, other.weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(policy.network(state), plain.network(state), rtol=0, atol=1e-12)


def test_adapters_start_from_the_seed_and_leave_the_global_one() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (WeightSets(Layered(), LORA, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    name = next(name for name in first.trainable if "lora_A" in name)
    assert torch.equal(first.trainable[name], second.trainable[name])
    assert not torch.equal(first.trainable[name], other.trainable[name])


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_slot_follows_with_its_decay(lora: LoraConfig | None) -> None:
    policy = Layered()
    weight_sets = WeightSets(policy, lora)
    weight_sets.snapshot("ema")
    start = {name: p.detach().clone() for name, p in weight_sets.trainable.items()}
    with torch.no_grad():
        for parameter in weight_sets.trainable.values():
            parameter.add_(1.0)
    weight_sets.ema_update("ema", 0.75)
    for name, tensor in weight_sets.state_dict("ema").items():
        torch.testing.assert_close(tensor, start[name] + 0.25)


def test_a_ramp_begins_after_a_flat_stretch(toy_recipe: Make) -> None:
    """``min(decay, start + ramp max(0, i - flat))``: the schedules of DiffusionNFT (2509.16117)."""
    assert {"start", "flat"} <= set(EmaConfig.model_fields)
    second = EmaConfig.model_validate({"decay": 0.999, "ramp": 0.0075, "flat": 75})
    shares = [second.decay_at(i) for i in (1, 75, 76, 135, 1000)]
    assert shares == pytest.approx([0, 0, 0.0075, 0.45, 0.999], abs=1e-12)
    rising = EmaConfig.model_validate({"decay": 0.5, "ramp": 0.1, "start": 0.25})
    assert [rising.decay_at(i) for i in (0, 2, 9)] == pytest.approx([0.25, 0.45, 0.5])
    with pytest.raises(ValidationError, match="there is no ramp"):
        EmaConfig.model_validate({"decay": 0.5, "flat": 3})

    old = "weights.lagging={decay: 0.9, ramp: 10.0, flat: 2}"
    trainer = build_trainer(toy_recipe("toy_canvas", old, objective={"nft": {"pull": 0.0}}))
    for iteration in range(1, 4):
        trainer.step()
        now, lagging = trainer.weight_sets.state_dict(), trainer.weight_sets.state_dict("lagging")
        same = all(torch.equal(now[name], lagging[name]) for name in now)
        assert same == (iteration <= 2)


def test_modules_to_adapt_must_exist() -> None:
    with pytest.raises(RecipeError, match="names no modules for LoRA"):
        WeightSets(ToyCanvas(), LORA)
    wrong = LoraConfig(rank=2, target_modules=["nothing"])
    with pytest.raises(RecipeError, match=r"weights\.lora"):
        WeightSets(Layered(), wrong)


class DrawnByOld(Objective):
    """REINFORCE on samples of the lagging weights, corrected by the ratio."""

    needs = frozenset({"old_log_probs"})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = (batch.log_probs - batch.need("old_log_probs")).exp()
        return batch.reduce(-ratio * batch.advantage), {"ratio_mean": ratio}


def with_old(recipe: Recipe) -> Trainer:
    config = recipe.objective["grpo"]
    object.__setattr__(config, "build", DrawnByOld)
    object.__setattr__(config, "draws_with", lambda: "lagging")
    return build_trainer(recipe)


def test_objectives_may_draw_with_lagging_weights(toy_recipe: Make) -> None:
    """The slot copies the weights after every iteration, and its ratio is 1 only then."""
    fresh = with_old(toy_recipe("toy_canvas"))
    assert [fresh.step().metrics["ratio_mean"] for _ in range(3)] == pytest.approx([1.0] * 3)
    lagging = with_old(
        toy_recipe("toy_canvas", "weights.lagging.decay=0.9", "train.learning_rate=0.2")
    )
    ratios = [lagging.step().metrics["ratio_mean"] for _ in range(4)]
    assert ratios[0] == pytest.approx(1.0)
    assert max(abs(ratio - 1.0) for ratio in ratios[1:]) > 1e-3
    current = lagging.parts.policy.network
    with lagging.weight_sets.using("lagging") as policy:
        assert policy.network is not current


RESUMED = ["weights.lora={rank: 2}", "weights.ema={decay: 0.8}", "objective.kl={weight: 0.1}",
           "train.iterations=5", "train.num_updates=2"]  # fmt: skip


@pytest.mark.parametrize("more", [[], ["weights.lora=null"]], ids=["lora", "full"])
def test_resume_with_followers_is_bit_identical(
    toy_recipe: Make, tmp_path: Path, more: list[str]
) -> None:
    recipe = toy_recipe("toy_canvas", *RESUMED, *more)
    straight = build_trainer(recipe, policy=Layered())
    wanted = [straight.step().metrics for _ in range(5)]
    first = build_trainer(recipe, policy=Layered())
    for _ in range(2):
        first.step()
    save(first, recipe, tmp_path)
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    second = build_trainer(recipe, policy=Layered())
    restore(second, recipe, newest)
    for expected in wanted[2:]:
        found = second.step().metrics
        timeless = {k: v for k, v in expected.items() if not k.startswith("seconds")}
        assert timeless == {k: found[k] for k in timeless}
    for name in ("current", "ema"):
        ours, theirs = straight.weight_sets.state_dict(name), second.weight_sets.state_dict(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert straight.evaluate().metrics == second.evaluate().metrics


def test_lora_learns_and_evaluates_with_the_average(toy_recipe: Make) -> None:
    recipe = toy_recipe(
        "toy_canvas", "weights.lora={rank: 4}", "weights.ema={decay: 0.5}", "train.iterations=40",
        "train.learning_rate=0.05",
    )  # fmt: skip
    trainer = build_trainer(recipe, policy=Layered())
    frozen = {
        n: p.clone() for n, p in trainer.parts.policy.network.named_parameters() if "lora" not in n
    }
    rewards = [trainer.step().metrics["reward"] for _ in range(40)]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.25
    now = dict(trainer.parts.policy.network.named_parameters())
    assert all(torch.equal(frozen[name], now[name]) for name in frozen)
    with trainer.evaluated_policy():
        assert trainer.evaluate().metrics["toy_reward"] > 1.0
