"""A recipe: its configs, its resolved form and what identifies it; and reading one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from genrl_core.errors import PluginError, RecipeError
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
    Schema,
)
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, TrainConfig, WeightsConfig
from genrl_core.recipe.overrides import apply_overrides, parse_overrides
from genrl_core.recipe.problems import KeyPath, Problem, SourceLocation, raise_if
from genrl_core.recipe.prompts import PromptFile
from genrl_core.recipe.reader import to_yaml
from genrl_core.recipe.resolve import SECTION_SCHEMAS, resolve
from genrl_core.recipe.sections import EvaluateConfig, PromptsConfig, RunConfig, SaveConfig
from genrl_core.recipe.sources import RecipeFiles, read_mapping
from genrl_core.recipe.tree import COMPONENTS, LABELLED, RecipeTree
from genrl_core.recipe.validate import Validator
from genrl_core.registry import Registry

RESOLVED_FILE = "recipe.resolved.yaml"


@dataclass(frozen=True, eq=False)
class Recipe:
    """A read and validated recipe. Configs only: nothing is built and no weight is loaded.

    Attributes:
        name: as ``digits/mask_grpo``; a file's stem elsewhere, `unnamed` for a mapping.
        policy, sampler: None where the recipe names none (then they must be injected).
        reward, objective: label -> config, in the recipe's order.
        metrics: evaluate.metrics, label -> config.
        advantage, filter, weights, prompts, train, evaluate, save, run: the fixed sections;
            paths of prompt files are absolute.
        resolved: the plain tree: parents merged, defaults filled, `use` everywhere, the versions
            of the plugins used under `requires`.
        given: the file's text as given; empty for a mapping.
        prompt_files: ``file`` and ``evaluate`` -> the prompts there, read when first asked for.
        registry: what the names were looked up in.
        locations: key path -> where it was written, for every given value.
        tree: the merged tree before validation, which overrides build on.
        removed: what overrides of whole maps of labels took away, as sentences.
    """

    name: str
    policy: PolicyConfig | None
    sampler: SamplerConfig | None
    reward: Mapping[str, RewardConfig]
    objective: Mapping[str, ObjectiveConfig]
    metrics: Mapping[str, RewardConfig]
    advantage: AdvantageConfig
    filter: FilterConfig
    weights: WeightsConfig
    prompts: PromptsConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    save: SaveConfig
    run: RunConfig
    prompt_files: Mapping[str, PromptFile] = field(repr=False)
    resolved: dict[str, Any] = field(repr=False)
    given: str = field(repr=False)
    registry: Registry = field(repr=False)
    locations: Mapping[KeyPath, SourceLocation] = field(repr=False)
    tree: RecipeTree = field(repr=False)
    removed: tuple[str, ...] = ()

    def place(self, *path: str | int) -> str:
        """``file:line`` of a value, or of the nearest thing that holds it."""
        return str(RecipeTree({}, self.locations).location(*path))

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem of the value at ``path``, with its line."""
        return RecipeTree({}, self.locations).problem(message, *path)

    def name_of(self, config: Component) -> str:
        """The name under which the class of a config is registered."""
        return self.registry.name_of(config)

    def to_yaml(self) -> str:
        """The resolved form: itself a recipe that reproduces the run."""
        return to_yaml(self.resolved)

    def digest(self) -> str:
        """sha256 of what decides the result, rounding included, for caches.

        It covers the resolved form without `run.name` and `save`, with the contents of prompt files
        and of the recipe that gives the weights in place of their names.

        Raises:
            RecipeError: the recipe under policy.weights is missing or leads back to this one.
        """
        return self._digest(())

    def essence(self) -> dict[str, Any]:
        """Dotted key -> value, as JSON, of what must stay when a run is resumed.

        It leaves out the fields that their schema marks with ``changes_results: False``; raises
        like ``digest``.
        """
        return self._essence

    @cached_property
    def _essence(self) -> dict[str, Any]:
        tree = self._by_content(())
        for kind in COMPONENTS:
            if (part := getattr(self, kind)) is not None:
                _drop_neutral(part, tree[kind])
        for kind in LABELLED:
            for label, part in getattr(self, kind).items():
                _drop_neutral(part, tree[kind][label])
        for name in tree.keys() - {"requires", *COMPONENTS, *LABELLED}:
            _drop_neutral(getattr(self, name), tree[name])
        return flat(tree)

    def _digest(self, users: tuple[str, ...]) -> str:
        tree = self._by_content(users)
        tree["run"].pop("name")
        tree.pop("save")
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _by_content(self, users: tuple[str, ...]) -> dict[str, Any]:
        """The resolved form with contents in place of names; ``users`` begin with its weights."""
        tree = deepcopy(self.resolved)
        for key, file in self.prompt_files.items():
            if file.path.is_file():
                tree["prompts"][key] = file.sha256
        if (base := self.base_recipe()) is not None:
            chain = (*users, self.name)
            if base.name in chain:
                loop = " > ".join((*chain, base.name))
                place = self.place("policy", "weights")
                raise RecipeError(f"{place}: policy.weights: leads back to itself: {loop}")
            tree["policy"]["weights"] = base._digest(chain)  # noqa: SLF001  # of its own kind
        return tree

    def base_recipe(self) -> "Recipe | None":
        """The recipe that `policy.weights: recipe:NAME` names, read when first asked for, or None.

        Raises:
            RecipeError: it does not exist or is wrong.
        """
        return self._base_recipe

    @cached_property
    def _base_recipe(self) -> "Recipe | None":
        weights = self.policy.weights if self.policy else None
        if not weights or not weights.startswith("recipe:"):
            return None
        try:
            return load_recipe(weights.removeprefix("recipe:"), registry=self.registry)
        except RecipeError as error:
            place = self.place("policy", "weights")
            raise RecipeError(f"{place}: policy.weights: {weights}: {error}") from None

    def sampler_for(self, **overrides: Any) -> SamplerConfig:
        """The sampler with evaluate.sampler and then ``overrides`` merged in.

        Raises:
            RecipeError: there is no sampler, or a field is unknown or of the wrong type.
        """
        if self.sampler is None:
            raise RecipeError(f"{self.name}: there is no sampler")
        problems: list[Problem] = []
        fields = {**self.evaluate.sampler, **overrides}
        validator = Validator(RecipeTree({}, self.locations), SECTION_SCHEMAS, problems)
        sampler = validator.sampler_with(self.sampler, fields, ("evaluate", "sampler"))
        raise_if(problems)
        return cast(SamplerConfig, sampler)

    def with_overrides(self, *overrides: str) -> "Recipe":
        """This recipe with ``a.b=value`` on top; raises like ``load_recipe``."""
        return _build(self.name, self.given, self.tree, overrides, self.registry, [])


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted key -> value; lists are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return found


