"""A researcher's baseline is a function of a plugin, named by ``advantage.baseline``."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from genrl_core import GenRLError, PluginError, RecipeError, Register, hookimpl
from genrl_core.loop.advantage import advantages
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.recipe.check import check_recipe
from genrl_core.recipe.recipe import Recipe
from genrl_core.registry import Registry
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import enumerable

Make = Callable[..., Recipe]


def mean_of_group(rewards: Tensor, group: Tensor) -> Tensor:
    """The mean of each one's group."""
    sums = torch.zeros(int(group.max()) + 1, dtype=rewards.dtype).index_add(0, group, rewards)
    return (sums / group.bincount())[group]


def plugin(function: Callable[..., object], name: str = "mine") -> ModuleType:
    module = ModuleType(f"a_baseline_{name}_{function.__name__}")

    @hookimpl
    def register_objectives(register: Register) -> None:
        register(name, function)

    module.register_objectives = register_objectives  # type: ignore[attr-defined]
    return module


def test_it_is_what_is_subtracted_from_the_rewards_that_there_are() -> None:
    reward = torch.tensor([1.0, 2.0, 6.0, 5.0, 100.0], dtype=torch.float64)
    valid, group = torch.tensor([True, True, True, True, False]), torch.tensor([0, 0, 1, 1, 1])
    config = AdvantageConfig(baseline="mine", scale="none")
    found = advantages(config, reward, valid, group, None, mean_of_group)
    assert found.tolist() == [-0.5, 0.5, 0.5, -0.5, 0.0]


def test_a_baseline_of_another_shape_is_refused() -> None:
    reward = torch.ones(3, dtype=torch.float64)
    config, where = AdvantageConfig(baseline="mine"), torch.zeros(3).long()
    with pytest.raises(GenRLError, match=r"advantage.baseline: mine gave \[1\] for 3 rewards"):
        advantages(config, reward, reward > 0, where, None, lambda rewards, _: rewards[:1])


def test_a_recipe_names_it(toy_recipe: Make) -> None:
    """With the group's mean as a function, a run is that of the built-in one, to rounding."""
    modules = [enumerable, plugin(mean_of_group)]
    registry = Registry.discover(modules=modules)
    assert "baseline mine" in registry.plugins[-1].registered
    scale = "advantage.scale=none"
    plain = toy_recipe("toy_canvas", scale)
    mapping = {k: v for k, v in plain.resolved.items() if k != "requires"}
    from genrl_core import load_recipe

    recipe = load_recipe(mapping, ["advantage.baseline=mine"], registry)
    wanted, found = build_trainer(plain), build_trainer(recipe)
    for _ in range(3):
        expected, own = wanted.step().metrics, found.step().metrics
        assert own["loss"] == pytest.approx(expected["loss"], abs=1e-12)
        assert own["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-9)


def test_an_unknown_name_is_refused_with_the_way_out(toy_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"no baseline `group_maen`; did you mean `group_mean`"):
        check_recipe(toy_recipe("toy_canvas", "advantage.baseline=group_maen"))


def test_what_cannot_be_a_baseline_is_refused_when_it_is_registered() -> None:
    def alone(rewards: Tensor) -> Tensor:
        return rewards

    with pytest.raises(PluginError, match=r"cannot be called as alone\(rewards, group\)"):
        Registry.discover(modules=[plugin(alone)])
    with pytest.raises(PluginError, match="`group_mean` is GenRL's own"):
        Registry.discover(modules=[plugin(mean_of_group, "group_mean")])
