"""Every sampler of the registry scores what it drew, within 1e-5 nats, whatever its settings.

The settings come from the schemas: every option of every choice, under guidance and temperature.
So a new sampler, or a new option, is covered by being registered, or fails here by name.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from genrl_core import Capability, Prompt, SamplerConfig
from genrl_core.registry import Registry
from genrl_core.testing import check_sampler

REGISTRY = Registry.discover()
HOT: dict[str, Any] = {"guidance_scale": 2.5, "temperature": 0.7}
"""Settings that change the distribution of a step and have to be inside its density."""
SIZES: dict[str, Any] = {"num_inference_steps": 4, "max_new_tokens": 4}
MOVING = {"size": 1, "mode": "progressive", "shift_every": 1}
MORE: dict[str, list[Any]] = {
    "window": [{"size": 2}, {"size": 2, "mode": "first"}, MOVING],
    "same_noise": [True], "power": [2.0], "gumbel_temperature": [0.0],
}  # fmt: skip
"""Values of fields that are no choice among words."""
POLICIES = {
    "masked": ["digits_masked"], "autoregressive": ["digits_autoregressive", "arithmetic_lm"],
    "diffusion": ["digits_diffusion", "digits_diffusion_vp"],
}  # fmt: skip
UNGUIDED = {"arithmetic_lm"}
"""Policies without an empty prompt."""
PROMPTS = {
    "digits": [Prompt("3", "a handwritten three"), Prompt("1", "a drawn one")],
    "arithmetic": [Prompt("a", "1+2="), Prompt("b", "12+7="), Prompt("c", "3+45=")],
}


def drawing() -> Iterator[str]:
    """The samplers that draw from a policy and say how likely it was."""
    for name, schema in REGISTRY.samplers.items():
        plain = None if schema.supervised else valid(schema, {})
        assert schema.supervised or plain is not None, f"{name} needs fields: add them to SIZES"
        if plain is not None and Capability.STEP_LOGP in plain.provides():
            yield name


def options(schema: type[SamplerConfig]) -> dict[str, list[Any]]:
    """What each field may be, besides its default."""
    found = {name: values for name, values in MORE.items() if name in schema.model_fields}
    for name, field in schema.model_fields.items():
        if get_origin(field.annotation) is Literal:
            found[name] = [v for v in get_args(field.annotation) if v != field.default]
    return found


def valid(schema: type[SamplerConfig], fields: Mapping[str, Any]) -> SamplerConfig | None:
    known = {name: value for name, value in (SIZES | dict(fields)).items()
             if name in schema.model_fields}  # fmt: skip
    try:
        return schema.model_validate(known)
    except ValidationError:
        return None


def variants(schema: type[SamplerConfig]) -> Iterator[tuple[str, SamplerConfig]]:
    """The sampler plain, warm and hot, and hot with each option; with two where one is no good.

    Raises:
        AssertionError: no companion makes an option valid.
    """
    for label, fields in (("plain", {}), ("warm", {"temperature": 0.7}), ("hot", HOT)):
        plain = valid(schema, fields)
        assert plain is not None
        yield label, plain
    choices = options(schema)
    pairs = [(name, value) for name, values in choices.items() for value in values]
    for name, value in pairs:
        alone = HOT | {name: value}
        tries = [alone, *(alone | {other: with_} for other, with_ in pairs if other != name)]
        found = next((c for t in tries if (c := valid(schema, t)) is not None), None)
        assert found is not None, f"{schema.__name__}: no valid recipe has {name}: {value}"
        yield f"{name}={value}", found


def cases() -> Iterator[Any]:
    for name in drawing():
        schema = REGISTRY.samplers[name]
        policies = POLICIES[schema.paradigm]
        guided = [policy for policy in policies if policy not in UNGUIDED]
        for index, (label, config) in enumerate(variants(schema)):
            unguided = label in ("plain", "warm")
            for policy in policies if unguided else [guided[index % len(guided)]]:
                yield pytest.param(policy, config, id=f"{name}-{policy}-{label}")


@pytest.mark.parametrize(("policy", "config"), cases())
def test_what_was_drawn_is_scored_alike(policy: str, config: SamplerConfig) -> None:
    if REGISTRY.policies[policy].paradigm == "autoregressive" and policy != "arithmetic_lm":
        config = config.model_copy(update={"max_new_tokens": None})  # images have a fixed number
    found = check_sampler(
        REGISTRY.policies[policy]().build(),
        config.build(),
        PROMPTS[policy.partition("_")[0]],
        samples=2,
    )
    assert found.drift <= 1e-5


def test_every_sampler_is_covered_or_has_no_densities() -> None:
    every = {name for name, schema in REGISTRY.samplers.items() if not schema.supervised}
    silent = every - set(drawing())
    assert silent == {"flow_ode", "diffusers_solver"}
    assert {REGISTRY.samplers[name].paradigm for name in drawing()} == set(POLICIES)
