"""What else would do: the ways out that a refusal names, found by trying what is registered."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.configs import Component, ObjectiveConfig
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.views import capability_of, provided

C = TypeVar("C", bound=Component)

FROM_SAMPLER = {
    Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY, Capability.PREVIEW,
}  # fmt: skip


def choose(known: Mapping[str, type[C]], fits: Callable[[type[C]], bool]) -> str:
    """Advice to take one of the registered components that fit."""
    names = [name for name, schema in known.items() if fits(schema)]
    return f"Choose {' or '.join(names)}" if names else "No registered component fits"


def ways_to(capability: Capability, config: Component, recipe: Recipe) -> str:
    """What to choose instead where ``config`` needs a capability that the recipe does not have."""
    ways = [", ".join(_providers(capability, recipe)), *other_view(config, recipe)]
    if any(ways):
        return f"Choose {', or '.join(filter(None, ways))}"
    apart = [] if capability in FROM_SAMPLER else _providers(capability, recipe, elsewhere=True)
    said = "No registered component provides it"
    if apart:
        said = f"Of other paradigms, {' and '.join(apart)} {'do' if len(apart) > 1 else 'does'}"
    if not isinstance(config, ObjectiveConfig):
        return f"{said}. Choose another reward"
    others = [
        name
        for name, schema in recipe.registry.objectives.items()
        if (fields := schema.suggested_values()) is not None
        and _has_its_needs(schema.model_validate(fields), recipe)
    ]
    such = f", such as {' or '.join(others[:3])}" if others else ""
    return f"{said}. Choose an objective that does without{such}"


def other_view(config: Component, recipe: Recipe) -> list[str]:
    """``view: elbo``, if the config is an objective's that could have another view here."""
    field = type(config).model_fields.get("view")
    supervised = recipe.sampler is not None and recipe.sampler.supervised
    for view in get_args(field.annotation) if field else ():
        other = _example(type(config), config, view=view)
        if not isinstance(other, ObjectiveConfig) or not _has_its_needs(other, recipe):
            continue
        if not supervised or other.view_wanted() != "steps":
            return [f"view: {view}"]
    return []


def _has_its_needs(config: ObjectiveConfig, recipe: Recipe) -> bool:
    view = config.view_wanted()
    return view is not None and config.needs() | {capability_of(view)} <= provided(recipe)


def _providers(capability: Capability, recipe: Recipe, *, elsewhere: bool = False) -> list[str]:
    """What could take the place of the sampler or the policy: of its paradigm, or of the others.

    It may be the same one with other values.
    """
    registry, of_sampler = recipe.registry, capability in FROM_SAMPLER
    own: Any = recipe.sampler if of_sampler else recipe.policy
    known: Mapping[str, Any] = registry.samplers if of_sampler else registry.policies
    found = []
    for name, schema in known.items():
        if (schema.paradigm != own.paradigm) != elsewhere:
            continue
        if of_sampler and schema.supervised != own.supervised:
            continue
        example = _example(schema, own)
        asked = {} if of_sampler else schema.fields_enabling.get(capability, {})
        if example is not None and capability in example.provides():
            found.append(f"{name} with its default settings" if schema is type(own) else name)
        elif example is not None and asked:
            fields = ", ".join(f"{key}: {str(value).lower()}" for key, value in asked.items())
            found.append(f"{name} with {fields}")
    return found


def _example(schema: type[C], like: Component, **fields: Any) -> C | None:
    """A config of ``schema`` with its defaults, required fields taken from ``like``; or None."""
    known = like.model_dump() | fields
    wanted = {name for name, field in schema.model_fields.items() if field.is_required()}
    try:
        return schema(**{name: known[name] for name in known if name in wanted or name in fields})
    except ValidationError:
        return None
