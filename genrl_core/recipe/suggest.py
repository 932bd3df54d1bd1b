"""What else would do: the ways out that a refusal names, found by trying what is registered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.recipe.recipe import Recipe

if TYPE_CHECKING:
    from genrl_core.interfaces.objective import View

C = TypeVar("C", bound=Component)

VIEW_NEEDS: "dict[View, Capability]" = {
    "steps": Capability.STEP_LOGP,
    "elbo": Capability.ELBO,
    "denoising": Capability.DENOISING,
    "reward": Capability.DIFFERENTIABLE,
}

FROM_SAMPLER = {
    Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY, Capability.PREVIEW,
}  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """The components of a recipe, of which ``injected`` ones are replaced by objects.

    Nothing is known of those: ``policy`` and ``sampler`` are None then, and so are the rewards.
    """

    recipe: Recipe
    injected: frozenset[str] = frozenset()

    @property
    def policy(self) -> PolicyConfig | None:
        return None if "policy" in self.injected else self.recipe.policy

    @property
    def sampler(self) -> SamplerConfig | None:
        return None if "sampler" in self.injected else self.recipe.sampler

    @property
    def rewards(self) -> dict[str, RewardConfig]:
        return {} if "rewards" in self.injected else dict(self.recipe.reward)

    @property
    def provided(self) -> frozenset[Capability]:
        """What policy and sampler give together."""
        known = (config.provides() for config in (self.policy, self.sampler) if config is not None)
        return frozenset().union(*known)

    def name(self, config: Component) -> str:
        return self.recipe.registry.name_of(config)


def choose(known: Mapping[str, type[C]], fits: Callable[[type[C]], bool]) -> str:
    """Advice to take one of the registered components that fit."""
    names = [name for name, schema in known.items() if fits(schema)]
    return f"Choose {' or '.join(names)}" if names else "No registered component fits"


def ways_to(capability: Capability, config: Component, parts: Combination) -> str:
    """What to choose instead where ``config`` needs a capability that the recipe does not have."""
    ways = [", ".join(_providers(capability, parts)), *other_view(config, parts)]
    if any(ways):
        return f"Choose {', or '.join(filter(None, ways))}"
    apart = [] if capability in FROM_SAMPLER else _providers(capability, parts, elsewhere=True)
    said = "No registered component provides it"
    if apart:
        said = f"Of other paradigms, {' and '.join(apart)} {'do' if len(apart) > 1 else 'does'}"
    if not isinstance(config, ObjectiveConfig):
        return f"{said}. Choose another reward"
    others = [
        name
        for name, schema in parts.recipe.registry.objectives.items()
        if (fields := schema.suggested_values()) is not None
        and _has_what_it_needs(schema.model_validate(fields), parts)
    ]
    such = f", such as {' or '.join(others[:3])}" if others else ""
    return f"{said}. Choose an objective that does without{such}"


def other_view(config: Component, parts: Combination) -> list[str]:
    """``view: elbo``, if the config is an objective's that could have another view here."""
    field = type(config).model_fields.get("view")
    supervised = parts.sampler is not None and parts.sampler.supervised
    for view in get_args(field.annotation) if field else ():
        other = _example(type(config), config, view=view)
        if isinstance(other, ObjectiveConfig) and _has_what_it_needs(other, parts):
            if not (supervised and other.view_wanted() == "steps"):
                return [f"view: {view}"]
    return []


def _has_what_it_needs(config: ObjectiveConfig, parts: Combination) -> bool:
    view = config.view_wanted()
    return view is not None and config.needs() | {VIEW_NEEDS[view]} <= parts.provided


def _providers(capability: Capability, parts: Combination, *, elsewhere: bool = False) -> list[str]:
    """What provides it in place of this sampler or policy: of its paradigm, or of all others.

    This one by other values is included.
    """
    registry, of_sampler = parts.recipe.registry, capability in FROM_SAMPLER
    own = parts.sampler if of_sampler else parts.policy
    known: Mapping[str, Any] = registry.samplers if of_sampler else registry.policies
    found = []
    for name, schema in known.items():
        apart = own is None or schema.paradigm != own.paradigm
        if (
            own is None
            or apart != elsewhere
            or (of_sampler and schema.supervised != own.supervised)
        ):
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
    known = like.model_dump()
    required = {
        name: known[name]
        for name, field in schema.model_fields.items()
        if field.is_required() and name in known
    }
    try:
        return schema(**{**required, **fields})
    except ValidationError:
        return None
