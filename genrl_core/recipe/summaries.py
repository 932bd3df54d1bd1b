"""What each recipe combines, at a glance: its file read with its parents, nothing checked."""

import re
from dataclasses import dataclass, replace
from typing import Any

from genrl_core.errors import GenRLError
from genrl_core.recipe.sources import RecipeFile, RecipeFiles
from genrl_core.registry import Registry

_ARXIV = re.compile(r"arXiv[: ]*([0-9]{4}\.[0-9]{4,5})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RecipeSummary:
    """One recipe in a list.

    Attributes:
        name, path: of the recipe and of its file.
        plugin, version: whose it is.
        paradigm: of its policy; of its sampler where it has no policy of its own.
        objectives: their registered names.
        paper: ``arXiv NUMBER`` from the summary; or else the parent's number, where the first
            objective is the parent's; or else the paper of the first objective that has one.
        summary: the first line of its file, where that is a comment.
        problem: what is wrong with the file; empty if all is well.
    """

    name: str
    paradigm: str = ""
    objectives: tuple[str, ...] = ()
    paper: str = ""
    summary: str = ""
    plugin: str
    version: str
    path: str
    problem: str = ""


def summaries(registry: Registry) -> list[RecipeSummary]:
    """Every recipe, by name; a broken one says so and hides no other."""
    files, found = RecipeFiles(registry), list[RecipeSummary]()
    for name, owned in registry.recipes().items():
        for path, plugin in owned:
            bare = RecipeSummary(
                name=name, plugin=plugin.name, version=plugin.version, path=str(path)
            )
            try:
                found.append(_filled(bare, files.read(path), registry))
            except GenRLError as error:
                found.append(replace(bare, problem=str(error)))
    return found


def _filled(bare: RecipeSummary, file: RecipeFile, registry: Registry) -> RecipeSummary:
    objectives = _used(file, "objective")
    papers = [c.paper for use in objectives if (c := registry.objectives.get(use)) is not None]
    drawing: list[Any] = [registry.policies.get(use) for use in _used(file, "policy")]
    drawing += [registry.samplers.get(use) for use in _used(file, "sampler")]
    return replace(
        bare, objectives=objectives, summary=_first_comment(file),
        paradigm=next((config.paradigm for config in drawing if config is not None), ""),
        paper=_number(file) or next(filter(None, papers), ""),
        problem="\n".join(map(str, file.problems)),
    )  # fmt: skip


def _used(file: RecipeFile, section: str) -> tuple[str, ...]:
    """The names of components that a section uses: one, or one for each label."""
    fields = file.tree.get(section)
    if section != "objective":
        fields = {"": fields}
    configs = fields.items() if isinstance(fields, dict) else ()
    return tuple(str(c.get("use", label)) for label, c in configs if isinstance(c, dict))


def _first_comment(file: RecipeFile) -> str:
    first = file.text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _number(file: RecipeFile) -> str:
    """The paper that the file names, or else its parent where that has the same method."""
    if number := _ARXIV.search(_first_comment(file)):
        return f"arXiv {number[1]}"
    if file.parent is None or _used(file, "objective")[:1] != _used(file.parent, "objective")[:1]:
        return ""
    return _number(file.parent)
