"""From a recipe to components: weights come from somewhere, or the recipe is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from genrl_core.build import build_policy
from genrl_core.checkpoint import save
from genrl_core.directions import check_objective
from genrl_core.errors import PluginError, RecipeError
from genrl_core.recipe import Recipe
from genrl_core.runtime import Runtime
from genrl_core.toys import ToyCanvas, ToyCanvasSampler
from genrl_core.trainer import Trainer


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


@pytest.mark.parametrize(
    ("attribute", "said", "words"),
    [
        ("view", "bound", "view_wanted() says 'steps', and the PolicyGradient"),
        ("view", None, "that it builds has view None"),
        ("draw_with", "old", "draws_with() says 'current', and the PolicyGradient"),
    ],
)
def test_a_config_and_its_objective_must_say_the_same(
    toy_recipe: Callable[..., Recipe], attribute: str, said: Any, words: str
) -> None:
    """Neither is believed where they differ, by a run or by the checks of plugin authors."""
    recipe = toy_recipe("toy_canvas")
    config = recipe.objective["grpo"]
    built = config.build()
    setattr(built, attribute, said)
    object.__setattr__(config, "build", lambda: built)

    def check() -> None:
        check_objective(config, ToyCanvas(), ToyCanvasSampler(), "steps")

    for believe in (lambda: Trainer(recipe), check):
        refused = ""
        try:
            believe()
        except PluginError as error:
            refused = str(error)
        assert words in refused
        assert "GrpoConfig" in refused
