"""A recipe's tree of plain values with where each was written, and one tree laid over another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genrl_core.recipe.problems import KeyPath, Problem, SourceLocation, dotted

COMPONENTS = ("policy", "sampler")
LABELLED = ("reward", "objective")
LABEL_MAPS: tuple[KeyPath, ...] = (*((name,) for name in LABELLED), ("evaluate", "metrics"))
"""Where a mapping goes from labels to components."""
_HOLD_PATHS: tuple[KeyPath, ...] = (
    ("extends",), ("prompts", "file"), ("prompts", "evaluate"), ("policy", "weights"),
)  # fmt: skip


@dataclass(frozen=True)
class RecipeTree:
    """Plain values and where they were written.

    Attributes:
        values: section -> value; a section that was removed is None or absent.
        locations: key path -> where it was written, for every key and list entry.
    """

    values: dict[str, Any] = field(default_factory=dict)
    locations: Mapping[KeyPath, SourceLocation] = field(default_factory=dict)

    def location(self, *path: str | int) -> SourceLocation:
        """Where ``path`` was written, or else the nearest thing that holds it."""
        while path and path not in self.locations:
            path = path[:-1]
        return self.locations.get(path, SourceLocation("recipe"))

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem of the value at ``path``, with its line."""
        return Problem(str(self.location(*path)), dotted(path), message)

    def get(self, *path: str | int) -> Any:
        """The value at ``path``, or None."""
        return value_at(self.values, path)

    def replace(self, path: KeyPath, value: Any) -> "RecipeTree":
        """The same tree with another value at ``path``, whose mapping exists."""

        def put(tree: dict[str, Any], keys: KeyPath) -> dict[str, Any]:
            key, rest = str(keys[0]), keys[1:]
            return {**tree, key: put(tree[key], rest) if rest else value}

        return RecipeTree(put(self.values, path), self.locations)


def value_at(value: Any, path: Sequence[str | int]) -> Any:
    """What stands at ``path`` below nested mappings, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def paths_in(value: Any, above: KeyPath = ()) -> list[KeyPath]:
    """The key path of a value and of everything in it."""
    found = [above]
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths_in(inner, (*above, key))
    return found


def is_component(path: KeyPath) -> bool:
    """Whether a component with a `use` stands at this path."""
    return path[0] in COMPONENTS if len(path) == 1 else is_label(path)


def is_label(path: KeyPath) -> bool:
    """Whether a labelled component stands here, whose `use` defaults to the label."""
    return path[:-1] in LABEL_MAPS


def merge(parent: RecipeTree, child: RecipeTree, problems: list[Problem]) -> RecipeTree:
    """The child's values over the parent's.

    Mappings merge, everything else is replaced, and lists of `requires` are joined. A component
    whose `use` changes starts afresh. `null` removes a section or a labelled component; at a field
    it stays, for the schema to decide.
    """

    def combine(old: Any, new: Any, path: KeyPath) -> Any:
        if path == ("requires",) and isinstance(old, list) and isinstance(new, list):
            return [*old, *new]
        if not isinstance(new, dict):
            return new
        if not isinstance(old, dict) or _starts_afresh(old, new, path):
            old = {}
        result = dict(old)
        for key, value in new.items():
            here = (*path, key)
            if value is not None or not is_label(here):
                result[key] = combine(old.get(key), value, here)
            elif result.pop(key, missing) is missing:
                message = "is empty; write `{}` to use it as it is (null removes one)"
                problems.append(child.problem(message, *here))
        return result

    missing = object()
    values = combine(parent.values, child.values, ())
    written = {**parent.locations, **_locations_in_merged(child, parent)}
    return RecipeTree(
        values, {path: written.get(path) or child.location(*path) for path in paths_in(values)}
    )


def _locations_in_merged(child: RecipeTree, parent: RecipeTree) -> dict[KeyPath, SourceLocation]:
    """The child's locations, with its `requires` behind those of the parent."""
    found = dict(child.locations)
    above, below = parent.values.get("requires"), child.values.get("requires")
    if isinstance(above, list) and isinstance(below, list):
        for i in reversed(range(len(below))):
            found["requires", len(above) + i] = found.pop(("requires", i))
    return found


def _starts_afresh(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> bool:
    if not is_component(path) or "use" not in new:
        return False
    default = path[-1] if is_label(path) else None
    return bool(old.get("use", default) != new["use"])


def display(path: Path) -> str:
    """A path as messages show it: relative where it lies below the working folder."""
    here = Path.cwd()
    full = Path(os.path.normpath(here / path))
    return str(full.relative_to(here) if full.is_relative_to(here) else path)


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
