"""``genrl show``: a recipe with where its values come from, or a component with its fields."""

import json
from collections.abc import Sequence
from typing import Any

from genrl_core.cli.display import cell_text, print_json, print_text, table
from genrl_core.cli.listing import component_row
from genrl_core.interfaces.configs import Component
from genrl_core.recipe.check import CheckedRecipe
from genrl_core.recipe.problems import KeyPath
from genrl_core.recipe.reader import to_yaml
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.views import name_of_view
from genrl_core.registration import Kind
from genrl_core.registry import Registry

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true | false",
    "null": "null",
    "object": "mapping",
}

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def show_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """The resolved recipe as YAML, each value with where it comes from as a comment."""
    if as_json:
        print_json({"name": recipe.name, "resolved": recipe.resolved})
        return
    lines: list[tuple[str, str]] = []

    def walk(tree: dict[str, Any], above: KeyPath, indent: str) -> None:
        for key, value in tree.items():
            path = (*above, key)
            if isinstance(value, dict) and value:
                lines.append((f"{indent}{key}:", ""))
                walk(value, path, indent + "  ")
            else:
                text = to_yaml({key: value}).rstrip("\n").replace("\n", f"\n{indent}")
                lines.append((indent + text, _origin(recipe, path)))

    walk(recipe.resolved, (), "")
    width = min(max(len(text) for text, _ in lines), 60)
    shown = (f"{text.ljust(width)}  # {origin}" if origin else text for text, origin in lines)
    print_text("\n".join(shown))


def _origin(recipe: Recipe, path: KeyPath) -> str:
    """Where a value was written, or else why it stands in the resolved recipe."""
    if path in recipe.locations:
        return str(recipe.locations[path])
    if path[-1] == "use":
        return f"the label, {recipe.place(*path[:-1])}"
    return "installed" if path == ("requires",) else "default"


def one_line(checked: CheckedRecipe) -> str:
    """What a recipe combines, for ``genrl check``."""
    recipe, name_of = checked.recipe, checked.recipe.name_of
    parts = [name_of(part) for part in (recipe.policy, recipe.sampler) if part is not None]
    objectives = [
        f"{name_of(config)} [{name_of_view(checked.views[label])}]"
        for label, config in recipe.objective.items()
    ]
    rewards = " + ".join(recipe.reward) or "no reward"
    return f"{', '.join(parts)}, {rewards}, {' + '.join(objectives)}"


def show_components(registry: Registry, kinds: Sequence[Kind], name: str, *, as_json: bool) -> None:
    """What is registered under a name, of every kind, in full."""
    if as_json:
        print_json([
            component_row(registry, kind, name) | {"fields": fields_of(registry.get(kind, name))}
            for kind in kinds
        ])  # fmt: skip
        return
    for kind in kinds:
        row = component_row(registry, kind, name)
        print_text(f"{kind} {name}: {row['summary']}")
        for key in ("paper", "paradigm", "view", "judges", "provides", "needs", "plugin", "path"):
            if text := cell_text(row.get(key)):
                print_text(f"  {key}: {text}")
        rows = []
        for field in fields_of(registry.get(kind, name)):
            default = "(required)" if field["required"] else json.dumps(field["default"])
            rows.append([field["name"], field["type"], default, field["description"]])
        table("fields", ("field", "type", "default", "meaning"), rows)


def fields_of(schema: type[Component]) -> list[dict[str, Any]]:
    """Every field with its type in words, default and description."""
    described = schema.model_json_schema()
    required = described.get("required", [])
    return [
        {
            "name": name,
            "type": _type_text(field, described.get("$defs", {})),
            "default": field.get("default"),
            "required": name in required,
            "description": field.get("description", ""),
        }
        for name, field in described.get("properties", {}).items()
    ]


def _type_text(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in field:
        return _type_text(definitions[field["$ref"].rpartition("/")[2]], {})
    if "anyOf" in field:
        return " | ".join(_type_text(option, definitions) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        inner = _type_text(field.get("items", {}), definitions)
        return f"list of {inner}" if inner else "list"
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join((_TYPES.get(field.get("type", ""), "any"), *bounds))
