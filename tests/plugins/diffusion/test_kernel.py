"""Every step kernel against a form of it that someone else wrote down."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from genrl_diffusion import kernel

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "diffusion_steps.json").read_text()
)  # fmt: skip
PAIRS = [(1.0, 0.96), (0.79, 0.71), (0.5, 0.3), (0.28, 0.0089), (0.2, 0.0)]
KERNELS = {
    "flow_sde": (kernel.flow_sde, 0.7), "dance_sde": (kernel.dance_sde, 0.3),
    "cps": (kernel.cps, 0.8), "ddim": (kernel.ddim, 0.6),
}  # fmt: skip


def moments(step, now, x, v):
    """Mean and deviation of a kernel's step from ``x`` with the velocity ``v``."""
    a, b, s = step
    return a * (x - now * v) + b * (x + (1 - now) * v), s


def draws(count=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("now", "after"), PAIRS)
def test_flow_ode_is_euler(now, after):
    x, v = draws()
    mean, s = moments(kernel.flow_ode(now, after), now, x, v)
    torch.testing.assert_close(mean, x + v * (after - now), rtol=0, atol=1e-12)
    assert s == 0


@pytest.mark.parametrize(("now", "after"), PAIRS)
@pytest.mark.parametrize("noise", [0.3, 0.7, 1.2])
def test_flow_sde_is_its_drift_form(now, after, noise):
    x, v = draws()
    mean, s = moments(kernel.flow_sde(now, after, noise), now, x, v)
    dt = after - now
    spread = noise * math.sqrt(now / (1 - (after if now == 1 else now)))
    drift = x * (1 + spread**2 * dt / (2 * now)) + v * (1 + spread**2 * (1 - now) / (2 * now)) * dt
    torch.testing.assert_close(mean, drift, rtol=0, atol=1e-12)
    assert s == pytest.approx(spread * math.sqrt(-dt), abs=1e-12)


@pytest.mark.parametrize(("now", "after"), PAIRS)
def test_dance_sde_is_its_drift_form(now, after):
    x, v = draws()
    mean, s = moments(kernel.dance_sde(now, after, 0.3), now, x, v)
    dt, data = after - now, x - now * v
    drift = x + v * dt + 0.5 * 0.3**2 * (x - (1 - now) * data) / now**2 * dt
    torch.testing.assert_close(mean, drift, rtol=0, atol=1e-12)
    assert s == pytest.approx(0.3 * math.sqrt(-dt), abs=1e-12)


@pytest.mark.parametrize(("now", "after"), PAIRS)
@pytest.mark.parametrize("knob", [0.0, 0.3, 0.8, 1.0])
def test_cps_and_ddim_keep_the_noise_of_the_level(now, after, knob):
    for found in (kernel.cps(now, after, knob), kernel.ddim(now, after, knob)):
        assert found[0] == 1 - after
        assert found[1] ** 2 + found[2] ** 2 == pytest.approx(after**2, abs=1e-15)


def test_sde_steps_have_the_excess_that_the_algebra_says():
    now, after, s = 0.28, 0.0089, 0.5
    _, b, deviation = kernel.dance_sde(now, after, s)
    length = now - after
    excess = s**2 * length**2 / now + s**4 * length**2 / (4 * now**2)
    assert b**2 + deviation**2 == pytest.approx(after**2 + excess, abs=1e-15)


@pytest.mark.parametrize(("now", "after"), PAIRS)
@pytest.mark.parametrize("name", KERNELS)
def test_without_noise_every_kernel_is_the_ode(name, now, after):
    function, _ = KERNELS[name]
    assert function(now, after, 0.0) == pytest.approx(kernel.flow_ode(now, after), abs=1e-15)
    near = function(now, after, 1e-6)
    assert near == pytest.approx(kernel.flow_ode(now, after), abs=1e-5)


def test_golden_table():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas.double().tolist()
    levels = [(sigmas[i], sigmas[i + 1]) for i in GOLDEN["steps"]]
    for pair, expected in zip(levels, GOLDEN["levels"], strict=True):
        assert pair == pytest.approx(expected, abs=6e-5)
    for name in ("flow_sde", "dance_sde", "cps"):
        golden, (function, _) = GOLDEN[name], KERNELS[name]
        found = [function(*pair, golden["noise"]) for pair in levels]
        for column, index in (("B", 1), ("S", 2)):
            if column in golden:
                values = [step[index] for step in found]
                assert values == pytest.approx(golden[column], abs=6e-5), (name, column)
        totals = golden["total_over_level"][:-1]
        ratios = [
            math.hypot(b, s) / p[1] for (_, b, s), p in zip(found, levels, strict=True) if p[1]
        ]
        assert ratios == pytest.approx(totals, rel=5e-3), name


def variance_preserving(now_bar, after_bar, eta):
    now, after = ((math.sqrt(bar), math.sqrt(1 - bar)) for bar in (now_bar, after_bar))
    step = kernel.ddim(kernel.level_of(*now), kernel.level_of(*after), eta)
    return kernel.rescaled(step, *after), now


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("index", [0, 3, 9])
def test_ddim_is_diffusers_ddim(index, eta):
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    t = int(scheduler.timesteps[index])
    bars = scheduler.alphas_cumprod.double()
    after_bar = float(bars[t - 100]) if t >= 100 else 1.0
    (a, b, s), (alpha, sigma) = variance_preserving(float(bars[t]), after_bar, eta)
    x, eps = draws()
    noise = draws()[0].flip(0)
    expected = scheduler.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
    found = a * (x - sigma * eps) / alpha + b * eps + s * noise
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("t", [999, 500, 1])
def test_ddim_with_eta_1_is_the_posterior_of_ddpm(t):
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    bars = scheduler.alphas_cumprod.double()
    now_bar, after_bar = float(bars[t]), float(bars[t - 1])
    (a, b, s), (alpha, sigma) = variance_preserving(now_bar, after_bar, 1.0)
    x, eps = draws()
    data = (x - sigma * eps) / alpha
    beta = 1 - now_bar / after_bar
    mean = math.sqrt(after_bar) * beta / (1 - now_bar) * data
    mean = mean + math.sqrt(1 - beta) * (1 - after_bar) / (1 - now_bar) * x
    torch.testing.assert_close(a * data + b * eps, mean, rtol=0, atol=1e-10)
    assert s**2 == pytest.approx((1 - after_bar) / (1 - now_bar) * beta, rel=1e-9)
    assert s**2 == pytest.approx(float(scheduler._get_variance(t)), rel=1e-3)
    images, generator = (eps.view(1, 1, 1, -1), t, x.view(1, 1, 1, -1)), torch.Generator()
    drawn = scheduler.step(*images, generator=generator.manual_seed(3)).prev_sample.flatten()
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator.manual_seed(3))
    torch.testing.assert_close(drawn, mean + s * noise, rtol=0, atol=5e-4)


@pytest.mark.parametrize(("now", "after"), PAIRS)
def test_ddim_on_flow_matching_is_the_solver_of_nft(now, after):
    rho = 0.6 * after * math.sqrt(1 - after**2 * (1 - now) ** 2 / (now**2 * (1 - after) ** 2))
    expected = (1 - after, math.sqrt(after**2 - rho**2), rho)
    assert kernel.ddim(now, after, 0.6) == pytest.approx(expected, abs=1e-14)
