"""``genrl ls`` and ``genrl plugins``: the tables of what there is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from genrl_core.cli.display import cell_text, table
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.registration import Kind, Plugin
from genrl_core.registry import Registry
from genrl_core.text import join_names


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
        view = _by_default(schema, "view_wanted")
        row["view"] = None if view is None else str(getattr(view, "name", view))
        row["needs"] = _capabilities(schema, "needs")
    owner = registry.owner(kind, name)
    plugin = {"plugin": owner.name, "version": owner.version, "path": owner.path}
    return row | {"summary": schema.summary(), "paper": schema.paper} | plugin


def _by_default(schema: type[Component], method: str) -> Any:
    """What a method says under default settings, required fields as they are proposed.

    None where it hangs on a required field that proposes nothing.
    """
    try:
        return getattr(schema.model_construct(**schema.suggested_values() or {}), method)()
    except AttributeError:
        return None


def _capabilities(schema: type[Component], method: str) -> list[str] | None:
    found = _by_default(schema, method)
    return None if found is None else sorted(capability.value for capability in found)


def component_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """The components of one kind."""
    columns = ("name", "paradigm", "view", "judges", "provides", "needs", "summary", "paper")
    shown = [[cell_text(row.get(column)) for column in (*columns, "plugin")] for row in rows]
    table(title, (*columns, "plugin"), shown, spare=("plugin", "paper"))


def recipe_rows(registry: Registry) -> list[dict[str, Any]]:
    """Every recipe: what it combines, whose method it is, and the first comment of its file."""
    from genrl_core.recipe.summaries import summaries

    return [asdict(found) for found in summaries(registry)]


def recipe_table(rows: Sequence[dict[str, Any]]) -> None:
    """The recipes; of a broken one, why."""
    columns = ("name", "paradigm", "objectives", "paper", "summary", "plugin")
    shown = []
    for row in rows:
        if problem := row["problem"].partition("\n")[0]:
            kept = {key: row[key] for key in ("name", "plugin")}
            row = kept | {"summary": f"BROKEN: {problem}"}  # noqa: PLW2901
        shown.append([cell_text(row.get(column)) for column in columns])
    table("recipes", columns, shown, spare=("plugin", "summary"))


def plugin_table(plugins: Sequence[Plugin]) -> None:
    """The plugins; of a broken one, why."""
    shown = []
    for plugin in plugins:
        registers = f"BROKEN: {plugin.reason}" if plugin.reason else join_names(plugin.registered)
        version = f"{plugin.distribution} {plugin.version}".strip()
        shown.append([plugin.name, version, registers, plugin.path])
    table("plugins", ("name", "version", "registers", "path"), shown)
