"""The section `requires`: what a recipe asks for, and the versions that it is read with."""

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from genrl_core import __version__
from genrl_core.recipe.problems import Problem
from genrl_core.recipe.tree import RecipeTree
from genrl_core.registration import Plugin
from genrl_core.text import did_you_mean


def check_requirements(
    tree: RecipeTree, owners: Iterable[Plugin], problems: list[Problem]
) -> list[str]:
    """Check `requires`, and return it with the versions of whatever the recipe uses now."""
    given = tree.get("requires") or []
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        problems.append(tree.problem("should be a list such as [genrl-core>=0.1]", "requires"))
        return []
    specifiers: dict[str, SpecifierSet] = {}
    for i, item in enumerate(given):
        try:
            requirement = Requirement(item)
        except InvalidRequirement:
            message = f"`{item}` is no requirement such as genrl-core>=0.1"
            problems.append(tree.problem(message, "requires", i))
            continue
        name = canonicalize_name(requirement.name)
        if message := _unmet(requirement, item):
            problems.append(tree.problem(message, "requires", i))
        specifiers[name] = specifiers.get(name, SpecifierSet()) & requirement.specifier
    used = {owner.distribution: owner.version for owner in owners if owner.distribution}
    for distribution, version in {**used, "genrl-core": __version__}.items():
        name = canonicalize_name(distribution)
        exact = SpecifierSet(f">={Version(version).public}")
        specifiers[name] = specifiers.get(name, SpecifierSet()) & exact
    return [f"{name}{specifier}" for name, specifier in sorted(specifiers.items())]


def _unmet(requirement: Requirement, item: str) -> str:
    """What is wrong with one requirement here; empty where it is met."""
    name = canonicalize_name(requirement.name)
    version = _installed(name)
    if version is None:
        names = [dist.name for dist in importlib.metadata.distributions()]
        return f"`{name}` is not installed{did_you_mean(name, names) or f'; pip install {item!r}'}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"needs {item}, but {name} {version} is installed"
    return ""


def _installed(name: str) -> str | None:
    if name == "genrl-core":
        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
