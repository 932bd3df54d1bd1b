"""What the core's tests share: a registry with the toys, and small recipes for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.registry import Registry
from genrl_core.testing import enumerable as toys


@pytest.fixture(scope="session")
def toy_registry() -> Registry:
    return Registry.discover(modules=[toys])


@pytest.fixture
def toy_recipe(toy_registry: Registry, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of one toy: ``toy_recipe("toy_canvas", "train.iterations=3", ...)``."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(5)))

    def make(name: str, *overrides: str, **sections: Any) -> Recipe:
        tree: dict[str, Any] = {
            "policy": {"use": name},
            "sampler": {"use": name},
            "reward": {"toy_reward": {}},
            "objective": {"grpo": {"epsilon": 0.2}},
            "prompts": {"file": str(prompts), "evaluate": str(prompts)},
            "train": {
                "iterations": 3, "num_prompts": 3, "num_generations": 4, "learning_rate": 0.05,
            },
            "evaluate": {"metrics": {"toy_reward": {}}, "num_generations": 4},
        }  # fmt: skip
        return load_recipe(tree | sections, overrides, toy_registry)

    return make