def _drop_neutral(part: Schema, tree: dict[str, Any]) -> None:
    for name, field_info in type(part).model_fields.items():
        extra, value = field_info.json_schema_extra, getattr(part, name)
        if isinstance(extra, dict) and extra.get("changes_results") is False:
            del tree[name]
        elif isinstance(value, Schema):
            _drop_neutral(value, tree[name])


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Recipe:
    """Read a recipe.

    Args:
        source: a registered name (``digits/mask_grpo``), a YAML file, a run folder, or a mapping.
        overrides: ``a.b=value``, the value under the recipe's scalar rules; they win. A mapping
            merges, but where labels stand (``reward={x: {}}``) those that it leaves out go.
        registry: where names are looked up; the installed plugins if silent.

    Raises:
        RecipeError: everything that is wrong, one line per problem.
    """
    registry = registry or Registry.discover()
    files = RecipeFiles(registry)
    if isinstance(source, Mapping):
        name, file = "unnamed", files.inherit(read_mapping(source))
    else:
        name, path = locate(source, registry)
        file = files.read(path)
    return _build(name, file.text, file.tree, overrides, registry, list(file.problems))


def _build(
    name: str, given: str, tree: RecipeTree, overrides: Sequence[str], registry: Registry,
    problems: list[Problem],
) -> Recipe:  # fmt: skip
    tree, removed = apply_overrides(tree, parse_overrides(overrides, problems), problems)
    return Recipe(
        name=name, given=given, registry=registry, tree=tree, removed=removed,
        **resolve(tree, registry, problems),
    )  # fmt: skip


def locate(source: str | Path, registry: Registry) -> tuple[str, Path]:
    """The name and the file of a recipe.

    Raises:
        RecipeError: there is none (with the nearest name), or two plugins bring one.
    """
    path = Path(source)
    is_file = not isinstance(source, str) or path.suffix in (".yaml", ".yml")
    if not is_file and (str(source) in registry.recipes() or not path.exists()):
        try:
            return str(source), registry.find_recipe(str(source))
        except PluginError as error:
            raise RecipeError(str(error)) from None
    if path.is_dir():
        if not (path / RESOLVED_FILE).is_file():
            raise RecipeError(f"{path} is a folder without {RESOLVED_FILE}: neither recipe nor run")
        path = path / RESOLVED_FILE
    if not path.is_file():
        raise RecipeError(f"recipe file {path} does not exist")
    if path.name == RESOLVED_FILE:
        return path.resolve().parent.name, path
    for folder, _ in registry.recipe_folders:
        if path.resolve().is_relative_to(folder.resolve()):
            inner = path.resolve().relative_to(folder.resolve())
            return inner.with_suffix("").as_posix(), path
    return path.stem, path
