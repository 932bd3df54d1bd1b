"""From a recipe's file or mapping to its tree, with everything that it inherits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genrl_core.errors import PluginError, RecipeError
from genrl_core.recipe.problems import (
    KeyPath,
    Problem,
    ProblemsError,
    SourceLocation,
    dotted,
    problems_of,
)
from genrl_core.recipe.reader import read_file, read_yaml, to_yaml
from genrl_core.recipe.tree import (
    RecipeTree,
    absolute_path,
    absolute_values,
    display,
    merge,
    paths_in,
)
from genrl_core.registry import Registry
from genrl_core.text import format_value


@dataclass(frozen=True)
class RecipeFile:
    """What is written in one file or mapping, and what that comes to over its parents.

    Attributes:
        text: the file's own text; empty for a mapping.
        tree: what it says; with ``RecipeFiles`` over its parents.
        problems: what is wrong in it and in its parents, none of which hides the rest.
        parent: what it extends, or None.
    """

    text: str
    tree: RecipeTree
    problems: tuple[Problem, ...]
    parent: "RecipeFile | None" = None


class RecipeFiles:
    """Reads recipes with their parents, each file once, however many recipes extend it."""

    def __init__(self, registry: Registry):
        self._registry = registry
        self._files: dict[Path, RecipeFile] = {}

    def read(self, path: Path, below: tuple[Path, ...] = ()) -> RecipeFile:
        """A file over its parents; ``below`` are the files that led to it.

        Raises:
            RecipeError: it or a parent cannot be read, or the chain leads back to itself.
        """
        if path not in self._files:
            self._files[path] = self.inherit(read_alone(path), (*below, path.resolve()))
        return self._files[path]

    def inherit(self, child: RecipeFile, below: tuple[Path, ...] = ()) -> RecipeFile:
        """A recipe that was read alone over its parents; raises like ``read``."""
        values, problems = dict(child.tree.values), list(child.problems)
        name, parent = values.pop("extends", None), None
        if name is not None:
            try:
                path = self._path_of(name, child.tree.location("extends").folder, below)
            except (RecipeError, PluginError) as error:
                problems.append(child.tree.problem(str(error), "extends"))
                raise ProblemsError(problems) from None
            try:
                parent = self.read(path, below)
            except RecipeError as error:
                raise ProblemsError((*problems, *problems_of(error))) from None
            problems += parent.problems
        own = replace(child.tree, values=values)
        tree = merge(parent.tree if parent else RecipeTree(), own, problems)
        return RecipeFile(child.text, tree, tuple(problems), parent)

    def _path_of(self, parent: Any, folder: Path, below: tuple[Path, ...]) -> Path:
        """The file that ``extends`` names, from a recipe in ``folder``."""
        if not isinstance(parent, str):
            raise RecipeError(f"should be one recipe's name or path, not {format_value(parent)}")
        if parent.endswith((".yaml", ".yml")):
            path = Path(absolute_path(parent, folder))
            if not path.is_file():
                raise RecipeError(f"there is no file {display(path)}")
        else:
            path = self._registry.find_recipe(parent)
        if path not in self._files and (real := path.resolve()) in below:
            raise RecipeError(f"leads back to itself: {' > '.join(map(display, (*below, real)))}")
        return path


def read_alone(path: Path) -> RecipeFile:
    """One file without its parents.

    Raises:
        RecipeError: it cannot be read, is empty, or is no mapping.
    """
    text, source, problems = read_file(path), display(path), list[Problem]()
    values, locations = read_yaml(text, source, path.resolve().parent, problems)
    if isinstance(values, dict):
        return RecipeFile(text, RecipeTree(values, locations), tuple(problems))
    if values is not None:
        message = f"should be a mapping of sections, not {format_value(values)}"
        problems.append(Problem(source, "", message))
    elif not problems:
        message = "is empty; a recipe holds sections such as policy, sampler and train"
        problems.append(Problem(source, "", message))
    raise ProblemsError(problems)


def portable_text(path: Path) -> str:
    """The text of a recipe file in which every path holds from any folder; raises if unreadable."""
    file = read_alone(path)
    text, tree = file.text, file.tree
    values = {tree.location(*key).span: value for key, value in absolute_values(tree).items()}
    for (start, end), value in sorted(values.items(), reverse=True):
        text = text[:start] + to_yaml({"x": value}).strip().removeprefix("x: ") + text[end:]
    return text


def read_mapping(source: Mapping[str, Any]) -> RecipeFile:
    """A recipe that is given as a mapping; what is no plain value becomes a problem."""
    problems: list[Problem] = []
    location = SourceLocation("mapping", folder=Path.cwd())

    def convert(value: Any, path: KeyPath) -> Any:
        if isinstance(value, Mapping):
            problems.extend(
                Problem(str(location), dotted(path), f"keys are text, not {key!r}")
                for key in value
                if not isinstance(key, str)
            )
            return {k: convert(v, (*path, k)) for k, v in value.items() if isinstance(k, str)}
        if isinstance(value, list | tuple):
            return [convert(entry, (*path, i)) for i, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        what = f"holds a {type(value).__name__}; recipes hold text, numbers, lists and mappings"
        problems.append(Problem(str(location), dotted(path), what))
        return None

    values = convert(source, ())
    tree = RecipeTree(values, dict.fromkeys(paths_in(values), location))
    return RecipeFile("", tree, tuple(problems))
