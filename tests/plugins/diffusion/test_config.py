"""The configs: what they refuse, what they claim, and that reading them loads no torch."""

import math
import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from genrl_core import Capability, load_recipe
from genrl_core.cli.listing import component_row
from genrl_core.recipe.check import find_problems
from genrl_core.registry import Registry
from genrl_diffusion import (
    CpsConfig,
    DanceSdeConfig,
    DdimConfig,
    DiffusersSolverConfig,
    DiffusionPolicyConfig,
    DiffusionSamplerConfig,
    FlowOdeConfig,
    FlowSdeConfig,
    WindowConfig,
    register_samplers,
)

DENSITIES = {Capability.STEP_LOGP, Capability.STEP_KL}
NOISY = [FlowSdeConfig, DanceSdeConfig, CpsConfig, DdimConfig]


def test_the_entry_module_loads_no_torch():
    code = (
        "import sys, genrl_diffusion as m; m.FlowSdeConfig(num_inference_steps=4).provides(); "
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules); "
        "m.KernelSampler; assert 'torch' in sys.modules; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hook_registers_the_samplers():
    found = {}
    register_samplers(found.__setitem__)
    assert set(found) == {"flow_ode", "flow_sde", "dance_sde", "cps", "ddim", "diffusers_solver"}
    assert all(config.paradigm == "diffusion" for config in found.values())
    assert FlowSdeConfig(num_inference_steps=4).build().num_steps == 4


@pytest.mark.parametrize("schema", NOISY)
def test_densities_are_claimed_where_there_is_noise_and_only_there(schema):
    assert schema(num_inference_steps=4).provides() == DENSITIES | {Capability.PREVIEW}
    knob = "eta" if schema is DdimConfig else "noise"
    silent = schema(num_inference_steps=4, **{knob: 0.0})
    assert silent.provides() == {Capability.PREVIEW}
    assert schema(num_inference_steps=1).provides() == {Capability.PREVIEW}
    for capability in DENSITIES:
        why = f"{knob} is 0, and a deterministic sampler has no step density"
        assert silent.why_missing(capability) == why
        assert "take num_inference_steps: 2 or more" in schema(num_inference_steps=1).why_missing(
            capability
        )
    assert "does not depend on the weights" in silent.why_missing(Capability.ENTROPY)


def test_deterministic_samplers_claim_nothing():
    for schema in (FlowOdeConfig, DiffusersSolverConfig):
        config = schema(num_inference_steps=4)
        assert config.provides() == {Capability.PREVIEW}
        assert "no step density" in config.why_missing(Capability.STEP_LOGP)


def test_what_a_policy_gives():
    class Config(DiffusionPolicyConfig):
        def build(self):
            raise NotImplementedError

    given = {Capability.ELBO, Capability.DENOISING, Capability.CLEAN_SAMPLE, Capability.IMAGE}
    assert Config().provides() == given

    class Differentiable(Config):
        differentiable = True

    assert Differentiable().provides() == given | {Capability.DIFFERENTIABLE}
    with pytest.raises(ValidationError):
        Config(elbo={"timesteps": "normal"})


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        (FlowSdeConfig, {"noise": -0.1}), (CpsConfig, {"noise": 1.1}), (DdimConfig, {"eta": 1.5}),
        (DdimConfig, {"noise": 0.5}), (FlowSdeConfig, {"num_inference_steps": 0}),
        (FlowSdeConfig, {"shift": 0.0}), (FlowSdeConfig, {"guidance_scale": float("nan")}),
        (FlowSdeConfig, {"shift": 1e20}),
        (FlowSdeConfig, {"storage": "float8"}), (FlowOdeConfig, {"noise": 0.1}),
        (DiffusersSolverConfig, {"scheduler": "euler"}),
        (DiffusersSolverConfig, {"solver_order": 4}), (FlowSdeConfig, {"temperature": 0.0}),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(schema, wrong):
    with pytest.raises(ValidationError):
        schema(**{"num_inference_steps": 4} | wrong)


@pytest.mark.parametrize(
    "window", [{"size": 4}, {"size": 1, "range": [3, 4]}, {"size": 2, "range": [1, 2]},
               {"size": 1, "range": [-1, 2]}],
)  # fmt: skip
def test_windows_that_do_not_fit_are_refused(window):
    with pytest.raises(ValidationError, match="does not fit into"):
        FlowSdeConfig(num_inference_steps=4, window=WindowConfig(**window))


def test_a_window_with_one_step_alone_hears_what_has_no_noise():
    with pytest.raises(ValidationError, match=r"the only step is the last one.*final_step: kernel"):
        FlowSdeConfig(num_inference_steps=1, window=WindowConfig(size=1))


def test_the_list_of_samplers_says_what_they_provide():
    registry = Registry.discover()
    rows = {name: component_row(registry, "sampler", name) for name in registry.samplers}
    assert rows["flow_sde"]["provides"] == ["preview", "step_kl", "step_logp"]
    assert rows["flow_ode"]["provides"] == ["preview"]
    assert all(row["provides"] is not None for row in rows.values())


def test_windows_need_noise():
    with pytest.raises(ValidationError, match=r"flow_ode has no noise.*choose flow_sde"):
        FlowOdeConfig(num_inference_steps=4, window=WindowConfig(size=1))
    kernel = FlowSdeConfig(num_inference_steps=4, final_step="kernel", window=WindowConfig(size=4))
    assert kernel.window_range == (0, 4)


def problems_of(*overrides):
    recipe = load_recipe("digits/flow_grpo", overrides, Registry.discover())
    return "\n".join(problem.message for problem in find_problems(recipe))


def test_step_objectives_are_refused_without_densities():
    assert problems_of() == ""
    found = problems_of("sampler.noise=0.0")
    assert "grpo needs step_logp, which flow_sde does not provide" in found
    assert "has no step density. Choose cps, dance_sde, ddim, flow_sde with its" in found
    assert "or view: elbo" in found
    assert problems_of("sampler.noise=0.0", "objective.grpo.view=elbo") == ""


class Root(DiffusionSamplerConfig):
    """A kernel of a plugin: the noise of the level, split evenly."""

    share: float = Field(0.5, description="share of the variance that is fresh")
    paper: ClassVar[str] = ""

    def coefficients(self, now, after):
        fresh = after * math.sqrt(self.share)
        return 1 - after, math.sqrt(after**2 - fresh**2), fresh


def test_a_new_kernel_is_a_config_with_one_formula(make_policy):
    from genrl_core import Prompt
    from genrl_core.testing import check_sampler

    config = Root(num_inference_steps=4)
    assert config.provides() == DENSITIES | {Capability.PREVIEW}
    check_sampler(make_policy(), config.build(), [Prompt("1", "one")], tolerance=1e-9)
