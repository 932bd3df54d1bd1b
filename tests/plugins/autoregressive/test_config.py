"""The configs: what they refuse, what they claim, and that reading them loads no torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from genrl_autoregressive import (
    AutoregressivePolicyConfig,
    CausalLmConfig,
    TokenConfig,
    register_policies,
    register_samplers,
)
from genrl_core import Capability, RecipeError, load_recipe
from genrl_core.recipe.check import check_recipe

STEPS = {Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY}


def test_the_entry_module_loads_no_torch():
    code = (
        "import sys, genrl_autoregressive as m; m.TokenConfig().provides(); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(); m.TokenSampler; "
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hooks_register():
    found = {}
    register_policies(found.__setitem__)
    register_samplers(found.__setitem__)
    assert found == {"causal_lm": CausalLmConfig, "token": TokenConfig}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0}, {"temperature": float("nan")}, {"guidance_scale": -1.0},
        {"max_new_tokens": 0}, {"top_k": 0}, {"top_p": 1.0}, {"top_p": 0.0},
        {"guidance_density": "none"}, {"max_length": 3},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        TokenConfig(**wrong)


def test_closed_forms_are_claimed_unless_truncated():
    assert TokenConfig().provides() == STEPS
    assert TokenConfig(guidance_scale=3.0).provides() == STEPS
    for cut in (TokenConfig(top_k=5), TokenConfig(top_p=0.9)):
        assert cut.provides() == set()
        assert all("leave them out in training" in cut.why_missing(c) for c in STEPS)
        assert cut.why_missing(Capability.VALUE) == ""


def test_truncated_sampling_is_refused_for_steps_and_allowed_in_evaluation():
    with pytest.raises(RecipeError, match=r"grpo needs step_logp, which token does not provide: "
                       r"top_k and top_p cut tokens off"):  # fmt: skip
        check_recipe(load_recipe("digits/grpo", ["sampler.top_k=5"]))
    check_recipe(load_recipe("digits/grpo", ["evaluate.sampler.top_k=5"]))
    check_recipe(load_recipe("digits/grpo", ["sampler.top_k=5", "objective.grpo.view=elbo"]))


def test_what_policies_give():
    given = {Capability.ELBO, Capability.DENOISING, Capability.TEXT}
    assert CausalLmConfig().provides() == given
    assert AutoregressivePolicyConfig.paradigm == TokenConfig.paradigm == "autoregressive"


def test_every_field_is_described():
    for schema in (CausalLmConfig, TokenConfig):
        assert all(field.description for field in schema.model_fields.values())


def test_unknown_names_are_attribute_errors():
    import genrl_autoregressive

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = genrl_autoregressive.nothing
    assert genrl_autoregressive.distribution.draw
