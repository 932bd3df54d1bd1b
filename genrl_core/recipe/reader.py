"""YAML with GenRL's own scalar rules, the line of every value, and one way to merge two files.

``1e-4`` is a number; ``017``, ``12:30``, ``yes`` and ``off`` are text; only ``true`` and ``false``
are booleans. Tags are refused, keys are text and stand once, aliases and depth are limited.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from genrl_core.recipe.problems import Place, Problem, Route, dotted
from genrl_core.text import format_value

COMPONENTS = ("policy", "sampler")
LABELLED = ("reward", "objective")
LABEL_MAPS: tuple[Route, ...] = (*((name,) for name in LABELLED), ("evaluate", "metrics"))
"""Where a mapping goes from labels to components."""

_MAX_ALIASES, _MAX_DEPTH, _MAX_NODES = 100, 40, 20_000
_MAX_BYTES = 1 << 20

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+|(?<=[0-9])\.)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


@dataclass
class Document:
    """A tree of plain values and where each was written.

    Attributes:
        tree: section -> value.
        places: route -> place, for every key and list entry.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Route, Place] = field(default_factory=dict)

    def place(self, *route: str | int) -> Place:
        """Where ``route`` was written, or else the nearest thing that holds it."""
        while route and route not in self.places:
            route = route[:-1]
        return self.places.get(route, Place("recipe"))


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's composer under our scalar rules; it builds nodes and never objects."""

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.tags: list[tuple[int, str]] = []
        self._aliases = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
        elif (tag := getattr(event, "tag", None)) is not None:
            self.tags.append((event.start_mark.line + 1, tag))
            event.tag, event.implicit = None, True if event.implicit is False else (True, False)
        self._depth += 1
        if self._aliases > _MAX_ALIASES or self._depth > _MAX_DEPTH:
            what = "aliases" if self._aliases > _MAX_ALIASES else "nested levels"
            raise yaml.MarkedYAMLError(problem=f"too many {what}", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in (
    ("bool", re.compile(r"(?:true|false)$"), list("tf")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", re.compile(r"(?:~|null|)$"), ["~", "n", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever would not be text under our rules or under YAML 1.1."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # PyYAML's signature
        return True


def _sequence(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = not any(isinstance(entry, list | dict) for entry in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _sequence)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as YAML that reads back as the same tree."""
    return str(
        yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    )


class _Conversion:
    """Nodes to plain values, noting places and problems."""

    def __init__(self, source: str, folder: Path, problems: list[Problem]):
        self.source, self.folder, self.problems = source, folder, problems
        self.places: dict[Route, Place] = {}
        self._nodes = 0

    def convert(self, node: yaml.Node, route: Route, depth: int = 0) -> Any:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            what = "aliases repeat too much"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        self.places.setdefault(route, self.place(node, node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, route, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(n, (*route, i), depth + 1) for i, n in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, route: Route, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            place = self.place(key_node, value_node)
            if not isinstance(key, str):
                what = (
                    format_value(key)
                    if isinstance(key_node, yaml.ScalarNode)
                    else "a list or mapping"
                )
                self._report(place, route, f"keys are text, not {what}; put it in quotes")
            elif key in out:
                first = self.places[(*route, key)].line
                self._report(place, (*route, key), f"duplicate key; first given in line {first}")
            else:
                self.places[(*route, key)] = place
                out[key] = self.convert(value_node, (*route, key), depth + 1)
        return out

    def place(self, key: yaml.Node, value: yaml.Node) -> Place:
        span = (value.start_mark.index, value.end_mark.index)
        return Place(self.source, key.start_mark.line + 1, self.folder, span)

    def _report(self, place: Place, route: Route, message: str) -> None:
        self.problems.append(Problem(str(place), dotted(route), message))


def _scalar(node: yaml.Node) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read_file(path: Path, problems: list[Problem]) -> str | None:
    """The text of a recipe file, or None with the reason added to ``problems``."""
    source = display(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            problems.append(Problem(source, "", "is larger than 1 MiB: not a recipe"))
            return None
        data = path.read_bytes()
    except OSError as error:
        problems.append(Problem(source, "", f"cannot be read: {error.strerror}"))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        problems.append(Problem(source, "", "is not a text file in UTF-8"))
        return None
    return text


def read_yaml(
    text: str, source: str, folder: Path, problems: list[Problem]
) -> tuple[Any, dict[Route, Place]]:
    """Parse one YAML document.

    Args:
        text: the YAML.
        source: what messages call it.
        folder: what relative paths in it are relative to.
        problems: what is wrong is added here; the value is None where it cannot be read at all.

    Returns:
        The value and the place of every route in it.
    """
    conversion = _Conversion(source, folder, problems)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        for line, tag in loader.tags:
            message = f"tags such as `{_short(tag)}` are not allowed in recipes; remove it"
            problems.append(Problem(str(Place(source, line)), "", message))
        return (conversion.convert(node, ()) if node else None), conversion.places
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = error.problem or error.context or "unreadable"
        problems.append(Problem(str(Place(source, line)), "", f"not valid YAML: {what}"))
    except yaml.YAMLError as error:  # a character that YAML forbids
        what = getattr(error, "reason", "unreadable")
        problems.append(Problem(source, "", f"not valid YAML: {what}"))
    return None, {}


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def display(path: Path) -> str:
    """A path as messages show it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def is_component(route: Route) -> bool:
    """Whether a component with a `use` stands at this route."""
    if len(route) == 1:
        return route[0] in COMPONENTS
    return route[:-1] in LABEL_MAPS


def is_label(route: Route) -> bool:
    """Whether a labelled component stands here, whose `use` defaults to the label."""
    return len(route) > 1 and is_component(route)


def merge(
    parent: Document, child: Document, known: Sequence[str], problems: list[Problem]
) -> Document:
    """The child's values over the parent's.

    Mappings merge, everything else is replaced, and lists of `requires` are joined. A component
    whose `use` changes starts afresh. `null` removes a section or a labelled component; at a field
    it stays, for the schema to decide. ``known`` are the names of the sections.
    """
    out = Document()

    def keep(tree: Any, places: Document, route: Route) -> Any:
        out.places[route] = places.place(*route)
        if isinstance(tree, dict):
            return {key: keep(value, places, (*route, key)) for key, value in tree.items()}
        if isinstance(tree, list):
            return [keep(value, places, (*route, i)) for i, value in enumerate(tree)]
        return tree

    def combine(old: Any, new: Any, route: Route) -> Any:
        if route == ("requires",) and isinstance(old, list) and isinstance(new, list):
            joined = [keep(value, parent, (*route, i)) for i, value in enumerate(old)]
            for i, value in enumerate(new):
                out.places[(*route, len(old) + i)] = child.place(*route, i)
                joined.append(value)
            return joined
        if not (isinstance(old, dict) and isinstance(new, dict)) or _afresh(old, new, route):
            old = {}
            if not isinstance(new, dict):
                return keep(new, child, route)
        out.places[route] = (
            child.places.get(route) or parent.places.get(route) or child.place(*route)
        )
        result = {}
        for key in (*old, *(key for key in new if key not in old)):
            here = (*route, key)
            if key not in new:
                result[key] = keep(old[key], parent, here)
            elif new[key] is None and (is_label(here) or here in sections):
                if is_label(here) and key not in old:
                    message = "is empty; write `{}` to use it as it is (null removes one)"
                    problems.append(Problem(str(child.place(*here)), dotted(here), message))
            else:
                result[key] = combine(old.get(key), new[key], here)
        return result

    sections = {(name,) for name in known}
    out.tree = combine(parent.tree, child.tree, ())
    return out


def label_maps_in(route: Route, value: Any) -> list[Route]:
    """The maps of labels that ``value``, written at ``route``, states as mappings."""
    below = [labels for labels in LABEL_MAPS if labels[: len(route)] == route]
    return [labels for labels in below if _mapping_at(value, labels[len(route) :]) is not None]


def without_replaced(
    below: Document, changes: Document, whole: Mapping[Route, Place]
) -> tuple[Document, tuple[str, ...]]:
    """What overrides are merged over: without the labels that a ``whole`` map leaves out.

    A label that the map names keeps its other fields.

    Returns:
        The document, and one sentence for each map that takes labels away.
    """
    tree, said = below.tree, []
    for route, place in whole.items():
        old, new = _mapping_at(tree, route), _mapping_at(changes.tree, route)
        if old is None or new is None:
            continue
        gone = [label for label in old if new.get(label) is None]
        if gone:
            names = ", ".join(dotted((*route, label)) for label in gone)
            said.append(f"{place}: replaces the labels of {dotted(route)} and removes {names}")
        tree = _put(tree, route, {label: old[label] for label in old if label in new})
    return Document(tree, below.places), tuple(said)


def _mapping_at(tree: Any, route: Route) -> dict[str, Any] | None:
    for key in route:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


def _put(tree: dict[str, Any], route: Route, value: Any) -> dict[str, Any]:
    """A copy of the tree with another value at a route."""
    key, rest = str(route[0]), route[1:]
    return {**tree, key: _put(tree[key], rest, value) if rest else value}


def _afresh(old: dict[str, Any], new: dict[str, Any], route: Route) -> bool:
    if not is_component(route) or "use" not in new:
        return False
    default = route[-1] if is_label(route) else None
    return bool(old.get("use", default) != new["use"])
