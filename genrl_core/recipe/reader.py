"""YAML with GenRL's own scalar rules and the line of every value.

``1e-4`` is a number; ``017``, ``12:30``, ``yes`` and ``off`` are text; only ``true`` and ``false``
are booleans. Tags are refused, keys are text and stand once, aliases and depth are limited.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from genrl_core.recipe.problems import KeyPath, Problem, ProblemsError, SourceLocation, dotted
from genrl_core.recipe.tree import display
from genrl_core.text import format_value

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""libyaml's parser where PyYAML has it, which is eleven times faster. Both make the same nodes."""

_MAX_ALIASES, _MAX_DEPTH, _MAX_NODES = 100, 40, 20_000
_MAX_BYTES = 1 << 20

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(
    r"(?:[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+|(?<=[0-9])\.)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def _scalar(node: Any) -> Any:
    text = str(node.value)
    if node.style:  # quoted, or a block of lines
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


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


def read_file(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: it cannot be read, is too large, or is no text.
    """
    wrong = ""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
        text = "" if data is None else data.decode("utf-8-sig")
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        wrong = "is not a text file in UTF-8"
    else:
        if data is None:
            wrong = "is larger than 1 MiB: not a recipe"
        elif "\0" in text:
            wrong = "is not a text file in UTF-8"
    if wrong:
        raise ProblemsError([Problem(display(path), "", wrong)])
    return text


def read_yaml(
    text: str, source: str, folder: Path, problems: list[Problem]
) -> tuple[Any, dict[KeyPath, SourceLocation]]:
    """Parse one YAML document.

    Args:
        text: the YAML.
        source: what messages call it.
        folder: what relative paths in it are relative to.
        problems: what is wrong is added here; the value is None where it cannot be read at all.

    Returns:
        The value and where every key and list entry of it was written.
    """
    conversion = _Conversion(source, folder, problems)
    try:
        tags = _check_events(text)
        node = yaml.compose(text, Loader=_Loader)
        for line, tag in tags:
            message = f"tags such as `{_short(tag)}` are not allowed in recipes; remove it"
            problems.append(Problem(str(SourceLocation(source, line)), "", message))
        return (conversion.convert(node, ()) if node else None), conversion.locations
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = error.problem or error.context or "unreadable"
        problems.append(Problem(str(SourceLocation(source, line)), "", f"not valid YAML: {what}"))
    except yaml.YAMLError as error:  # a character that YAML forbids
        what = getattr(error, "reason", "unreadable")
        problems.append(Problem(source, "", f"not valid YAML: {what}"))
    return None, {}


def _check_events(text: str) -> list[tuple[int, str]]:
    """The line and the name of every tag.

    libyaml composes nodes in C, where nothing could stop it at a deep or swollen document.

    Raises:
        yaml.YAMLError: the text is no YAML, or it nests or repeats too much.
    """
    tags: list[tuple[int, str]] = []
    aliases = depth = 0
    events: Iterable[Any] = yaml.parse(text, Loader=_Loader)
    for event in events:
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if aliases > _MAX_ALIASES or depth > _MAX_DEPTH:
            what = "aliases" if aliases > _MAX_ALIASES else "nested levels"
            raise yaml.MarkedYAMLError(problem=f"too many {what}", problem_mark=event.start_mark)
        if (tag := getattr(event, "tag", None)) is not None:
            tags.append((event.start_mark.line + 1, tag))
    return tags


class _Conversion:
    """Nodes to plain values, noting locations and problems."""

    def __init__(self, source: str, folder: Path, problems: list[Problem]):
        self.source, self.folder, self.problems = source, folder, problems
        self.locations: dict[KeyPath, SourceLocation] = {}
        self._nodes = 0

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        if len(path) > _MAX_DEPTH or self._nodes > _MAX_NODES:
            what = "aliases repeat too much"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        self.locations.setdefault(path, self._location(node, node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(entry, (*path, i)) for i, entry in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            is_scalar = isinstance(key_node, yaml.ScalarNode)
            key = _scalar(key_node) if is_scalar else None
            location = self._location(key_node, value_node)
            if not isinstance(key, str):
                what = format_value(key) if is_scalar else "a list or mapping"
                self._report(location, path, f"keys are text, not {what}; put it in quotes")
            elif key in out:
                first = self.locations[(*path, key)].line
                message = f"duplicate key; first given in line {first}"
                self._report(location, (*path, key), message)
            else:
                self.locations[(*path, key)] = location
                out[key] = self.convert(value_node, (*path, key))
        return out

    def _location(self, key: yaml.Node, value: yaml.Node) -> SourceLocation:
        span = (value.start_mark.index, value.end_mark.index)
        return SourceLocation(self.source, key.start_mark.line + 1, self.folder, span)

    def _report(self, location: SourceLocation, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(str(location), dotted(path), message))


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
