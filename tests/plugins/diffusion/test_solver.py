"""The multistep solvers of diffusers on a flow whose solution is known."""

import pytest
import torch

from genrl_core import RecipeError
from genrl_diffusion import DiffusersSolverConfig, FlowOdeConfig

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULERS = ["dpm_solver", "unipc", "deis"]


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "v", "sample"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_solvers_end_where_the_exact_flow_ends(make_policy, make_plan, draw, scheduler, prediction):
    """Gaussian data: the flow takes x_T to ``mean + deviation x_T``."""
    policy, plan = make_policy(prediction), make_plan(4)
    state = torch.random.get_rng_state()
    config = DiffusersSolverConfig(num_inference_steps=20, scheduler=scheduler)
    found = draw(config, policy, plan)
    assert torch.equal(torch.random.get_rng_state(), state)
    start = plan.streams("rollout").normal(2, 3).double()
    torch.testing.assert_close(found.final["latents"], 1.5 + 0.7 * start, rtol=0, atol=0.2)
    assert found.terms.num_evals == 0
    assert found.trace == {}
    assert policy.calls == 20


def test_two_orders_beat_one(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(4)
    exact = draw(FlowOdeConfig(num_inference_steps=800), policy, plan).final["latents"]
    error = {
        order: draw(DiffusersSolverConfig(num_inference_steps=12, solver_order=order), policy, plan)
        .final["latents"].sub(exact).abs().max()
        for order in (1, 2)
    }  # fmt: skip
    euler = draw(FlowOdeConfig(num_inference_steps=12), policy, plan).final["latents"] - exact
    assert error[2] < error[1]
    assert error[2] < 0.7 * euler.abs().max()


def test_guidance_shift_and_same_noise_reach_the_solver(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(2, 2)
    base = {"num_inference_steps": 8}
    plain = draw(DiffusersSolverConfig(**base), policy, plan).final["latents"]
    guided = draw(DiffusersSolverConfig(**base, guidance_scale=2.0), policy, plan).final["latents"]
    # Prompt p has the mean 0.5 + p; guidance of 2 moves it to about 0.5 + 2 p.
    assert (guided - plain).view(2, -1).mean(1).tolist() == pytest.approx([1, 2], abs=0.1)
    shifted = draw(DiffusersSolverConfig(**base, shift=3.0), policy, plan).final["latents"]
    assert (shifted - plain).abs().max() > 1e-4
    same = draw(DiffusersSolverConfig(**base, same_noise=True), policy, plan).final["latents"]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    with pytest.raises(RecipeError, match="leave shift at 1"):
        draw(DiffusersSolverConfig(**base, shift=3.0), make_policy("epsilon"), plan)


def test_the_end_of_a_rollout_can_be_differentiated(make_policy, make_plan):
    policy, plan = make_policy(), make_plan(2)
    sampler = DiffusersSolverConfig(num_inference_steps=6).build()
    cond = policy.encode(plan.sample_prompts())
    assert not sampler.rollout(policy, cond, plan).final["latents"].requires_grad
    sampler.rollout(policy, cond, plan, grad_steps=2).final["latents"].sum().backward()
    assert policy.network.mean.grad.abs() > 0
