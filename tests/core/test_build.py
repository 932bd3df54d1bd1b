"""From a recipe to components: weights come from somewhere, or the recipe is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from genrl_core.build import build_policy
from genrl_core.checkpoint import save
from genrl_core.errors import RecipeError
from genrl_core.recipe import Recipe
from genrl_core.runtime import Runtime


def no_base(recipe: Recipe) -> NoReturn:
    raise AssertionError(f"{recipe.name} was trained")


def test_weights_that_nobody_loads_are_not_ignored(
    toy_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe("toy_canvas", f"policy.weights={tmp_path / 'nowhere'}")
    with pytest.raises(RecipeError, match=r"policy\.weights: .*nowhere is no folder of a run"):
        build_policy(recipe, Runtime("cpu"), no_base, print)
    monkeypatch.setattr(type(recipe.policy), "loads_weights", True)
    assert build_policy(recipe, Runtime("cpu"), no_base, print).network is not None


def test_adapters_are_no_weights_to_begin_from(
    toy_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Without their base they are nothing; a list of keys would not say so."""
    name = "layers.0.lora_A.current.weight"
    save(tmp_path, 1, {"policy": {name: torch.zeros(2, 2)}}, {}, 1)
    recipe = toy_recipe("toy_canvas", f"policy.weights={tmp_path}")
    with pytest.raises(RecipeError, match=r"holds LoRA adapters without.*genrl sample.*--resume"):
        build_policy(recipe, Runtime("cpu"), no_base, print)
