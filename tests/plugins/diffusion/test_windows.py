"""Windows that move with the iterations, and what CPS calls its log-density."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from genrl_core import Plan, Prompt
from genrl_core.testing import check_sampler
from genrl_diffusion import CpsConfig, FlowSdeConfig, WindowConfig

MOVING = {"size": 2, "mode": "progressive", "shift_every": 3}


def places(config, iterations):
    return [config.window_place(iteration) for iteration in range(iterations)]


def test_a_window_moves_to_the_end_of_its_range_and_begins_again():
    window = WindowConfig(**MOVING, range=[1, 5])
    config = FlowSdeConfig(num_inference_steps=8, window=window)
    assert places(config, 15) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1, 2, 2, 2]
    strided = WindowConfig(**MOVING | {"shift_every": 1}, stride=2)
    config = FlowSdeConfig(num_inference_steps=8, window=strided)
    assert places(config, 8) == [0, 2, 4, 0, 2, 4, 0, 2]
    assert config.window_place(-1) == 0  # an evaluation
    for mode, expected in (("first", 1), ("random", None)):
        window = WindowConfig(size=2, range=[1, 5], mode=mode)
        assert FlowSdeConfig(num_inference_steps=8, window=window).window_place(7) == expected


def test_a_resumed_run_has_the_window_of_its_iteration(make_policy, make_plan, draw):
    """The terms that exist say where it is: the same for all, whatever was drawn before."""
    window = WindowConfig(**MOVING, range=[1, 5])
    config, policy = FlowSdeConfig(num_inference_steps=8, window=window), make_policy()
    sampler, plan = config.build(), make_plan(2, 2)
    cond = policy.encode(plan.sample_prompts())
    for iteration, place in ((0, 1), (4, 2), (8, 3), (9, 1)):
        now: Plan = replace(plan, iteration=iteration)
        with torch.no_grad():
            continued = sampler.rollout(policy, cond, now)
        steps = continued.terms.mask.all(1).nonzero().flatten().tolist()
        assert steps == [place, place + 1]
        assert int(continued.terms.mask.sum()) == 2 * len(plan)
        afresh = draw(config, policy, now)
        assert torch.equal(afresh.final["latents"], continued.final["latents"])


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "progressive"}, {"shift_every": 3}, {"stride": 2}, {"mode": "first", "stride": 2}],
)
def test_keys_of_moving_windows_alone_are_refused(wrong):
    with pytest.raises(ValidationError, match="belong to mode: progressive, which needs"):
        WindowConfig(size=2, **wrong)


def test_the_window_is_not_drawn_with_the_initial_noise(make_policy, make_plan, draw):
    """Random places and shared noises come from streams of their own."""
    config = FlowSdeConfig(num_inference_steps=6, same_noise=True)
    plain = draw(config, make_policy(), make_plan(2))
    whole = config.model_copy(update={"window": WindowConfig(size=5)})
    found = draw(whole, make_policy(), make_plan(2))
    assert torch.equal(found.trace["latents"][:, 0], plain.trace["latents"][:, 0])


def test_the_unscaled_density_of_cps_is_the_squared_distance(make_policy, make_plan, draw):
    """``-sum (x' - mean)^2`` with CPS's own mean and deviation, and its gradient ``2 S^2`` larger.

    ``mean = (1 - s') x0_hat + sqrt(s'^2 - S^2) eps_hat`` with ``S = s' sin(a pi / 2)``.
    """
    policy, plan, noise = make_policy(), make_plan(3), 0.6
    configs = [
        CpsConfig(num_inference_steps=4, noise=noise, density=d) for d in ("gaussian", "unscaled")
    ]
    scaled, bare = (draw(config, policy, plan) for config in configs)
    assert torch.equal(scaled.final["latents"], bare.final["latents"])
    latents = bare.trace["latents"]
    for step in range(3):
        now, after = 1 - step / 4, 1 - (step + 1) / 4
        x = latents[:, step]
        data = 1.5 + (1 - now) * 0.49 / ((1 - now) ** 2 * 0.49 + now**2) * (x - (1 - now) * 1.5)
        deviation = after * math.sin(noise * math.pi / 2)
        eps = (x - (1 - now) * data) / now
        mean = (1 - after) * data + math.sqrt(after**2 - deviation**2) * eps
        expected = -(latents[:, step + 1] - mean).square().sum((1, 2))
        torch.testing.assert_close(bare.terms.log_probs[step], expected, rtol=1e-10, atol=1e-12)
        k, b = torch.full((3,), step), torch.arange(3)
        gradients = []
        for config, trajectory in zip(configs, (scaled, bare), strict=True):
            densities, action = config.build().densities(policy, trajectory, k, b)
            total = densities.log_prob(action).sum()
            gradients.append(torch.autograd.grad(total, policy.network.mean)[0])
        assert float(gradients[1]) == pytest.approx(float(2 * deviation**2 * gradients[0]))
        assert abs(float(gradients[1])) > 1e-6
    assert not bare.terms.mask[3].any()
    assert bare.terms.log_probs[3].eq(0).all()


def test_the_unscaled_density_keeps_the_divergence_and_is_scored_as_drawn(make_policy):
    policy = make_policy()
    config = CpsConfig(num_inference_steps=5, density="unscaled", guidance_scale=2.0)
    check_sampler(policy, config.build(), [Prompt("1", "one")], tolerance=1e-9)
    plain = config.model_copy(update={"density": "gaussian"})
    state, cond = {"latents": torch.ones(2, 2, 3).double()}, {"prompt": torch.tensor([1, 2])}
    k = torch.tensor([1, 2])
    divergences = []
    for sampler in (config.build(), plain.build()):
        here = sampler.transition(policy, state, k, cond)
        other = sampler.transition(policy, state, k, {"prompt": cond["prompt"] + 1})
        divergences.append(here.kl(other))
    assert torch.equal(*divergences)
    assert (divergences[0] > 0).all()
    with pytest.raises(ValidationError):
        CpsConfig(num_inference_steps=4, density="none")
