"""The configs: what they refuse, what they claim, and that reading them loads no torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from genrl_core import Capability
from genrl_masked import (
    ConfidenceConfig,
    ElboConfig,
    MaskedPolicyConfig,
    RandomReleaseConfig,
    register_samplers,
)


def config(**fields) -> ConfidenceConfig:
    return ConfidenceConfig(num_inference_steps=4, **fields)


def test_the_entry_module_loads_no_torch():
    code = (
        "import sys, genrl_masked as m; m.ConfidenceConfig(num_inference_steps=4).provides(); "
        "assert 'torch' not in sys.modules; m.ConfidenceSampler; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hook_registers_the_samplers():
    found = {}
    register_samplers(found.__setitem__)
    assert found == {"confidence": ConfidenceConfig, "random_release": RandomReleaseConfig}
    assert config().build().num_steps == 4


@pytest.mark.parametrize("transition", ["p1", "p1_plain", "ar"])
def test_tokens_as_terms_need_p2(transition):
    with pytest.raises(ValidationError, match="goes with transition: p2 only"):
        config(granularity="token", transition=transition)
    assert config(granularity="token", transition="p2").granularity == "token"


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0}, {"temperature": -1.0}, {"gumbel_temperature": -0.1},
        {"guidance_scale": float("nan")}, {"schedule": "power"}, {"power": 2.0},
        {"num_inference_steps": 0}, {"num_inference_steps": True}, {"transition": "p3"},
        {"temprature": 1.0},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        ConfidenceConfig(**{"num_inference_steps": 4} | wrong)


def test_the_number_of_steps_has_no_default():
    with pytest.raises(ValidationError, match="num_inference_steps"):
        ConfidenceConfig()


def test_closed_forms_are_claimed_where_they_exist_and_only_there():
    closed = {Capability.STEP_KL, Capability.ENTROPY}
    for kind in ("p1", "p1_plain", "p2"):
        assert config(transition=kind).provides() == {Capability.STEP_LOGP}
        assert "no closed form" in config(transition=kind).why_missing(Capability.STEP_KL)
    for honest in (config(transition="ar"), config(transition="p2", granularity="token")):
        assert honest.provides() == {Capability.STEP_LOGP} | closed
        assert honest.why_missing(Capability.VALUE) == ""


def test_a_masked_policy_gives_a_bound_and_images(make_policy):
    given = {Capability.ELBO, Capability.DENOISING, Capability.IMAGE}
    assert make_policy().config.provides() == given
    assert MaskedPolicyConfig.paradigm == ConfidenceConfig.paradigm == "masked"


def test_every_field_is_described():
    for schema in (ElboConfig, MaskedPolicyConfig, ConfidenceConfig, RandomReleaseConfig):
        assert all(field.description for field in schema.model_fields.values())


def test_unknown_names_are_attribute_errors():
    import genrl_masked

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = genrl_masked.nothing
