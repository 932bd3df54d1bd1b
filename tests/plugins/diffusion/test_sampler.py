"""The samplers: scored as drawn, moments, windows, groups, and an exact gradient by quadrature."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrl_core import Objective, Prompt
from genrl_core.loop.views import StepsView
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import check_sampler, learner_for, rollout_of
from genrl_diffusion import (
    CpsConfig,
    DanceSdeConfig,
    DdimConfig,
    FlowOdeConfig,
    FlowSdeConfig,
    GaussianTransition,
    KernelSampler,
    WindowConfig,
)

NOISY = {
    "flow_sde": FlowSdeConfig, "dance_sde": DanceSdeConfig, "cps": CpsConfig, "ddim": DdimConfig,
}  # fmt: skip
WINDOW = WindowConfig(size=2, range=[1, 5])
PROMPTS = [Prompt("1", "one"), Prompt("2", "two")]


def rows_of(trajectory):
    calls, samples = trajectory.terms.num_evals, len(trajectory)
    k, b = torch.meshgrid(torch.arange(calls), torch.arange(samples), indexing="ij")
    return k.flatten(), b.flatten()


def scores(sampler, policy, trajectory, k, b):
    densities, action = sampler.densities(policy, trajectory, k, b)
    return densities.log_prob(action)


VARIANTS = {
    "plain": {},
    "kernel": {"final_step": "kernel"},
    "window": {"window": WINDOW, "same_noise": True},
    "float16": {"storage": "float16"},
    "bfloat16": {"storage": "bfloat16", "window": WINDOW},
}
OTHERS = ("epsilon", "v", "sample")


@pytest.mark.parametrize(
    ("name", "prediction", "variant"),
    [(name, "velocity", variant) for name in NOISY for variant in VARIANTS]
    + [(name, kind, "window") for name in ("flow_sde", "ddim") for kind in OTHERS],
)
def test_every_sampler_scores_what_it_drew(make_policy, name, prediction, variant):
    config = NOISY[name](num_inference_steps=6, guidance_scale=2.5, **VARIANTS[variant])
    for double, tolerance in ((True, 1e-9), (False, 1e-4)):
        policy = make_policy(prediction, double=double)
        found = check_sampler(policy, config.build(), PROMPTS, samples=2, tolerance=tolerance)
        assert found.drift <= (1e-10 if double else 1e-5)


MATRIX = list(
    itertools.product((1.0, 2.5), (1.0, 0.5), ("full", "float16", "bfloat16"), (None, WINDOW))
)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
@pytest.mark.parametrize("name", NOISY)
def test_drift_is_small_whatever_the_settings(make_policy, make_plan, draw, name, prediction):
    """Guidance x temperature x storage x window, in float32, rows in another order than drawn."""
    policy, plan = make_policy(prediction, double=False), make_plan(2, 2)
    for guidance, temperature, storage, window in MATRIX:
        config = NOISY[name](
            num_inference_steps=6, guidance_scale=guidance, temperature=temperature,
            storage=storage, window=window,
        )  # fmt: skip
        found = draw(config, policy, plan)
        k, b = (index.flip(0) for index in rows_of(found))
        with torch.no_grad():
            score = scores(config.build(), policy, found, k, b)
        again = score.flip(0).view(6, 4)
        mask = found.terms.mask
        assert int(mask.sum()) == 4 * (5 if window is None else 2)
        assert (again - found.terms.log_probs)[mask].abs().max() <= 1e-5


def test_guidance_is_inside_the_densities(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(3)
    config = FlowSdeConfig(num_inference_steps=3, guidance_scale=2.0)
    trajectory = draw(config, policy, plan)
    k, b = rows_of(trajectory)
    plain = config.model_copy(update={"guidance_scale": 1.0}).build()
    other = scores(plain, policy, trajectory, k, b).view(3, 3)
    assert ((other - trajectory.terms.log_probs).abs()[trajectory.terms.mask] > 1e-3).all()


def test_guidance_is_one_call_of_the_network_and_the_stated_mixture(make_policy):
    from genrl_diffusion import guided_prediction

    policy = make_policy()
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    time, cond = torch.full((4,), 0.4, dtype=torch.float64), {"prompt": torch.arange(4)}
    found = guided_prediction(policy, x, time, cond, 3.0)
    assert policy.calls == 1
    empty = policy.predict(x, time, policy.unconditional(cond))
    expected = empty + 3.0 * (policy.predict(x, time, cond) - empty)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_and_kl_are_those_of_torch(dtype):
    generator = torch.Generator().manual_seed(0)
    mean, other, action = torch.randn(3, 4, 2, 5, dtype=dtype, generator=generator)
    deviation = torch.tensor([0.1, 0.5, 2.0, 0.0], dtype=torch.float64)
    step = GaussianTransition(mean, deviation)
    spread = deviation[:3].view(3, 1, 1)
    normal = torch.distributions.Normal(mean[:3].double(), spread)
    moved = torch.distributions.Normal(other[:3].double(), spread)
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 1e-5, "atol": 1e-12}
    found = step.log_prob({"latents": action})
    assert found.dtype == torch.float64
    expected = normal.log_prob(action[:3].double()).sum((1, 2))
    torch.testing.assert_close(found[:3, 0], expected, **tolerance)
    kl = torch.distributions.kl_divergence(normal, moved).sum((1, 2))
    against = GaussianTransition(other, deviation)
    torch.testing.assert_close(step.kl(against)[:3, 0], kl, **tolerance)
    assert step.events({})[:, 0].tolist() == [10, 10, 10, 0]
    assert found[3] == 0
    assert step.kl(against)[3] == 0


def test_a_step_without_noise_has_no_gradient_and_nothing_that_is_not_finite():
    mean = torch.zeros(2, 3, requires_grad=True)
    step = GaussianTransition(mean, torch.tensor([0.0, 0.5]))
    step.log_prob({"latents": torch.ones(2, 3)}).sum().backward()
    assert mean.grad[0].eq(0).all()
    assert mean.grad[1].ne(0).all()


def test_kl_to_another_slot_has_a_gradient(make_policy, make_plan, draw):
    policy, config = make_policy(), FlowSdeConfig(num_inference_steps=3)
    trajectory = draw(config, policy, make_plan(2))
    k, b = rows_of(trajectory)
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    with weight_sets.using("reference"), torch.no_grad():
        policy.network.mean += 0.3
    want = frozenset({"kl_reference"})
    view = StepsView(policy, config.build(), trajectory, weight_sets, want, 3, 1)
    value = view.evaluate(k, b)["kl_reference"].view(3, 2)
    assert (value[:2] > 0).all()
    assert (value[2] == 0).all()
    value.sum().backward()
    assert policy.network.mean.grad.abs() > 1e-3


def test_terms_of_steps_without_noise_are_masked(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(3)
    for final_step, noisy in (("denoise", 3), ("kernel", 4)):
        terms = draw(
            FlowSdeConfig(num_inference_steps=4, final_step=final_step), policy, plan
        ).terms
        assert terms.mask.any(1).tolist() == [step < noisy for step in range(4)]
        assert terms.events[terms.mask].eq(6).all()
        assert terms.scale[terms.mask].gt(0).all()
        assert terms.scale[~terms.mask].eq(1).all()
        assert terms.duration[terms.mask].eq(0.25).all()
        assert terms.duration[~terms.mask].eq(1).all()
    # CPS and DDIM end without noise by themselves.
    for config in (CpsConfig, DdimConfig):
        terms = draw(config(num_inference_steps=4, final_step="kernel"), policy, plan).terms
        assert terms.mask.any(1).tolist() == [True, True, True, False]
    silent = draw(FlowSdeConfig(num_inference_steps=4, noise=0.0), policy, plan)
    euler = draw(FlowOdeConfig(num_inference_steps=4), policy, plan)
    assert not silent.terms.mask.any()
    assert torch.equal(silent.final["latents"], euler.final["latents"])


def test_durations_are_of_the_noise_level_and_cover_the_whole(make_policy, make_plan, draw):
    """Of ``sigma / (alpha + sigma)``, which falls from its first value to 0."""
    policy, plan = make_policy("epsilon"), make_plan(2)
    terms = draw(FlowSdeConfig(num_inference_steps=5, final_step="kernel"), policy, plan).terms
    alpha, sigma = policy.alpha_sigma(policy.times(5, 1.0))
    level = sigma / (alpha + sigma)
    assert terms.mask.all()
    torch.testing.assert_close(terms.duration[:, 0], level[:-1] - level[1:])
    shifted = draw(
        FlowSdeConfig(num_inference_steps=5, final_step="kernel", shift=3.0), make_policy(), plan
    )
    torch.testing.assert_close(shifted.terms.duration.sum(0), torch.ones(2).double())
    assert (shifted.terms.duration[:-1] < shifted.terms.duration[1:]).all()


def test_the_window_is_shared_by_the_group_and_moves_in_its_range(make_policy, make_plan, draw):
    policy, firsts = make_policy(), set()
    config = FlowSdeConfig(num_inference_steps=7, window=WINDOW)
    for seed in range(8):
        plan = make_plan(4, 2, seed)
        found = draw(config, policy, plan)
        mask = found.terms.mask.view(7, 2, 4)
        assert (mask == mask[:, :, :1]).all()
        for group in range(2):
            steps = mask[:, group, 0].nonzero().flatten().tolist()
            assert steps == [steps[0], steps[0] + 1]
            firsts.add(steps[0])
        assert found.trace["latents"].shape == (8, 3, 2, 3)
    assert firsts == {1, 2, 3}
    first = draw(
        config.model_copy(update={"window": WINDOW.model_copy(update={"mode": "first"})}),
        policy, make_plan(2, 2),
    )  # fmt: skip
    assert first.terms.mask.any(1).nonzero().flatten().tolist() == [1, 2]


def test_outside_the_window_the_path_is_the_ode(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(2)
    window = WindowConfig(size=1, range=[3, 4])
    noisy = draw(FlowSdeConfig(num_inference_steps=6, window=window), policy, plan)
    sampler = FlowOdeConfig(num_inference_steps=6).build()
    plain = draw(FlowOdeConfig(num_inference_steps=6), policy, plan)
    before = noisy.trace["latents"][:, 0]
    torch.testing.assert_close(before, plain.trace["latents"][:, 3], rtol=0, atol=1e-14)
    state, cond = {"latents": noisy.trace["latents"][:, 1]}, noisy.cond
    for step in (4, 5):
        k = torch.full((2,), step)
        state = {"latents": sampler.transition(policy, state, k, cond).mean}
    torch.testing.assert_close(state["latents"], noisy.final["latents"], rtol=0, atol=1e-14)


def test_same_noise_is_shared_by_the_group_alone(make_policy, make_plan, draw):
    policy, plan = make_policy(), make_plan(3, 2)
    for same in (True, False):
        config = FlowSdeConfig(num_inference_steps=3, same_noise=same)
        start = draw(config, policy, plan).trace["latents"][:, 0].view(2, 3, -1)
        assert (start[:, 0] == start[:, 1]).all() == same
        assert not (start[0] == start[1]).any()
    hot, cold = (
        draw(FlowSdeConfig(num_inference_steps=3, temperature=t), policy, plan).trace["latents"]
        for t in (1.0, 0.25)
    )
    torch.testing.assert_close(cold[:, 0], 0.25 * hot[:, 0])


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_what_is_stored_is_what_was_scored(make_policy, make_plan, draw, storage):
    policy = make_policy(double=False)
    found = draw(FlowSdeConfig(num_inference_steps=3, storage=storage), policy, make_plan(2))
    assert found.trace["latents"].dtype == getattr(torch, storage)
    assert torch.equal(found.trace["latents"][:, -1].float(), found.final["latents"])


@pytest.mark.parametrize("name", NOISY)
def test_sampled_steps_have_the_moments_of_the_transition(make_policy, name):
    policy = make_policy("epsilon", shape=(1,))
    sampler = NOISY[name](num_inference_steps=5).build()
    k = torch.full((5_000,), 2)
    state = {"latents": torch.full((len(k), 1), 0.3, dtype=torch.float64)}
    from genrl_core import Streams

    keys = [f"moments/{index}" for index in range(len(k))]
    with torch.no_grad():
        step = sampler.transition(policy, state, k, {"prompt": torch.ones_like(k)})
        drawn = step.sample(Streams(keys, keys))["latents"]
    mean, deviation = float(step.mean[0]), float(step.deviation[0])
    assert abs(float(drawn.mean()) - mean) < 4 * deviation / len(k) ** 0.5
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.04)


@pytest.mark.parametrize(
    ("config", "prediction", "steps", "tolerance"),
    [
        (FlowOdeConfig, "velocity", 60, 0.05), (FlowSdeConfig, "velocity", 60, 0.06),
        (DanceSdeConfig, "velocity", 60, 0.05), (DdimConfig, "velocity", 200, 0.05),
        (FlowOdeConfig, "v", 50, 0.06), (DdimConfig, "epsilon", 100, 0.1),
        (FlowSdeConfig, "sample", 50, 0.06),
    ],
)  # fmt: skip
def test_exact_denoisers_give_the_data_distribution(
    make_policy, make_plan, draw, config, prediction, steps, tolerance
):
    """Every discretisation ends near N(mean, deviation^2); ancestral steps lose some variance."""
    policy = make_policy(prediction, shape=(40,))
    latents = draw(config(num_inference_steps=steps), policy, make_plan(100)).final["latents"]
    assert float(latents.mean()) == pytest.approx(1.5, abs=0.05)
    assert float(latents.std()) == pytest.approx(0.7, rel=tolerance)


def test_the_end_of_a_rollout_can_be_differentiated(make_policy, make_plan):
    policy, plan = make_policy(), make_plan(3)
    sampler = FlowSdeConfig(num_inference_steps=4).build()
    cond = policy.encode(plan.sample_prompts())
    assert not sampler.rollout(policy, cond, plan).final["latents"].requires_grad
    found = sampler.rollout(policy, cond, plan, grad_steps=4)
    assert not found.trace["latents"].requires_grad
    total = found.final["latents"].sum()
    (gradient,) = torch.autograd.grad(total, policy.network.mean)
    with torch.no_grad():
        policy.network.mean += 1e-5
    above = sampler.rollout(policy, cond, plan).final["latents"].sum()
    assert float((above - total) / 1e-5) == pytest.approx(float(gradient), rel=1e-6)


# The exact gradient of the expected reward, by quadrature over x_T and the noises


class Given(KernelSampler):
    """A sampler whose initial noise is given."""

    noise: torch.Tensor

    def start(self, policy, cond, streams):
        return {"latents": self.noise}


class ScoreFunction(Objective):
    def loss(self, batch):
        return batch.reduce(-batch.advantage * batch.log_probs, "sum"), {}


def reward_of(x):
    return x - 0.3 * x.square()


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
@pytest.mark.parametrize("name", NOISY)
def test_expected_gradient_is_exact_by_quadrature(make_policy, make_plan, name, prediction):
    """One-dimensional policy: ``E[r sum_k d log p_k]`` is the derivative of ``E[r]``, to 1e-10."""
    from genrl_core.loop.settings import AdvantageConfig

    policy = make_policy(prediction, shape=(1,))
    sampler = Given(NOISY[name](num_inference_steps=3, guidance_scale=1.5))
    points, weights = np.polynomial.hermite_e.hermegauss(8)
    grid = torch.tensor(list(itertools.product(points, repeat=3)))
    chance = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=3))).prod(1)
    cond = {"prompt": torch.ones(len(grid), dtype=torch.int64)}

    # By reparametrisation: the same noises, differentiated through the path.
    x, steps = grid[:, :1], []
    for step in range(3):
        move = sampler.transition(policy, {"latents": x}, torch.full((len(grid),), step), cond)
        noise = grid[:, step + 1 : step + 2] if step < 2 else torch.zeros_like(x)
        x = move.mean + move.deviation.unsqueeze(1) * noise
        steps.append({"latents": x.detach()})
    expected = (chance * reward_of(x[:, 0])).sum()
    exact = torch.autograd.grad(expected, [policy.network.mean, policy.network.deviation])

    sampler.noise = grid[:, :1]
    with torch.no_grad():
        trajectory = sampler.walk(policy, cond, make_plan(len(grid)), steps)
    # The last step is deterministic, so the reward is that of the state before it.
    found = _score_function_gradient(policy, sampler, trajectory, chance, AdvantageConfig)
    last = torch.autograd.grad(
        _last_step(policy, sampler, trajectory, chance), [*policy.network.parameters()]
    )
    for name_, total, rest in zip(("mean", "deviation"), exact, last, strict=True):
        assert abs(float(found[name_] + rest - total)) < 1e-10
        assert abs(float(total)) > 1e-3


def _score_function_gradient(policy, sampler, trajectory, chance, advantage):
    reward = reward_of(trajectory.final["latents"][:, 0])
    group = torch.zeros(len(reward), dtype=torch.int64)
    rollout = rollout_of(trajectory, reward, group, chance * len(reward))
    learner = learner_for(
        policy, sampler, {"it": (1.0, ScoreFunction())},
        advantage=advantage(baseline="none", scale="none"), micro_batch_size=100,
        drift_tolerance=1e6,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in policy.network.named_parameters()}
    learner.learn(replace(rollout, on_policy=True), 0, 0)
    moved = {name: p.detach() - before[name] for name, p in policy.network.named_parameters()}
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            parameter.copy_(before[name])
    return moved


def _last_step(policy, sampler, trajectory, chance):
    """The part of the gradient that a score function cannot see: the denoising last step."""
    count = len(chance)
    state, _ = sampler.restore(trajectory.trace, torch.full((count,), 2), torch.arange(count))
    end = sampler.transition(policy, state, torch.full((count,), 2), trajectory.cond).mean
    return (chance * reward_of(end[:, 0])).sum()
