"""From a merged tree to validated configs, with every problem named at its line."""

import importlib.metadata
import json
import os
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from genrl_core import __version__
from genrl_core.errors import PluginError
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
    Schema,
)
from genrl_core.recipe.problems import Place, Problem, Route, dotted, plain, unknown_key
from genrl_core.recipe.reader import COMPONENTS, LABELLED, Document
from genrl_core.recipe.sections import SECTIONS, EvaluateConfig
from genrl_core.registry import Kind, Registry
from genrl_core.text import did_you_mean, format_value, join_names

S = TypeVar("S", bound=Schema)

SECTION_NAMES = (*COMPONENTS, *LABELLED, *SECTIONS)

_RUN_NAME = "should be up to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"


class Resolver:
    """Validates one merged document against the sections' schemas and the registry.

    After ``run()`` the attributes hold the configs; what failed is missing and in ``problems``.

    Attributes:
        places: where every given value was written; a preset's default names its objective.
        sections: the fixed sections, validated.
        resolved: the plain tree with parents merged, defaults filled and versions under `requires`.
    """

    def __init__(self, document: Document, registry: Registry, problems: list[Problem]):
        self.registry, self.problems = registry, problems
        self.tree: dict[str, Any] = dict(document.tree)
        self.places: dict[Route, Place] = dict(document.places)
        self.policy: PolicyConfig | None = None
        self.sampler: SamplerConfig | None = None
        self.reward: dict[str, RewardConfig] = {}
        self.objective: dict[str, ObjectiveConfig] = {}
        self.metrics: dict[str, RewardConfig] = {}
        self.sections: dict[str, Schema] = {}
        self.resolved: dict[str, Any] = {}
        self._schemas: dict[Route, type[Schema]] = {(name,): s for name, s in SECTIONS.items()}
        self._uses: dict[Route, tuple[Kind, str]] = {}

    def run(self) -> None:
        """Fill the attributes; problems are collected, nothing is raised."""
        for name in self.tree:
            if name not in (*SECTION_NAMES, "requires"):
                known = (*SECTION_NAMES, "extends", "requires")
                self._report((name,), unknown_key(name, known, self._homes(name, ())))
        metrics = self._mapping(self._mapping(self.tree, "evaluate"), "metrics", "evaluate")
        for kind in COMPONENTS:
            if kind in self.tree:
                self._find(cast(Kind, kind), (kind,), self.tree[kind])
        for kind in LABELLED:
            for label, fields in self._mapping(self.tree, kind).items():
                self._find(cast(Kind, kind), (kind, label), fields)
        for label, fields in metrics.items():
            self._find("reward", ("evaluate", "metrics", label), fields)
        self._preset("advantage")
        self._preset("filter")
        self._anchor_paths()
        for route in self._uses:
            self._component(route)
        for name, schema in SECTIONS.items():
            fields = self._mapping(self.tree, name)
            if isinstance(self.tree.get(name), dict | None):
                section = self.validate(schema, fields, (name,))
                if section is not None:
                    self.sections[name] = section
        self._evaluation()
        requires = self._requirements()
        if not self.problems:
            self.resolved = self._resolve(requires)

    def place(self, *route: str | int) -> Place:
        """Where a value was written, or else what holds it."""
        return Document(self.tree, self.places).place(*route)

    def _report(self, route: Route, message: str) -> None:
        self.problems.append(Problem(str(self.place(*route)), dotted(route), message))

    def _mapping(self, tree: Mapping[str, Any], key: str, *above: str) -> dict[str, Any]:
        value = tree.get(key)
        if value is None or isinstance(value, dict):
            return value or {}
        self._report(
            (*above, key), f"should be a mapping (`key: value`), not {format_value(value)}"
        )
        return {}

    # Components

    def _find(self, kind: Kind, route: Route, fields: Any) -> None:
        """Look up the config class of one component."""
        if not isinstance(fields, dict):
            self._report(
                route, f"should be a mapping such as {{use: NAME}}, not {format_value(fields)}"
            )
            return
        name = fields.get("use", route[-1] if len(route) > 1 else None)
        if not isinstance(name, str):
            known = join_names(self.registry.names(kind))
            wrong = "is missing" if name is None else f"should be a name, not {format_value(name)}"
            self._report((*route, "use"), f"{wrong}: which {kind}? Registered: {known}")
            return
        try:
            self._schemas[route] = self.registry.get(kind, name)
        except PluginError as error:
            self._report((*route, "use") if "use" in fields else route, str(error))
        else:
            self._uses[route] = (kind, name)

    def _component(self, route: Route) -> None:
        fields = self._at(route)
        given = {key: value for key, value in fields.items() if key != "use"}
        config = self.validate(self._schemas[route], given, route)
        if isinstance(config, PolicyConfig):
            self.policy = config
        elif isinstance(config, SamplerConfig):
            self.sampler = config
        elif isinstance(config, ObjectiveConfig):
            self.objective[str(route[-1])] = config
        elif isinstance(config, RewardConfig):
            (self.reward if route[0] == "reward" else self.metrics)[str(route[-1])] = config

    def _at(self, route: Route) -> dict[str, Any]:
        value: Any = self.tree
        for key in route:
            value = value[key]
        return cast(dict[str, Any], value)

    def _preset(self, section: Literal["advantage", "filter"]) -> None:
        """Fill in what objectives state for a section where the recipe is silent."""
        given = dict(self._mapping(self.tree, section))
        by: dict[str, str] = {}
        for route, schema in self._schemas.items():
            if not issubclass(schema, ObjectiveConfig):
                continue
            defaults = getattr(schema, f"{section}_defaults")
            for key, value in defaults.items():
                if key in given and key not in by:
                    continue
                if key in by and given[key] != value:
                    one, other = format_value(given[key]), format_value(value)
                    both = f"{one} ({by[key]}) or {other} ({dotted(route)})"
                    message = f"objectives disagree: {both}; state `{section}.{key}` in the recipe"
                    self._report((section, key), message)
                    continue
                given[key], by[key] = value, dotted(route)
                self.places[(section, key)] = Place(f"default of {dotted(route)}")
        if by:
            self.tree[section] = given

    def _anchor_paths(self) -> None:
        """Make prompt files and recipe files absolute, relative to the file that named them."""
        for section, key in (("prompts", "file"), ("prompts", "evaluate"), ("policy", "weights")):
            fields = self.tree.get(section)
            value = fields.get(key) if isinstance(fields, dict) else None
            if isinstance(value, str) and (path := path_in(section, value)) is not None:
                prefix = value[: len(value) - len(path)]
                full = prefix + anchored(path, self.place(section, key).folder)
                self.tree[section] = {**cast(dict[str, Any], fields), key: full}

    # Validation

    def validate(
        self, schema: type[S], fields: Mapping[str, Any], route: Route, only: Collection[Any] = ()
    ) -> S | None:
        """The config, or None with its problems reported; ``only`` limits which fields are."""
        given = without_nulls(schema, fields)
        try:
            return schema.model_validate_json(json.dumps(given))
        except ValidationError as error:
            messages: dict[Route, list[str]] = {}
            for details in error.errors(include_url=False):
                where = _trim(details, given)
                if not only or not where or where[0] in only:
                    message = self._explain(schema, details, where, route)
                    messages.setdefault(where, []).append(message)
            for where, found in messages.items():
                self._report((*route, *where), ", or ".join(dict.fromkeys(found)))
            return None

    def _explain(
        self, schema: type[Schema], details: ErrorDetails, where: Route, route: Route
    ) -> str:
        holder = _model_at(schema, where[:-1])
        if details["type"] == "extra_forbidden":
            known = [*holder.model_fields] if holder else []
            return unknown_key(str(where[-1]), known, self._homes(str(where[-1]), route))
        if details["type"] == "missing":
            field = holder.model_fields[str(where[-1])] if holder else None
            meaning = f": {field.description}" if field and field.description else ""
            extra = field.json_schema_extra if field else None
            proposed = self._proposal(extra.get("propose") if isinstance(extra, dict) else None)
            above = dotted((*route, *where[:-1]))
            return f"is missing{meaning}. Add `{where[-1]}: {proposed or '...'}` under `{above}`"
        if (*route, *where) == ("run", "name") and details["type"] == "string_pattern_mismatch":
            return f"{_RUN_NAME}; not {format_value(details['input'])}"
        return plain(details["type"], details["input"], details.get("ctx", {}), details["msg"])

    def _proposal(self, proposed: Any) -> str:
        """A field's proposed value; one that depends on the paradigm is a mapping."""
        if isinstance(proposed, dict):
            policy = self._schemas.get(("policy",))
            proposed = proposed.get(getattr(policy, "paradigm", None))
        return "" if proposed is None else str(proposed)

    def _homes(self, key: str, route: Route) -> list[str]:
        """Where in this recipe a key would be right."""
        homes = [
            dotted((*home, key))
            for home, schema in self._schemas.items()
            if key in schema.model_fields and home != route
        ]
        return homes if len(homes) <= 3 else []

    # Sections that need more than their schema

    def _evaluation(self) -> None:
        """Check the sampler's fields under evaluate.sampler and evaluate.baseline_sweep."""
        evaluate = self.sections.get("evaluate")
        if self.sampler is None or not isinstance(evaluate, EvaluateConfig):
            return
        clean = without_nulls(type(self.sampler), evaluate.sampler)
        self.sampler_with(self.sampler, clean, ("evaluate", "sampler"))
        for key, values in evaluate.baseline_sweep.items():
            for value in values:
                self.sampler_with(self.sampler, {key: value}, ("evaluate", "baseline_sweep"))
        self.sections["evaluate"] = evaluate.model_copy(update={"sampler": clean})

    def sampler_with(
        self, sampler: SamplerConfig, fields: Mapping[str, Any], route: Route
    ) -> SamplerConfig | None:
        """The sampler with some fields changed, or None with the problems of those reported."""
        changed = without_nulls(type(sampler), fields)
        merged = {**sampler.model_dump(mode="json"), **changed}
        return self.validate(type(sampler), merged, route, only=changed)

    def _requirements(self) -> list[str]:
        """Check `requires`, and return it with the versions that are used now."""
        given = self.tree.get("requires") or []
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            self._report(("requires",), "should be a list such as [genrl-core>=0.1]")
            return []
        specifiers: dict[str, SpecifierSet] = {}
        for i, item in enumerate(given):
            try:
                requirement = Requirement(item)
            except InvalidRequirement:
                self._report(("requires", i), f"`{item}` is no requirement such as genrl-core>=0.1")
                continue
            name = canonicalize_name(requirement.name)
            version = _installed(name)
            if version is None:
                names = [dist.name for dist in importlib.metadata.distributions()]
                hint = did_you_mean(name, names) or f"; pip install '{item}'"
                self._report(("requires", i), f"`{name}` is not installed{hint}")
            elif not requirement.specifier.contains(version, prereleases=True):
                self._report(("requires", i), f"needs {item}, but {name} {version} is installed")
            specifiers[name] = specifiers.get(name, SpecifierSet()) & requirement.specifier
        owners = [self.registry.owner(kind, name) for kind, name in self._uses.values()]
        used = {owner.distribution: owner.version for owner in owners if owner.distribution}
        for distribution, version in {**used, "genrl-core": __version__}.items():
            exact = SpecifierSet(f">={Version(version).public}")
            name = canonicalize_name(distribution)
            specifiers[name] = specifiers.get(name, SpecifierSet()) & exact
        return [f"{name}{specifier}" for name, specifier in sorted(specifiers.items())]

    def _resolve(self, requires: list[str]) -> dict[str, Any]:
        def named(route: Route, config: Component) -> dict[str, Any]:
            return {"use": self._uses[route][1], **config.model_dump(mode="json")}

        tree: dict[str, Any] = {"requires": requires}
        if self.policy is not None:
            tree["policy"] = named(("policy",), self.policy)
        if self.sampler is not None:
            tree["sampler"] = named(("sampler",), self.sampler)
        tree["reward"] = {label: named(("reward", label), c) for label, c in self.reward.items()}
        tree["objective"] = {
            label: named(("objective", label), c) for label, c in self.objective.items()
        }
        tree |= {name: section.model_dump(mode="json") for name, section in self.sections.items()}
        tree["evaluate"]["metrics"] = {
            label: named(("evaluate", "metrics", label), c) for label, c in self.metrics.items()
        }
        return tree


