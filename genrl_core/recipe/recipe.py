"""Reading a recipe: a name, a file or a mapping, its parents, overrides, and the resolved form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from genrl_core.errors import PluginError, RecipeError
from genrl_core.interfaces.configs import ObjectiveConfig, PolicyConfig, RewardConfig, SamplerConfig
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, TrainConfig, WeightsConfig
from genrl_core.recipe import identity
from genrl_core.recipe.problems import Place, Problem, Route, dotted, raise_if
from genrl_core.recipe.reader import (
    Document,
    display,
    label_maps_in,
    merge,
    read_file,
    read_yaml,
    to_yaml,
    without_replaced,
)
from genrl_core.recipe.resolve import SECTION_NAMES, Resolver, anchored
from genrl_core.recipe.sections import EvaluateConfig, PromptsConfig, RunConfig, SaveConfig
from genrl_core.registry import Registry
from genrl_core.text import format_value

RESOLVED_FILE = "recipe.resolved.yaml"


@dataclass(frozen=True, eq=False)
class Recipe:
    """A read and validated recipe. Configs only: nothing is built and no weight is loaded.

    Attributes:
        name: as ``digits/mask_grpo``; a file's stem elsewhere, `unnamed` for a mapping.
        policy, sampler: None where the recipe names none (then they must be injected).
        reward, objective: label -> config, in the recipe's order.
        metrics: evaluate.metrics, label -> config.
        advantage, filter, weights, prompts, train, evaluate, save, run: the fixed sections;
            paths of prompt files are absolute.
        resolved: the plain tree: parents merged, defaults filled, `use` everywhere, the versions
            of the plugins used under `requires`.
        given: the file's text as given; empty for a mapping.
        registry: what the names were looked up in.
        places: route -> where it was written, for every given value.
        document: the merged tree before validation, which overrides build on.
        removed: what overrides of whole maps of labels took away, as sentences.
    """

    name: str
    policy: PolicyConfig | None
    sampler: SamplerConfig | None
    reward: Mapping[str, RewardConfig]
    objective: Mapping[str, ObjectiveConfig]
    metrics: Mapping[str, RewardConfig]
    advantage: AdvantageConfig
    filter: FilterConfig
    weights: WeightsConfig
    prompts: PromptsConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    save: SaveConfig
    run: RunConfig
    resolved: dict[str, Any] = field(repr=False)
    given: str = field(repr=False)
    registry: Registry = field(repr=False)
    places: Mapping[Route, Place] = field(repr=False)
    document: Document = field(repr=False)
    removed: tuple[str, ...] = ()

    def place(self, *route: str | int) -> str:
        """``file:line`` of a value, or of the nearest thing that holds it."""
        return str(Document({}, dict(self.places)).place(*route))

    def to_yaml(self) -> str:
        """The resolved form: itself a recipe that reproduces the run."""
        return to_yaml(self.resolved)

    def digest(self) -> str:
        """sha256 of what decides the result, for caches: the resolved form without `run.name` and
        `save`, with the contents of prompt files and of the recipe that gives the weights in place
        of their names.

        Raises:
            RecipeError: the recipe under policy.weights is missing or leads back to this one.
        """
        return identity.digest(self)

    def essence(self) -> dict[str, Any]:
        """Dotted key -> value of what must stay when a run is resumed; raises like ``digest``."""
        return identity.essence(self)

    def base_recipe(self) -> "Recipe | None":
        """The recipe that `policy.weights: recipe:NAME` names, or None.

        Raises:
            RecipeError: it does not exist or is wrong.
        """
        weights = self.policy.weights if self.policy else None
        if not weights or not weights.startswith("recipe:"):
            return None
        try:
            return load_recipe(weights.removeprefix("recipe:"), registry=self.registry)
        except RecipeError as error:
            place = self.place("policy", "weights")
            raise RecipeError(f"{place}: policy.weights: {weights}: {error}") from None

    def sampler_for(self, **overrides: Any) -> SamplerConfig:
        """The sampler with evaluate.sampler and then ``overrides`` merged in.

        Raises:
            RecipeError: there is no sampler, or a field is unknown or of the wrong type.
        """
        if self.sampler is None:
            raise RecipeError(f"{self.name}: there is no sampler")
        problems: list[Problem] = []
        fields = {**self.evaluate.sampler, **overrides}
        resolver = Resolver(Document({}, dict(self.places)), self.registry, problems)
        sampler = resolver.sampler_with(self.sampler, fields, ("evaluate", "sampler"))
        raise_if(problems)
        return cast(SamplerConfig, sampler)

    def with_overrides(self, *overrides: str) -> "Recipe":
        """This recipe with ``a.b=value`` on top; raises like ``load_recipe``."""
        return _resolve(self.name, self.given, self.document, overrides, self.registry, [])


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Recipe:
    """Read a recipe.

    Args:
        source: a registered name (``digits/mask_grpo``), a YAML file, a run folder, or a mapping.
        overrides: ``a.b=value``, the value under the recipe's scalar rules; they win. A mapping
            merges, but where labels stand (``reward={x: {}}``) those that it leaves out go.
        registry: where names are looked up; the installed plugins if silent.

    Raises:
        RecipeError: everything that is wrong, one line per problem.
    """
    registry = registry or Registry.discover()
    problems: list[Problem] = []
    if isinstance(source, Mapping):
        name, given = "unnamed", ""
        document = _inherit(_from_mapping(source, problems), (), registry, problems)
    else:
        name, path = locate(source, registry)
        given, document = _read(path, (), registry, problems)
    return _resolve(name, given, document, overrides, registry, problems)


def _resolve(
    name: str, given: str, document: Document, overrides: Sequence[str], registry: Registry,
    problems: list[Problem],
) -> Recipe:  # fmt: skip
    changes, whole = _from_overrides(overrides, document, problems)
    document, removed = without_replaced(document, changes, whole)
    document = merge(document, changes, SECTION_NAMES, problems)
    resolver = Resolver(document, registry, problems)
    resolver.run()
    raise_if(problems)
    sections = cast(dict[str, Any], resolver.sections)
    return Recipe(
        name=name, policy=resolver.policy, sampler=resolver.sampler, reward=resolver.reward,
        objective=resolver.objective, metrics=resolver.metrics, **sections,
        resolved=resolver.resolved, given=given, registry=registry, places=resolver.places,
        document=document, removed=removed,
    )  # fmt: skip


def locate(source: str | Path, registry: Registry) -> tuple[str, Path]:
    """The name and the file of a recipe.

    Raises:
        RecipeError: there is none (with the nearest name), or two plugins bring one.
    """
    path = Path(source)
    is_file = not isinstance(source, str) or path.suffix in (".yaml", ".yml")
    if not is_file and (str(source) in registry.recipes() or not path.exists()):
        try:
            return str(source), registry.find_recipe(str(source))
        except PluginError as error:
            raise RecipeError(str(error)) from None
    if path.is_dir():
        if not (path / RESOLVED_FILE).is_file():
            raise RecipeError(f"{path} is a folder without {RESOLVED_FILE}: neither recipe nor run")
        path = path / RESOLVED_FILE
    if not path.is_file():
        raise RecipeError(f"recipe file {path} does not exist")
    if path.name == RESOLVED_FILE:
        return path.resolve().parent.name, path
    for folder, _ in registry.recipe_folders:
        if path.resolve().is_relative_to(folder.resolve()):
            inner = path.resolve().relative_to(folder.resolve())
            return inner.with_suffix("").as_posix(), path
    return path.stem, path


def read_document(path: Path, problems: list[Problem]) -> tuple[str, Document]:
    """One file's text and tree, without its parents.

    Raises:
        RecipeError: it cannot be read, is empty, or is no mapping.
    """
    text = read_file(path, problems)
    raise_if(problems if text is None else [])
    source, folder = display(path), path.resolve().parent
    tree, places = read_yaml(text or "", source, folder, problems)
    if not isinstance(tree, dict):
        if tree is not None:
            message = f"should be a mapping of sections, not {format_value(tree)}"
            problems.append(Problem(source, "", message))
        elif not problems:
            message = "is empty; a recipe holds sections such as policy, sampler and train"
            problems.append(Problem(source, "", message))
        raise_if(problems)
    return text or "", Document(tree, places)


def _read(
    path: Path, seen: tuple[Path, ...], registry: Registry, problems: list[Problem]
) -> tuple[str, Document]:
    text, document = read_document(path, problems)
    return text, _inherit(document, (*seen, path.resolve()), registry, problems)


def _inherit(
    child: Document, seen: tuple[Path, ...], registry: Registry, problems: list[Problem]
) -> Document:
    """The child merged over its parents.

    Raises:
        RecipeError: a parent is missing, unreadable, or the chain leads back to itself.
    """
    parent = child.tree.pop("extends", None)
    place = child.place("extends")
    base = Document()
    if parent is not None:
        path = parent_path(parent, place, registry, problems)
        raise_if(problems if path is None else [])
        path = cast(Path, path)
        if path.resolve() in seen:
            loop = " > ".join(map(display, (*seen, path.resolve())))
            problems.append(Problem(str(place), "extends", f"leads back to itself: {loop}"))
            raise_if(problems)
        _, base = _read(path, seen, registry, problems)
    return merge(base, child, SECTION_NAMES, problems)


def parent_path(
    parent: Any, place: Place, registry: Registry, problems: list[Problem]
) -> Path | None:
    """The file that ``extends`` names, or None with the reason added to ``problems``."""
    message = ""
    if not isinstance(parent, str):
        message = f"should be one recipe's name or path, not {format_value(parent)}"
    elif parent.endswith((".yaml", ".yml")):
        path = Path(anchored(parent, place.folder))
        if path.is_file():
            return path
        message = f"there is no file {display(path)}"
    else:
        try:
            return registry.find_recipe(parent)
        except PluginError as error:
            message = str(error)
    problems.append(Problem(str(place), "extends", message))
    return None


def _from_mapping(source: Mapping[str, Any], problems: list[Problem]) -> Document:
    place = Place("mapping", folder=Path.cwd())

    def convert(value: Any, route: Route) -> Any:
        if isinstance(value, Mapping):
            problems.extend(
                Problem(str(place), dotted(route), f"keys are text, not {key!r}")
                for key in value
                if not isinstance(key, str)
            )
            return {k: convert(v, (*route, k)) for k, v in value.items() if isinstance(k, str)}
        if isinstance(value, list | tuple):
            return [convert(entry, (*route, i)) for i, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        what = f"holds a {type(value).__name__}; recipes hold text, numbers, lists and mappings"
        problems.append(Problem(str(place), dotted(route), what))
        return None

    return Document(cast(dict[str, Any], convert(source, ())), {(): place})


def _from_overrides(
    overrides: Sequence[str], below: Document, problems: list[Problem]
) -> tuple[Document, dict[Route, Place]]:
    """``a.b=value`` items as one tree, to be merged over ``below``; a later item wins.

    Returns:
        The tree, and the maps of labels that were given as a whole, with where.
    """
    document, whole = Document(), dict[Route, Place]()
    for item in overrides:
        key, equals, text = item.partition("=")
        place = Place(f"override `{item}`", folder=Path.cwd())
        route = tuple(key.split("."))
        found: list[Problem] = []
        value, _ = read_yaml(text, str(place), Path.cwd(), found)
        message = ""
        if not equals or not all(route):
            message = "should look like `train.iterations=10`"
        elif route[0] == "extends":
            message = "a parent cannot be overridden; write a recipe that extends it"
        elif not text.strip():
            message = f"has no value; write `{key}=null` to remove it"
        elif found:
            message = f"cannot be read ({found[0].message}); put the value in quotes"
        if message:
            problems.append(Problem(str(place), "", message))
            continue
        branch, under = document.tree, cast(Any, below.tree)
        for i, part in enumerate(route[:-1], 1):
            under = under.get(part) if isinstance(under, dict) else None
            if not isinstance(under, dict):
                document.places[route[:i]] = place
            if not isinstance(branch.get(part), dict):
                branch[part] = {}
            branch = branch[part]
        branch[route[-1]] = value
        document.places[route] = place
        whole |= dict.fromkeys(label_maps_in(route, value), place)
    return document, whole
