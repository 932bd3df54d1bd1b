"""What the command line prints: tables, JSON, recipes with their origins, components."""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from genrl_core.cli.matrix import Cell
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.recipe.problems import Route
from genrl_core.recipe.reader import to_yaml
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.summaries import outlines
from genrl_core.registry import KINDS, Kind, Registry
from genrl_core.text import printable

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true | false",
    "null": "null",
    "object": "mapping",
}

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def say(text: str, *, error: bool = False) -> None:
    """Print text from recipes and plugins without its control characters."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream)


def say_json(value: Any) -> None:
    """Print one JSON value, indented."""
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201  # the command's output


def table(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str] = ()
) -> None:
    """A rich table on a terminal; elsewhere columns of plain text, nothing cut off.

    ``spare`` are the headers of columns that a terminal too narrow for them goes without, in turn.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    filled = [i for i, _ in enumerate(headers) if any(row[i] for row in rows)]
    headers, rows = [headers[i] for i in filled], [[row[i] for i in filled] for row in rows]
    if sys.stdout.isatty():
        for name in spare:
            if name in headers and _width(headers, rows) > shutil.get_terminal_size().columns:
                gone = headers.index(name)
                headers, *rows = [[*row[:gone], *row[gone + 1 :]] for row in (headers, *rows)]
        _rich_table(title, headers, rows)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    say(title)
    for row in (headers, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(f"  {'  '.join(cells)}".rstrip())


def _width(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The columns of a terminal that the table takes with every row on one line."""
    return sum(max(map(len, column)) + 4 for column in zip(headers, *rows, strict=True))


def _rich_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for i, header in enumerate(headers):
        out.add_column(header, no_wrap=i == 0, overflow="fold")
    for row in rows:
        out.add_row(*map(Text, row))
    Console().print(out)


def component_row(registry: Registry, kind: Kind, name: str) -> dict[str, Any]:
    """What ``genrl ls`` says about one component; capabilities hold for its default settings."""
    schema = registry.get(kind, name)
    row: dict[str, Any] = {"name": name, "kind": kind}
    if issubclass(schema, PolicyConfig | SamplerConfig):
        row["paradigm"] = schema.paradigm
        row["provides"] = _capabilities(schema, "provides")
    if issubclass(schema, SamplerConfig):
        row["supervised"] = schema.supervised
    if issubclass(schema, RewardConfig):
        row["judges"] = sorted(medium.value for medium in schema.media)
        row["evaluation_only"] = schema.evaluation_only
    if issubclass(schema, ObjectiveConfig):
        row["view"] = _default_view(schema)
        row["needs"] = _capabilities(schema, "needs")
    owner = registry.owner(kind, name)
    plugin = {"plugin": owner.name, "version": owner.version, "path": owner.path}
    return row | {"summary": schema.summary(), "paper": schema.paper} | plugin


def _capabilities(schema: type[Component], method: str) -> list[str] | None:
    """Capabilities under default settings, required fields as they are proposed.

    None where they hang on a required field that proposes nothing.
    """
    try:
        found = getattr(schema.model_construct(**schema.suggested_values() or {}), method)()
    except AttributeError:
        return None
    return sorted(capability.value for capability in found)


def _default_view(schema: type[ObjectiveConfig]) -> str | None:
    try:
        view = schema.model_construct(**schema.suggested_values() or {}).view_wanted()
        return None if view is None else str(getattr(view, "name", view))
    except AttributeError:
        return None


def component_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """The components of one kind."""
    columns = ("name", "paradigm", "view", "judges", "provides", "needs", "summary", "paper")
    shown = [[_cell(row.get(column)) for column in (*columns, "plugin")] for row in rows]
    table(title, (*columns, "plugin"), shown, spare=("plugin", "paper"))


def _cell(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value or "")


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


def show_component(registry: Registry, kind: Kind, name: str) -> None:
    """A component in full."""
    row = component_row(registry, kind, name)
    say(f"{kind} {name}: {row['summary']}")
    for key in ("paper", "paradigm", "view", "judges", "provides", "needs", "plugin", "path"):
        if text := _cell(row.get(key)):
            say(f"  {key}: {text}")
    fields = fields_of(registry.get(kind, name))
    rows = [
        [f["name"], f["type"], "(required)" if f["required"] else _default(f), f["description"]]
        for f in fields
    ]
    table("fields", ("field", "type", "default", "meaning"), rows)


def _default(field: dict[str, Any]) -> str:
    return json.dumps(field["default"])


def annotated(recipe: Recipe) -> str:
    """The resolved recipe as YAML, each value with where it comes from as a comment."""
    lines: list[tuple[str, str]] = []

    def walk(tree: dict[str, Any], route: Route, indent: str) -> None:
        for key, value in tree.items():
            here = (*route, key)
            place = recipe.places.get(here)
            if isinstance(value, dict) and value:
                lines.append((f"{indent}{key}:", ""))
                walk(value, here, indent + "  ")
            else:
                text = to_yaml({key: value}).rstrip("\n").replace("\n", f"\n{indent}")
                lines.append((indent + text, str(place) if place else _silent(recipe, here)))

    walk(recipe.resolved, (), "")
    width = min(max(len(text) for text, _ in lines), 60)
    return "\n".join(
        f"{text.ljust(width)}  # {origin}" if origin else text for text, origin in lines
    )


def _silent(recipe: Recipe, route: Route) -> str:
    """Why a value stands in the resolved recipe that nobody wrote."""
    if route[-1] == "use":
        return f"the label, {recipe.place(*route[:-1])}"
    return "installed" if route == ("requires",) else "default"


def recipe_rows(registry: Registry) -> list[dict[str, Any]]:
    """Every recipe: what it combines, whose method it is, and the first comment of its file."""
    return [
        {
            "name": found.name,
            "paradigm": found.paradigm,
            "objectives": list(found.objectives),
            "paper": found.paper,
            "summary": found.summary,
            "plugin": found.plugin.name,
            "version": found.plugin.version,
            "path": str(found.path),
            "problem": found.problem,
        }
        for found in outlines(registry)
    ]


def recipe_table(rows: Sequence[dict[str, Any]]) -> None:
    """The recipes; of a broken one, why."""
    columns = ("name", "paradigm", "objectives", "paper", "summary", "plugin")
    shown = [
        [_cell(row[column]) for column in columns]
        if not row["problem"]
        else [row["name"], "", "", "", f"BROKEN: {row['problem'].splitlines()[0]}", row["plugin"]]
        for row in rows
    ]
    table("recipes", columns, shown, spare=("plugin", "summary"))


def kinds_named(registry: Registry, name: str) -> list[Kind]:
    """The kinds in which a name is registered."""
    return [kind for kind in KINDS if name in registry.names(kind)]


def matrix(cells: Sequence[Cell], *, as_json: bool) -> None:
    """One row per objective and view, one column per paradigm: with which samplers it trains."""
    if as_json:
        say_json([cell.as_dict() for cell in cells])
        return
    paradigms = list(dict.fromkeys(cell.paradigm for cell in cells))
    rows: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        row = rows.setdefault((cell.objective, cell.view), {name: [] for name in paradigms})
        row[cell.paradigm].append(cell)
    body = [[*names, *(_where(found) for found in row.values())] for names, row in rows.items()]
    table("what trains", ["objective", "view", *paradigms], body)
    say(
        "all: with every policy and sampler at their defaults; -: with none. "
        "With --json it says why, pair by pair."
    )


def _where(cells: Sequence[Cell]) -> str:
    """``all``, ``-``, or the samplers; a policy in brackets where not all policies do."""
    trains = [cell for cell in cells if cell.verdict == "trains"]
    if len(trains) == len(cells):
        return "all"
    found = []
    for sampler in dict.fromkeys(cell.sampler for cell in trains):
        policies = [cell.policy for cell in trains if cell.sampler == sampler]
        known = sum(cell.sampler == sampler for cell in cells)
        found.append(sampler if len(policies) == known else f"{sampler} ({', '.join(policies)})")
    return ", ".join(found) or "-"