def path_in(section: str, value: str) -> str | None:
    """The part of a value that is a path relative to its recipe; None where there is none."""
    if section == "policy":
        rest = value.removeprefix("recipe:")
        return rest if rest != value and rest.endswith((".yaml", ".yml")) else None
    return value


def anchored(path: str, folder: Path) -> str:
    """An absolute path, with ``~`` and ``..`` taken away."""
    return os.path.normpath(Path.cwd() / folder / Path(path).expanduser())


def without_nulls(schema: type[Schema], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without nulls where the schema knows the field and does not take null."""
    out = {}
    for key, value in fields.items():
        field = schema.model_fields.get(key)
        if value is None and field is not None and not _takes_none(field.annotation):
            continue
        nested = _model_at(schema, (key,))
        out[key] = without_nulls(nested, value) if nested and isinstance(value, dict) else value
    return out


def _takes_none(annotation: Any) -> bool:
    if annotation is None or annotation is type(None) or annotation is Any:
        return True
    if get_origin(annotation) is Annotated:
        return _takes_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(_takes_none, get_args(annotation)))
    return False


def _model_at(schema: type[Schema], route: Route) -> type[Schema] | None:
    """The schema of the mapping at a route below a schema."""
    model: type[Schema] | None = schema
    for key in route:
        field = model.model_fields.get(str(key)) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[Schema] | None:
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _trim(details: ErrorDetails, given: Mapping[str, Any]) -> Route:
    """A pydantic location without the names that it adds for the members of a union."""
    value: Any = given
    route: list[str | int] = []
    for i, key in enumerate(details["loc"]):
        inside = isinstance(value, dict) and key in value
        inside = inside or (isinstance(value, list) and isinstance(key, int) and key < len(value))
        if inside:
            value = value[key]
            route.append(key)
        elif details["type"] == "missing" and i == len(details["loc"]) - 1:
            route.append(key)
    return tuple(route)


def _installed(name: str) -> str | None:
    if name == "genrl-core":
        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
