"""What each recipe combines, at a glance: its file read with its parents, nothing checked."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from genrl_core.errors import GenRLError
from genrl_core.recipe.sources import RecipeFile, RecipeFiles
from genrl_core.registry import Plugin, Registry

_ARXIV = re.compile(r"arXiv[: ]*([0-9]{4}\.[0-9]{4,5})", re.IGNORECASE)


@dataclass(frozen=True)
class RecipeSummary:
    """One recipe in a list.

    Attributes:
        name, path, plugin: where it is.
        summary: the first line of its file, where that is a comment.
        paradigm: of its policy; of its sampler where it has no policy of its own.
        objectives: their registered names.
        paper: ``arXiv NUMBER`` from the summary; or else the parent's number, where the first
            objective is the parent's; or else the paper of the first objective that has one.
        problem: why nothing is known beyond the name; empty if all is well.
    """

    name: str
    path: Path
    plugin: Plugin
    summary: str = ""
    paradigm: str = ""
    objectives: tuple[str, ...] = ()
    paper: str = ""
    problem: str = ""


def summaries(registry: Registry) -> list[RecipeSummary]:
    """Every recipe, by name; a broken one says so and hides no other."""
    files = RecipeFiles(registry)
    found = []
    for name, paths in registry.recipes().items():
        for path, plugin in paths:
            bare = RecipeSummary(name, path, plugin)
            try:
                found.append(_filled(bare, files.read(path), registry))
            except GenRLError as error:
                found.append(replace(bare, problem=str(error)))
    return found


def _filled(bare: RecipeSummary, file: RecipeFile, registry: Registry) -> RecipeSummary:
    policy, sampler = (_use(file, kind) for kind in ("policy", "sampler"))
    paradigms = [
        *(registry.policies[name].paradigm for name in policy if name in registry.policies),
        *(registry.samplers[name].paradigm for name in sampler if name in registry.samplers),
    ]
    objectives = _use(file, "objective")
    known = [registry.objectives[name] for name in objectives if name in registry.objectives]
    paper = next((config.paper for config in known if config.paper), "")
    return replace(
        bare, summary=_first_comment(file), paradigm=next(iter(paradigms), ""),
        objectives=objectives, paper=_number(file) or paper,
        problem="\n".join(map(str, file.problems)),
    )  # fmt: skip


def _use(file: RecipeFile, section: str) -> tuple[str, ...]:
    """The names used in a section: one, or one for each label."""
    fields = file.tree.get(section)
    if not isinstance(fields, dict):
        return ()
    if section != "objective":
        return (str(fields.get("use", "")),)
    labels = {label: config for label, config in fields.items() if isinstance(config, dict)}
    return tuple(str(config.get("use", label)) for label, config in labels.items())


def _first_comment(file: RecipeFile) -> str:
    first = file.text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _number(file: RecipeFile) -> str:
    """The paper that the file names, or else its parent where that has the same method."""
    if number := _ARXIV.search(_first_comment(file)):
        return f"arXiv {number[1]}"
    parent = file.parent
    if parent is None or _use(file, "objective")[:1] != _use(parent, "objective")[:1]:
        return ""
    return _number(parent)
