"""Every objective with every view, policy and sampler: what trains, and why the rest is refused.

The cells come from the registry and from ``negotiate``, on configs alone, so a new plugin appears
in the table by itself. Required fields take the value that the field proposes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from genrl_core.errors import RecipeError
from genrl_core.interfaces.configs import Component, ObjectiveConfig
from genrl_core.recipe.check import find_problems
from genrl_core.recipe.problems import ProblemsError
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.registry import Registry

VIEWS = ("steps", "elbo", "denoising", "reward")


@dataclass(frozen=True)
class Cell:
    """One combination. ``reason`` is empty where it trains."""

    paradigm: str
    policy: str
    sampler: str
    objective: str
    view: str
    verdict: Literal["trains", "refused"]
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def views_of(schema: type[ObjectiveConfig]) -> tuple[str, ...]:
    """The views that an objective can be asked for; for one that joins others, all but reward."""
    if "view" in schema.model_fields:
        return tuple(str(v) for v in get_args(schema.model_fields["view"].annotation))
    fields = schema.suggested_values()
    if fields is None:
        return ()
    try:
        wanted = schema.model_validate(fields).view_wanted()
    except ValidationError:
        return ()
    return VIEWS[:3] if wanted is None else (str(getattr(wanted, "name", wanted)),)


def recipe_tree(registry: Registry, cell: Cell, **sections: Any) -> dict[str, Any] | None:
    """A small recipe for a cell; None where a component has required fields without a proposal.

    An objective that joins the view of others stands beside the first objective of that view.
    """
    parts: dict[str, dict[str, Any]] = {}
    schemas: dict[str, type[Component]] = {
        "policy": registry.policies[cell.policy], "sampler": registry.samplers[cell.sampler],
    }  # fmt: skip
    for section, schema in schemas.items():
        fields = schema.suggested_values()
        if fields is None:
            return None
        parts[section] = {"use": getattr(cell, section)} | fields
    objectives = _objectives(registry, cell)
    if objectives is None:
        return None
    parts["policy"] |= requested_fields(registry, cell)
    policy = registry.policies[cell.policy].model_validate(
        registry.policies[cell.policy].suggested_values()
    )
    if policy.weights_problem():
        parts["policy"]["weights"] = (
            "organisation/model"  # whichever: what fits does not hang on it
        )
    media = policy.provides()
    rewards = {
        name: fields
        for name, schema in registry.rewards.items()
        if schema.media & media
        and not schema.evaluation_only
        and not schema.loads_weights
        and (cell.view != "reward" or schema.differentiable)
        if (fields := schema.suggested_values()) is not None
    }
    train = {"iterations": 1, "num_prompts": 1, "num_generations": 4, "learning_rate": 1e-3}
    first = dict(list(rewards.items())[:1])
    tree = {**parts, "reward": first, "objective": objectives, "train": train}
    return tree | sections


def requested_fields(registry: Registry, cell: Cell) -> dict[str, Any]:
    """Fields of the policy that give what the objective needs and the defaults leave out."""
    policy, schema = registry.policies[cell.policy], registry.objectives[cell.objective]
    fields = schema.suggested_values()
    found: dict[str, Any] = {}
    for capability in schema.model_validate(fields).needs() if fields is not None else ():
        found |= policy.fields_enabling.get(capability, {})
    return found


def _objectives(registry: Registry, cell: Cell) -> dict[str, dict[str, Any]] | None:
    schema = registry.objectives[cell.objective]
    fields = schema.suggested_values()
    if fields is None:
        return None
    if "view" in schema.model_fields:
        return {cell.objective: fields | {"view": cell.view}}
    if schema.model_validate(fields).view_wanted() is not None:
        return {cell.objective: fields}
    for name, neighbour in registry.objectives.items():
        other = neighbour.suggested_values()
        if other is None or cell.view not in views_of(neighbour):
            continue
        if "view" in neighbour.model_fields:
            return {name: other | {"view": cell.view}, cell.objective: fields}
        if neighbour.model_validate(other).view_wanted() == cell.view:
            return {name: other, cell.objective: fields}
    return {cell.objective: fields}


def cells(registry: Registry) -> list[Cell]:
    """All cells, in the order of the registry."""
    found = []
    for policy, config in registry.policies.items():
        for sampler, drawing in registry.samplers.items():
            if drawing.paradigm != config.paradigm or drawing.supervised:
                continue
            for objective, schema in registry.objectives.items():
                for view in views_of(schema):
                    place = (config.paradigm, policy, sampler, objective, view)
                    found.append(_judged(registry, Cell(*place, "trains")))
    return found


def _judged(registry: Registry, cell: Cell) -> Cell:
    def refused(reason: str) -> Cell:
        place = (cell.paradigm, cell.policy, cell.sampler, cell.objective, cell.view)
        return Cell(*place, "refused", reason)

    tree = recipe_tree(registry, cell)
    if tree is None:
        return refused("a required field has no proposed value: write a recipe and check that")
    try:
        recipe: Recipe = load_recipe(tree, registry=registry)
    except ProblemsError as error:
        return refused("; ".join(problem.message for problem in error.problems))
    except RecipeError as error:
        return refused(str(error))
    problems = [p.message for p in find_problems(recipe) if not p.path.startswith("prompts")]
    return refused("; ".join(problems)) if problems else cell
