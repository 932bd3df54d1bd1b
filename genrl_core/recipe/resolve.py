"""From a merged tree to validated configs, pass by pass: shapes, paths, names, presets, schemas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from genrl_core.errors import PluginError
from genrl_core.interfaces.configs import Component, ObjectiveConfig, SamplerConfig, Schema
from genrl_core.recipe.problems import KeyPath, Problem, SourceLocation, dotted, raise_if
from genrl_core.recipe.prompts import PromptFile
from genrl_core.recipe.requirements import check_requirements
from genrl_core.recipe.sections import SECTIONS, EvaluateConfig, PromptsConfig
from genrl_core.recipe.tree import COMPONENTS, LABEL_MAPS, LABELLED, RecipeTree, absolute_values
from genrl_core.recipe.validate import Validator, without_nulls
from genrl_core.registration import Kind
from genrl_core.registry import Registry
from genrl_core.text import format_value, join_names

T = TypeVar("T")

SECTION_NAMES = (*COMPONENTS, *LABELLED, *SECTIONS)
SECTION_SCHEMAS: dict[KeyPath, type[Schema]] = {(name,): s for name, s in SECTIONS.items()}


@dataclass(frozen=True)
class Found:
    """A component that the registry knows: its kind, its name there, its schema and its fields."""

    kind: Kind
    name: str
    schema: type[Component]
    fields: Mapping[str, Any]


def resolve(tree: RecipeTree, registry: Registry, problems: list[Problem]) -> dict[str, Any]:
    """Validate a merged tree against the sections' schemas and the registry.

    Returns:
        The fields of a ``Recipe`` that come of it, by their names.

    Raises:
        RecipeError: everything that is wrong, ``problems`` from before included.
    """
    tree = _with_mappings(tree, problems)
    for path, value in absolute_values(tree).items():
        tree = tree.replace(path, value)
    found = _look_up(tree, registry, problems)
    tree = _with_presets(tree, found, problems)
    schemas = SECTION_SCHEMAS | {path: each.schema for path, each in found.items()}
    validator = Validator(tree, schemas, problems)
    _refuse_unknown(validator)
    components = {
        path: config
        for path, each in found.items()
        if (config := validator.validate(each.schema, each.fields, path)) is not None
    }
    sections = {
        name: section
        for name, schema in SECTIONS.items()
        if isinstance(tree.values[name], dict)
        and (section := validator.validate(schema, tree.values[name], (name,))) is not None
    }
    if (sampler := components.get(("sampler",))) is not None and "evaluate" in sections:
        evaluate = cast(EvaluateConfig, sections["evaluate"])
        sections["evaluate"] = _evaluation(evaluate, cast(SamplerConfig, sampler), validator)
    owners = (registry.owner(each.kind, each.name) for each in found.values())
    requires = check_requirements(tree, owners, problems)
    raise_if(problems)
    paths = cast(PromptsConfig, sections["prompts"]).model_dump()
    return {
        **{kind: components.get((kind,)) for kind in COMPONENTS},
        **{kind: _labelled(components, kind) for kind in LABELLED},
        **sections,
        "metrics": _labelled(components, "evaluate", "metrics"),
        "prompt_files": {key: PromptFile(path) for key, path in paths.items() if path is not None},
        "resolved": _resolved_values(requires, found, components, sections),
        "locations": tree.locations,
    }


def _with_mappings(tree: RecipeTree, problems: list[Problem]) -> RecipeTree:
    """The tree with a mapping for every section that is silent; what is no mapping is reported.

    A fixed section that is none stays, so that its schema does not miss fields as well.
    """
    values = dict(tree.values)
    for name in (*LABELLED, *SECTIONS):
        if isinstance(values.setdefault(name, {}), dict | None):
            values[name] = values[name] or {}
            continue
        problems.append(_no_mapping(tree, (name,)))
        if name in LABELLED:
            values[name] = {}
    if not isinstance(tree.get("evaluate", "metrics"), dict | None):
        problems.append(_no_mapping(tree, ("evaluate", "metrics")))
        values["evaluate"] = values["evaluate"] | {"metrics": {}}
    return RecipeTree(values, tree.locations)


def _no_mapping(tree: RecipeTree, path: KeyPath) -> Problem:
    what = format_value(tree.get(*path))
    return tree.problem(f"should be a mapping (`key: value`), not {what}", *path)


def _look_up(tree: RecipeTree, registry: Registry, problems: list[Problem]) -> dict[KeyPath, Found]:
    """The config class of every component, by its key path."""
    named: list[KeyPath] = [(kind,) for kind in COMPONENTS if tree.get(kind) is not None]
    named += [(*labels, label) for labels in LABEL_MAPS for label in tree.get(*labels) or {}]
    found: dict[KeyPath, Found] = {}
    for path in named:
        kind = cast(Kind, path[0] if path[0] != "evaluate" else "reward")
        fields = tree.get(*path)
        if not isinstance(fields, dict):
            what = f"should be a mapping such as {{use: NAME}}, not {format_value(fields)}"
            problems.append(tree.problem(what, *path))
            continue
        name = fields.get("use", path[-1] if len(path) > 1 else None)
        if not isinstance(name, str):
            known = join_names(registry.names(kind))
            wrong = "is missing" if name is None else f"should be a name, not {format_value(name)}"
            message = f"{wrong}: which {kind}? Registered: {known}"
            problems.append(tree.problem(message, *path, "use"))
            continue
        try:
            schema = registry.get(kind, name)
        except PluginError as error:
            here = (*path, "use") if "use" in fields else path
            problems.append(tree.problem(str(error), *here))
            continue
        given = {key: value for key, value in fields.items() if key != "use"}
        found[path] = Found(kind, name, schema, given)
    return found


def _with_presets(
    tree: RecipeTree, found: Mapping[KeyPath, Found], problems: list[Problem]
) -> RecipeTree:
    """The tree with what objectives state for sections where the recipe is silent."""
    values, locations = dict(tree.values), dict(tree.locations)
    objectives = {
        dotted(path): each.schema
        for path, each in found.items()
        if issubclass(each.schema, ObjectiveConfig)
    }
    for section in ("advantage", "filter"):
        if not isinstance(stated := values[section], dict):
            continue
        preset: dict[str, tuple[str, Any]] = {}
        for objective, schema in objectives.items():
            for key, value in getattr(schema, f"{section}_defaults").items():
                if key in stated:
                    continue
                first, chosen = preset.setdefault(key, (objective, value))
                if chosen != value:
                    one, other = format_value(chosen), format_value(value)
                    both = f"{one} ({first}) or {other} ({objective})"
                    message = f"objectives disagree: {both}; state `{section}.{key}` in the recipe"
                    problems.append(tree.problem(message, section, key))
        values[section] = stated | {key: value for key, (_, value) in preset.items()}
        for key, (objective, _) in preset.items():
            locations[section, key] = SourceLocation(f"default of {objective}")
    return RecipeTree(values, locations)


def _refuse_unknown(validator: Validator) -> None:
    tree = validator.tree
    for name in tree.values.keys() - {*SECTION_NAMES, "requires"}:
        message = validator.unknown(name, (*SECTION_NAMES, "extends", "requires"), ())
        validator.problems.append(tree.problem(message, name))


def _evaluation(
    evaluate: EvaluateConfig, sampler: SamplerConfig, validator: Validator
) -> EvaluateConfig:
    """The section with the sampler's fields in it checked, and without nulls that stand for it."""
    changed = without_nulls(type(sampler), evaluate.sampler)
    validator.sampler_with(sampler, changed, ("evaluate", "sampler"))
    for key, values in evaluate.baseline_sweep.items():
        for value in values:
            validator.sampler_with(sampler, {key: value}, ("evaluate", "baseline_sweep"))
    return evaluate.model_copy(update={"sampler": changed})


def _resolved_values(
    requires: list[str], found: Mapping[KeyPath, Found], components: Mapping[KeyPath, Component],
    sections: Mapping[str, Schema],
) -> dict[str, Any]:  # fmt: skip
    """The plain tree of a valid recipe: sections in one order, `use` and defaults everywhere."""
    named = {
        path: {"use": found[path].name, **config.model_dump(mode="json")}
        for path, config in components.items()
    }
    fixed = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return {
        "requires": requires,
        **{kind: named[kind,] for kind in COMPONENTS if (kind,) in named},
        **{kind: _labelled(named, kind) for kind in LABELLED},
        **fixed,
        "evaluate": fixed["evaluate"] | {"metrics": _labelled(named, "evaluate", "metrics")},
    }


def _labelled(components: Mapping[KeyPath, T], *above: str) -> dict[str, T]:
    """Label -> component of one map of labels."""
    return {str(path[-1]): each for path, each in components.items() if path[:-1] == above}
