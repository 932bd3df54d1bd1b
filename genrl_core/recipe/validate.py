"""One part of a recipe against its schema: the config, or every problem at its line."""

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from genrl_core.interfaces.configs import SamplerConfig, Schema
from genrl_core.recipe.problems import KeyPath, Problem, dotted, pydantic_message, unknown_key
from genrl_core.recipe.tree import RecipeTree

S = TypeVar("S", bound=Schema)


class Validator:
    """Validates parts of one tree.

    Attributes:
        tree: for the lines of what was written.
        schemas: key path -> schema of every section and component, to say where a key belongs.
        problems: what is wrong is added here.
    """

    def __init__(
        self, tree: RecipeTree, schemas: Mapping[KeyPath, type[Schema]], problems: list[Problem]
    ):
        self.tree, self.schemas, self.problems = tree, schemas, problems

    def validate(
        self, schema: type[S], fields: Mapping[str, Any], path: KeyPath, only: Collection[Any] = ()
    ) -> S | None:
        """The config, or None with its problems noted; ``only`` limits which fields they are of."""
        given = without_nulls(schema, fields)
        try:
            return schema.model_validate_json(json.dumps(given))
        except ValidationError as error:
            messages: dict[KeyPath, list[str]] = {}
            for details in error.errors(include_url=False):
                where = _path_of(details, given)
                if not only or not where or where[0] in only:
                    message = self._explain(schema, details, where, path)
                    messages.setdefault(where, []).append(message)
            for where, found in messages.items():
                message = ", or ".join(dict.fromkeys(found))
                self.problems.append(self.tree.problem(message, *path, *where))
            return None

    def sampler_with(
        self, sampler: SamplerConfig, fields: Mapping[str, Any], path: KeyPath
    ) -> SamplerConfig | None:
        """The sampler with some fields changed, or None with the problems of those noted."""
        changed = without_nulls(type(sampler), fields)
        merged = {**sampler.model_dump(mode="json"), **changed}
        return self.validate(type(sampler), merged, path, only=changed)

    def unknown(self, key: str, known: Collection[str], path: KeyPath) -> str:
        """Why a key under ``path`` is refused, and where in this recipe it would be right."""
        homes = [
            dotted((*home, key))
            for home, schema in self.schemas.items()
            if key in schema.model_fields and home != path
        ]
        return unknown_key(key, known, homes if len(homes) <= 3 else [])

    def _explain(
        self, schema: type[Schema], details: ErrorDetails, where: KeyPath, path: KeyPath
    ) -> str:
        kind, key = details["type"], str(where[-1]) if where else ""
        fields = getattr(_model_at(schema, where[:-1]), "model_fields", {})
        if kind == "extra_forbidden":
            return self.unknown(key, fields, path)
        if kind == "missing":
            field = fields.get(key)
            meaning = f": {field.description}" if field and field.description else ""
            above = dotted((*path, *where[:-1]))
            return f"is missing{meaning}. Add `{key}: {self._proposed(field)}` under `{above}`"
        return pydantic_message(details)

    def _proposed(self, field: Any) -> str:
        """The value that a field proposes; one that depends on the paradigm is a mapping."""
        extra = getattr(field, "json_schema_extra", None)
        proposed = extra.get("propose") if isinstance(extra, dict) else None
        if isinstance(proposed, dict):
            policy = self.schemas.get(("policy",))
            proposed = proposed.get(getattr(policy, "paradigm", None))
        return "..." if proposed in (None, "") else str(proposed)


def without_nulls(schema: type[Schema], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without nulls where the schema knows the field and does not take null."""
    out = {}
    for key, value in fields.items():
        field = schema.model_fields.get(key)
        if value is None and field is not None:
            options = (field.annotation, *get_args(field.annotation))  # of a union
            if field.annotation is not Any and type(None) not in options:
                continue
        nested = _model_at(schema, (key,))
        out[key] = without_nulls(nested, value) if nested and isinstance(value, dict) else value
    return out


def _model_at(schema: type[Schema], path: KeyPath) -> type[Schema] | None:
    """The schema of the mapping at a path below a schema."""
    model: type[Schema] | None = schema
    for key in path:
        field = model.model_fields.get(str(key)) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[Schema] | None:
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _path_of(details: ErrorDetails, given: Mapping[str, Any]) -> KeyPath:
    """Where an error is, without the names that pydantic adds for the members of a union."""
    value: Any = given
    path: list[str | int] = []
    for i, key in enumerate(details["loc"]):
        inside = isinstance(value, dict) and key in value
        inside = inside or (isinstance(value, list) and isinstance(key, int) and key < len(value))
        if inside:
            value = value[key]
            path.append(key)
        elif details["type"] == "missing" and i == len(details["loc"]) - 1:
            path.append(key)
    return tuple(path)
