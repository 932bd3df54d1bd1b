"""File paths in recipes: how messages show them, and what they are relative to."""

import os
from pathlib import Path

from genrl_core.recipe.problems import KeyPath
from genrl_core.recipe.tree import RecipeTree

_HOLD_PATHS: tuple[KeyPath, ...] = (
    ("extends",), ("prompts", "file"), ("prompts", "evaluate"), ("policy", "weights"),
)  # fmt: skip


def display(path: Path) -> str:
    """A path as messages show it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def absolute_path(path: str, folder: Path) -> str:
    """An absolute path, with ``~`` and ``..`` taken away."""
    return os.path.normpath(Path.cwd() / folder / Path(path).expanduser())


def absolute_values(tree: RecipeTree) -> dict[KeyPath, str]:
    """The key of every path in a recipe -> the value that means the same from any folder.

    A relative path is relative to the file that states it. Names of recipes and of models on a
    hub are no paths: only what ends in ``.yaml`` is one under `extends` and after ``recipe:``.
    """
    found: dict[KeyPath, str] = {}
    for key in _HOLD_PATHS:
        value = tree.get(*key)
        if not isinstance(value, str):
            continue
        prefix = "recipe:" if key[0] == "policy" else ""
        is_file = key[0] == "prompts" or value.endswith((".yaml", ".yml"))
        if is_file and value.startswith(prefix):
            path = absolute_path(value.removeprefix(prefix), tree.location(*key).folder)
            found[key] = prefix + path
    return found
