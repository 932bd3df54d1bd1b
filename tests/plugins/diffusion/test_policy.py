"""The policy bases: predictions, corruption, the denoising error and the bound."""

import pytest
import torch
from scipy.stats import kstest, norm

from genrl_core import GenRLError, Objective, RecipeError
from genrl_core.testing import learner_for, rollout_of
from genrl_diffusion import DiffusionPolicy, FlowOdeConfig, FlowSdeConfig

PREDICTIONS = ["velocity", "epsilon", "v", "sample"]


def noisy(policy, rows=5):
    generator = torch.Generator().manual_seed(2)
    x0, eps = torch.randn(2, rows, *policy.shape, dtype=torch.float64, generator=generator)
    time = policy.time_at(torch.linspace(0.1, 0.9, rows))
    return x0, eps, time


def spread(values, x):
    return values.view(-1, *[1] * (x.dim() - 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_split_undoes_what_a_perfect_prediction_says(make_policy, prediction):
    policy = make_policy(prediction)
    x0, eps, time = noisy(policy)
    alpha, sigma = policy.alpha_sigma(time)
    x = spread(alpha, x0) * x0 + spread(sigma, x0) * eps
    found = policy.split(policy.target(x0, eps, alpha, sigma), x, alpha, sigma)
    torch.testing.assert_close(found, (x0, eps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.001, 0.01, 0.08, 0.1, 1.0, 1.15, 3.0, 17.3, 1000.0])
def test_a_shifted_schedule_begins_at_pure_noise(make_policy, shift):
    """Exactly: a level that rounding moved beside 1 has a noise of 1e8, or of a root of -1."""
    policy, even = make_policy(), torch.linspace(1, 0, 8, dtype=torch.float64)
    times = policy.times(7, shift)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    torch.testing.assert_close(times, shift * even / (1 + (shift - 1) * even), rtol=1e-12, atol=0)
    noisy = FlowSdeConfig(num_inference_steps=7, shift=shift, noise=1.0).build()
    assert noisy.schedule(policy)["S"][0].item() == pytest.approx(1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_predictions_of_one_denoiser_split_alike(make_policy, prediction):
    """The network knows the best x0_hat in closed form; every space must lead back to it."""
    policy = make_policy(prediction)
    x0, eps, time = noisy(policy)
    alpha, sigma = policy.alpha_sigma(time)
    a, s = spread(alpha, x0), spread(sigma, x0)
    x, prompt = a * x0 + s * eps, torch.ones(5, dtype=torch.int64)
    found = policy.split(policy.predict(x, time, {"prompt": prompt}), x, alpha, sigma)
    best = 1.5 + a * 0.49 / (a**2 * 0.49 + s**2) * (x - a * 1.5)
    torch.testing.assert_close(found[0], best, rtol=0, atol=1e-9)
    torch.testing.assert_close(a * found[0] + s * found[1], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_matching_error_is_the_mean_square_in_the_space_of_the_prediction(make_policy, prediction):
    policy = make_policy(prediction)
    x0, eps, time = noisy(policy)
    cond = {"prompt": torch.ones(5, dtype=torch.int64)}
    found = policy.denoising({"latents": x0}, cond, {"time": time, "noise": eps})
    alpha, sigma = policy.alpha_sigma(time)
    a, s = spread(alpha, x0), spread(sigma, x0)
    target = {"velocity": eps - x0, "epsilon": eps, "v": a * eps - s * x0, "sample": x0}[prediction]
    assert found.error(target).abs().max() == 0
    torch.testing.assert_close(found.error(target + 0.5), torch.full((5,), 0.25).double())
    predicted = policy.predict(a * x0 + s * eps, time, cond)
    torch.testing.assert_close(found.prediction, predicted)
    expected = (predicted - target).square().mean((1, 2))
    torch.testing.assert_close(found.error(found.prediction), expected)
    found.error(found.prediction).sum().backward()
    assert policy.network.mean.grad.abs() > 0


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_the_exact_denoiser_has_the_least_error(make_policy, make_plan, prediction):
    policy, plan = make_policy(prediction, shape=(50,)), make_plan(40)
    data = 1.5 + 0.7 * plan.streams("data").normal(50).double()
    corruption = policy.corrupt({"latents": data}, plan.streams("corrupt"), 8, 0, 1)
    rows = {name: tensor.flatten(0, 1) for name, tensor in corruption.items()}
    final, cond = {"latents": data.repeat(8, 1)}, {"prompt": torch.ones(320, dtype=torch.int64)}
    errors = []
    for shift in (-0.3, 0.0, 0.3):
        with torch.no_grad():
            policy.network.mean.fill_(0.5 + shift)
            errors.append(-float(policy.elbo(final, cond, rows).mean()))
    assert errors[1] < min(errors[0], errors[2])


@pytest.mark.parametrize(
    ("weighting", "power"), [("uniform", 0), ("sigma", 1), ("sigma_squared", 2)]
)
@pytest.mark.parametrize("prediction", ["velocity", "v"])
def test_bound_is_minus_the_weighted_error(make_policy, weighting, power, prediction):
    policy = make_policy(prediction, weighting=weighting)
    x0, eps, time = noisy(policy)
    cond, corruption = {"prompt": torch.ones(5).long()}, {"time": time, "noise": eps}
    denoising = policy.denoising({"latents": x0}, cond, corruption)
    alpha, sigma = policy.alpha_sigma(time)
    expected = -((sigma / (alpha + sigma)) ** power) * denoising.error(denoising.prediction)
    found = policy.elbo({"latents": x0}, cond, corruption)
    assert found.shape == (5, 1)
    torch.testing.assert_close(found[:, 0], expected)


def test_times_have_the_stated_distributions_and_are_spread_over_the_draws(make_policy, make_plan):
    plan = make_plan(1500)
    final = {"latents": torch.zeros(1500, 2, 3, dtype=torch.float64)}
    for timesteps, cdf in (
        ("uniform", "uniform"),
        ("logit_normal", lambda t: norm.cdf(torch.tensor(t).logit().numpy())),
    ):
        policy = make_policy(timesteps=timesteps)
        found = policy.corrupt(final, plan.streams("corrupt"), 4, 0, 1)
        assert found["noise"].shape == (4, 1500, 2, 3)
        for draw in found["time"]:
            assert kstest(draw.numpy(), cdf).pvalue > 1e-3
    uniform = make_policy().corrupt(final, plan.streams("corrupt"), 4, 0, 1)["time"]
    torch.testing.assert_close((uniform[1] - uniform[0]) % 1.0, torch.full((1500,), 0.25).double())
    discrete = make_policy("epsilon").corrupt(final, plan.streams("corrupt"), 1, 0, 1)["time"]
    assert (discrete == discrete.round()).all()
    assert (discrete.min(), discrete.max()) == (0, 99)
    noise = make_policy().corrupt(final, plan.streams("corrupt"), 1, 0, 1)["noise"]
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_corruption_depends_on_the_streams_alone_and_is_shared_where_asked(make_policy, make_plan):
    plan = make_plan(3, 2)
    final = {"latents": torch.zeros(6, 2, 3, dtype=torch.float64)}
    for shared in (False, True):
        policy = make_policy(shared_by_group=shared)
        first, again = (policy.corrupt(final, plan.streams("c"), 2, 0, 1) for _ in range(2))
        for name in first:
            assert torch.equal(first[name], again[name])
            groups = first[name].view(2, 2, 3, -1)
            assert (groups[:, :, :1] == groups).all() == shared
            assert not (groups[:, 0] == groups[:, 1]).any()
        some = policy.corrupt(
            {"latents": final["latents"][[4, 0]]}, plan.select(torch.tensor([4, 0])).streams("c"),
            2, 0, 1,
        )  # fmt: skip
        assert torch.equal(some["noise"], first["noise"][:, [4, 0]])


class Recorder:
    """Remembers under which corruption each slot was asked."""

    def __init__(self, policy: DiffusionPolicy):
        self.seen: list[dict[str, torch.Tensor]] = []
        inner = policy.denoising

        def denoising(final, cond, corruption):
            self.seen.append(corruption)
            return inner(final, cond, corruption)

        policy.denoising = denoising


def test_all_passes_of_an_update_see_the_same_draws(make_policy, make_plan, draw):
    """Through the learner: the recorded and the current bound of an update, other slots alike."""

    class Ratio(Objective):
        needs = frozenset({"old_log_probs"})

        def loss(self, batch):
            self.gap = (batch.log_probs - batch.need("old_log_probs")).detach()
            return batch.reduce(batch.need("old_log_probs") - batch.log_probs), {}

    policy, plan, objective = make_policy(), make_plan(4), Ratio()
    recorder = Recorder(policy)
    config = FlowOdeConfig(num_inference_steps=3)
    trajectory = draw(config, policy, plan)
    rollout = rollout_of(trajectory, torch.arange(4.0), torch.zeros(4, dtype=torch.int64))
    learner = learner_for(
        policy,
        config.build(),
        {"it": (1.0, objective)},
        draws=3,
        micro_batch_size=12,
        views="elbo",
    )
    learner.learn(rollout, 0, 0)
    assert len(recorder.seen) >= 2
    for other in recorder.seen[1:]:
        assert torch.equal(recorder.seen[0]["time"], other["time"])
        assert torch.equal(recorder.seen[0]["noise"], other["noise"])
    assert objective.gap.shape == (3, 4)
    assert objective.gap.abs().max() == 0


def test_flow_times_are_even_and_shifted_as_stated(make_policy):
    policy = make_policy()
    assert policy.times(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = policy.times(4, 3.0)
    assert shifted.tolist() == pytest.approx([1.0, 2.25 / 2.5, 0.75, 0.75 / 1.5, 0.0])


def test_a_table_of_levels_is_visited_downwards_to_the_data(make_policy):
    policy = make_policy("epsilon")
    assert policy.times(5, 1.0).tolist() == [80, 60, 40, 20, 0, -1]
    alpha, sigma = policy.alpha_sigma(torch.tensor([-1.0, 0.0, 99.0]))
    assert (float(alpha[0]), float(sigma[0])) == (1.0, 0.0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3).double())
    assert sigma[2] > 0.999
    with pytest.raises(RecipeError, match="at most 100"):
        policy.times(101, 1.0)
    with pytest.raises(RecipeError, match=r"sampler.shift: 3 moves.*leave shift at 1"):
        policy.times(5, 3.0)


@pytest.mark.parametrize("steps", [1, 7, 10, 100])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spaced_times_are_those_of_diffusers(make_policy, spacing, steps):
    from diffusers import DDIMScheduler

    policy = make_policy("epsilon")
    policy.timestep_spacing = spacing
    scheduler = DDIMScheduler(num_train_timesteps=100, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert policy.times(steps, 1.0).tolist() == [*scheduler.timesteps.tolist(), -1]


def test_without_an_empty_prompt_guidance_is_refused(make_policy):
    policy = make_policy()
    with pytest.raises(GenRLError, match="set guidance_scale: 1"):
        DiffusionPolicy.unconditional(policy, {})


def test_half_precision_networks_answer_in_float32(make_policy):
    policy = make_policy(double=False)
    assert policy.dtype == torch.float32
    policy.network.bfloat16()
    assert policy.dtype == torch.float32
    assert make_policy().dtype == torch.float64
