"""From a recipe to components: weights come from somewhere, or the recipe is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from genrl_core.build import build_policy
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
