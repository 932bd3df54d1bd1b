"""``KEY=VALUE`` items: read one by one, then laid over a recipe's tree together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from genrl_core.recipe.problems import KeyPath, Problem, SourceLocation, dotted
from genrl_core.recipe.reader import read_yaml
from genrl_core.recipe.tree import LABEL_MAPS, RecipeTree, merge, paths_in, value_at


@dataclass(frozen=True)
class Override:
    """One item.

    Attributes:
        path: what it sets: keys alone, no index.
        value: under the recipe's scalar rules; None removes.
        location: how messages quote it.
    """

    path: tuple[str, ...]
    value: Any
    location: SourceLocation

    def states(self, labels: KeyPath) -> bool:
        """Whether it gives this map of labels as a whole."""
        depth = len(self.path)
        whole = isinstance(value_at(self.value, labels[depth:]), dict)
        return whole and labels[:depth] == self.path


def parse_overrides(items: Sequence[str], problems: list[Problem]) -> list[Override]:
    """The items that can be read; what is wrong with the others is added to ``problems``."""
    found: list[Override] = []
    for item in items:
        key, equals, text = item.partition("=")
        location = SourceLocation(f"override `{item}`", folder=Path.cwd())
        path = tuple(key.split("."))
        wrong: list[Problem] = []
        value, _ = read_yaml(text, str(location), Path.cwd(), wrong)
        message = ""
        if not equals or not all(path):
            message = "should look like `train.iterations=10`"
        elif path[0] == "extends":
            message = "a parent cannot be overridden; write a recipe that extends it"
        elif not text.strip():
            message = f"has no value; write `{key}=null` to remove it"
        elif wrong:
            message = f"cannot be read ({wrong[0].message}); put the value in quotes"
        if message:
            problems.append(Problem(str(location), "", message))
        else:
            found.append(Override(path, value, location))
    return found


def apply_overrides(
    tree: RecipeTree, overrides: Sequence[Override], problems: list[Problem]
) -> tuple[RecipeTree, tuple[str, ...]]:
    """A recipe's tree with overrides merged in; a later one wins.

    A mapping merges, but one that is given for a map of labels replaces it: labels that it leaves
    out go, and those that it names keep their other fields.

    Returns:
        The tree, and one sentence for each map that lost labels.
    """
    if not overrides:
        return tree, ()
    changes = _as_tree(overrides, tree)
    removed: list[str] = []
    for override, path in product(overrides, LABEL_MAPS):
        old, new = tree.get(*path), changes.get(*path)
        if not override.states(path) or not isinstance(old, dict) or not isinstance(new, dict):
            continue
        if gone := [label for label in old if new.get(label) is None]:
            names = ", ".join(dotted((*path, label)) for label in gone)
            what = f"replaces the labels of {dotted(path)} and removes {names}"
            removed.append(f"{override.location}: {what}")
        tree = tree.replace(path, {label: old[label] for label in old if label in new})
    return merge(tree, changes, problems), tuple(removed)


def _as_tree(overrides: Sequence[Override], below: RecipeTree) -> RecipeTree:
    """All overrides as one tree; a mapping that ``below`` has already keeps its location."""
    values: dict[str, Any] = {}
    locations: dict[KeyPath, SourceLocation] = {}
    for override in overrides:
        path, branch = override.path, values
        for i, key in enumerate(path[:-1], 1):
            if not isinstance(below.get(*path[:i]), dict):
                locations[path[:i]] = override.location
            if not isinstance(branch.get(key), dict):
                branch[key] = {}
            branch = branch[key]
        branch[path[-1]] = override.value
        locations |= dict.fromkeys(paths_in(override.value, path), override.location)
    return RecipeTree(values, locations)
