"""Gradients through the last steps of every sampler, against finite differences in float64."""

import pytest
import torch

from genrl_core import RecipeError
from genrl_diffusion import DdimConfig, DiffusersSolverConfig, FlowSdeConfig

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS = 4
SAMPLERS = {
    "flow_sde": (FlowSdeConfig(num_inference_steps=STEPS, final_step="kernel"), "velocity"),
    "ddim": (DdimConfig(num_inference_steps=STEPS, guidance_scale=2.0), "epsilon"),
    "dpm_solver": (DiffusersSolverConfig(num_inference_steps=STEPS), "velocity"),
    "unipc": (DiffusersSolverConfig(num_inference_steps=STEPS, scheduler="unipc"), "epsilon"),
}


def squares(final):
    return final["latents"].square().sum()


def moved(policy, first, shift, run):
    """What ``run`` gives when the mean is moved from the network's call ``first`` on."""
    inner, policy.calls = policy.predict, 0

    def predict(x, time, cond):
        move = shift if policy.calls >= first else 0.0
        with torch.no_grad():
            policy.network.mean += move
            found = inner(x, time, cond)
            policy.network.mean -= move
        return found

    policy.predict = predict
    try:
        return float(squares(run()))
    finally:
        policy.predict = inner


def by_differences(policy, first, run, width=0.05):
    """Central differences, exact for any width: samples are linear in the mean."""
    above, below = (moved(policy, first, sign * width, run) for sign in (1, -1))
    return (above - below) / (2 * width)


@pytest.mark.parametrize("last", [1, 2, STEPS])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_steps_keep_the_graph_and_they_alone(make_policy, make_plan, name, last):
    config, prediction = SAMPLERS[name]
    policy, plan = make_policy(prediction), make_plan(3)
    cond = policy.encode(plan.sample_prompts())
    sampler = config.build()
    plain = sampler.rollout(policy, cond, plan).final
    assert not plain["latents"].requires_grad
    found = sampler.rollout(policy, cond, plan, grad_steps=last).final
    assert torch.equal(found["latents"], plain["latents"])
    (gradient,) = torch.autograd.grad(squares(found), policy.network.mean)
    expected = by_differences(
        policy, STEPS - last, lambda: sampler.rollout(policy, cond, plan).final
    )
    tolerance = 1e-5 if name == "dpm_solver" else 1e-8  # diffusers rounds its steps to float32
    assert float(gradient) == pytest.approx(expected, rel=tolerance)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_preview_is_the_denoised_sample_of_its_step(make_policy, make_plan, name, step, last):
    config, prediction = SAMPLERS[name]
    policy, plan = make_policy(prediction), make_plan(3)
    cond = policy.encode(plan.sample_prompts())
    sampler = config.build()
    policy.calls = 0
    found = sampler.preview(policy, cond, plan, step, grad_steps=last)
    assert policy.calls == step + 1
    (gradient,) = torch.autograd.grad(squares(found), policy.network.mean)
    expected = by_differences(
        policy, step + 1 - last, lambda: sampler.preview(policy, cond, plan, step, grad_steps=0)
    )
    tolerance = 1e-5 if name == "dpm_solver" else 1e-8
    assert float(gradient) == pytest.approx(expected, rel=tolerance)
    assert not sampler.preview(policy, cond, plan, step, grad_steps=0)["latents"].requires_grad


def test_a_preview_follows_the_rollout(make_policy, make_plan, draw):
    """The latents of step 2 are those of the rollout, and the prediction of Gaussian data known."""
    policy, plan = make_policy(), make_plan(3)
    config = FlowSdeConfig(num_inference_steps=STEPS)
    trajectory = draw(config, policy, plan)
    x, t = trajectory.trace["latents"][:, 2], 0.5
    best = 1.5 + (1 - t) * 0.49 / ((1 - t) ** 2 * 0.49 + t**2) * (x - (1 - t) * 1.5)
    found = config.build().preview(policy, trajectory.cond, plan, 2)["latents"]
    torch.testing.assert_close(found, best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [-1, STEPS])
@pytest.mark.parametrize("name", ["ddim", "dpm_solver"])
def test_steps_that_are_not_taken_are_refused(make_policy, make_plan, name, step):
    config, prediction = SAMPLERS[name]
    policy, plan = make_policy(prediction), make_plan(1)
    with pytest.raises(RecipeError, match="choose one of 0 to 3, or take more steps"):
        config.build().preview(policy, policy.encode(plan.sample_prompts()), plan, step)
