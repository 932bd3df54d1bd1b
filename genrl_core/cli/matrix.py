"""Every objective with every view, policy and sampler: what trains, and why the rest is refused.

The cells come from the registry and from ``find_problems``, on configs alone, so a new plugin
appears in the table by itself. Required fields take the value that the field proposes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from pydantic import ValidationError

from genrl_core.cli.display import print_json, print_text, table
from genrl_core.errors import RecipeError
from genrl_core.interfaces.configs import ObjectiveConfig
from genrl_core.recipe.check import find_problems
from genrl_core.recipe.problems import problems_of
from genrl_core.recipe.recipe import load_recipe
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
    schema = registry.policies[cell.policy]
    of_policy, of_sampler = (
        each.suggested_values() for each in (schema, registry.samplers[cell.sampler])
    )
    objectives = _objectives(registry, cell)
    if of_policy is None or of_sampler is None or objectives is None:
        return None
    policy = schema.model_validate(of_policy)
    of_policy |= {"use": cell.policy} | requested_fields(registry, cell)
    if policy.weights_problem():  # any name will do: what fits does not hang on it
        of_policy["weights"] = "organisation/model"
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
    return {
        "policy": of_policy,
        "sampler": {"use": cell.sampler} | of_sampler,
        "reward": first,
        "objective": objectives,
        "train": train,
    } | sections


def requested_fields(registry: Registry, cell: Cell) -> dict[str, Any]:
    """Fields of the policy that give what the objective needs and the defaults leave out."""
    policy, schema = registry.policies[cell.policy], registry.objectives[cell.objective]
    fields = schema.suggested_values()
    found: dict[str, Any] = {}
    for capability in schema.model_validate(fields).needs() if fields is not None else ():
        found |= policy.fields_enabling.get(capability, {})
    return found


def _objectives(registry: Registry, cell: Cell) -> dict[str, dict[str, Any]] | None:
    fields = _fields(registry.objectives[cell.objective], cell.view)
    if fields is None:
        return None
    alone = {cell.objective: fields}
    if registry.objectives[cell.objective].model_validate(fields).view_wanted() is not None:
        return alone
    for name, neighbour in registry.objectives.items():
        other = _fields(neighbour, cell.view) if cell.view in views_of(neighbour) else None
        if other is not None and neighbour.model_validate(other).view_wanted() == cell.view:
            return {name: other, **alone}
    return alone


def _fields(schema: type[ObjectiveConfig], view: str) -> dict[str, Any] | None:
    """The values that required fields propose, with the view where that is a field."""
    fields = schema.suggested_values()
    if fields is None or "view" not in schema.model_fields:
        return fields
    return fields | {"view": view}


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
    tree = recipe_tree(registry, cell)
    if tree is None:
        why = ["a required field has no proposed value: write a recipe and check that"]
    else:
        try:
            problems = find_problems(load_recipe(tree, registry=registry))
        except RecipeError as error:
            problems = problems_of(error)
        why = [p.message for p in problems if not p.path.startswith("prompts")]
    return replace(cell, verdict="refused", reason="; ".join(why)) if why else cell


def print_matrix(cells: Sequence[Cell], *, as_json: bool) -> None:
    """One row per objective and view, one column per paradigm: with which samplers it trains."""
    if as_json:
        print_json([asdict(cell) for cell in cells])
        return
    paradigms = list(dict.fromkeys(cell.paradigm for cell in cells))
    rows: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        row = rows.setdefault((cell.objective, cell.view), {name: [] for name in paradigms})
        row[cell.paradigm].append(cell)
    body = [[*names, *(_where(found) for found in row.values())] for names, row in rows.items()]
    table("what trains", ["objective", "view", *paradigms], body)
    print_text(
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
