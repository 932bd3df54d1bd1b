"""The weighting ``elbo``: DDPM's variational bound, and tight on Gaussian data."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genrl_diffusion import ElboConfig
from genrl_diffusion.policy import LEAST_TIME

MEAN, DEVIATION = 1.5, 0.7
POINTS, WEIGHTS = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(24))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def levels(count):
    """``alpha_bar`` of evenly spaced log signal-to-noise ratios, from 12 to -12."""
    return torch.linspace(12, -12, count, dtype=torch.float64).sigmoid()


def bound_at(policy, x0, shares):
    """The mean of ``policy.elbo`` over the shares and the noise, by quadrature."""
    time = policy.time_at(shares)
    noise = POINTS.repeat(len(time)).unsqueeze(1)
    rows = {"time": time.repeat_interleave(len(POINTS)), "noise": noise}
    final = {"latents": torch.full_like(noise, x0)}
    with torch.no_grad():
        cond = {"prompt": torch.ones(len(noise), dtype=torch.int64)}
        found = policy.elbo(final, cond, rows).view(len(time), -1)
    return float((found @ WEIGHTS).mean())


def normal_kl(mean, variance):
    """Of N(mean, variance) from the standard normal distribution."""
    return 0.5 * (mean**2 + variance - 1 - variance.log())


def log_density(x, mean, variance):
    return -0.5 * (x - mean) ** 2 / variance - 0.5 * (2 * torch.pi * variance).log()


def constants(alpha_bars, x0):
    """The two terms that no weight enters: the prior's, and the reconstruction's."""
    prior = -normal_kl(alpha_bars[-1].sqrt() * x0, 1 - alpha_bars[-1])
    variance = (1 - alpha_bars[0]) / alpha_bars[0]
    return float(prior - 0.5 * (2 * torch.pi * variance).log())


def ddpm_bound(alpha_bars, x0):
    """The bound as DDPM's equations 5 to 7 write it, for the exact denoiser of Gaussian data."""

    def denoised(x, bar):
        gain = bar.sqrt() * DEVIATION**2 / (bar * DEVIATION**2 + 1 - bar)
        return MEAN + gain * (x - bar.sqrt() * MEAN)

    x1 = alpha_bars[0].sqrt() * x0 + (1 - alpha_bars[0]).sqrt() * POINTS
    variance = (1 - alpha_bars[0]) / alpha_bars[0]
    total = (log_density(x0, denoised(x1, alpha_bars[0]), variance) * WEIGHTS).sum()
    for before, now in itertools.pairwise(alpha_bars):
        alpha, beta = now / before, 1 - now / before
        x = now.sqrt() * x0 + (1 - now).sqrt() * POINTS
        variance = (1 - before) / (1 - now) * beta
        mean, model = (
            before.sqrt() * beta / (1 - now) * data + alpha.sqrt() * (1 - before) / (1 - now) * x
            for data in (x0, denoised(x, now))
        )
        total = total - (0.5 * (mean - model) ** 2 / variance * WEIGHTS).sum()
    return float(total - normal_kl(alpha_bars[-1].sqrt() * x0, 1 - alpha_bars[-1]))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_bound_is_that_of_ddpm(make_policy, prediction):
    policy = make_policy(prediction, shape=(1,), weighting="elbo")
    policy.alpha_bars = levels(60)
    shares = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    for x0 in (0.2, 1.5, 2.6):
        found = bound_at(policy, x0, shares) + constants(policy.alpha_bars, x0)
        assert found == pytest.approx(ddpm_bound(policy.alpha_bars, x0), abs=1e-9)


def test_more_levels_make_it_tighter_and_it_stays_a_bound(make_policy):
    """Averaged over the data, since the model of finitely many levels is not the data's."""
    density = log_density(MEAN + DEVIATION * POINTS, MEAN, torch.tensor(DEVIATION**2))
    exact, gaps = float((density * WEIGHTS).sum()), []
    for count in (100, 800):
        policy = make_policy("epsilon", shape=(1,), weighting="elbo")
        policy.alpha_bars = levels(count)
        shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        total = 0.0
        for point, weight in zip(POINTS.tolist(), WEIGHTS.tolist(), strict=True):
            x0 = MEAN + DEVIATION * point
            total += weight * (bound_at(policy, x0, shares) + constants(policy.alpha_bars, x0))
        gaps.append(exact - total)
    assert 0 < gaps[1] < 0.13 * gaps[0], gaps
    assert gaps[1] < 0.1


@pytest.mark.parametrize("x0", [0.2, 1.5, 2.6])
def test_the_bound_of_flow_matching_is_the_log_likelihood_of_gaussian_data(make_policy, x0):
    policy = make_policy("velocity", shape=(1,), weighting="elbo")
    shares = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert policy.time_at(shares).min() == LEAST_TIME
    deviation = LEAST_TIME / (1 - LEAST_TIME)
    found = bound_at(policy, x0, shares) - np.log(deviation * np.sqrt(2 * np.pi))
    exact = float(log_density(torch.tensor(x0), MEAN, torch.tensor(DEVIATION**2)))
    assert found == pytest.approx(exact, abs=5e-4)
    with torch.no_grad():
        policy.network.mean += 0.2
    assert bound_at(policy, x0, shares) != pytest.approx(found, abs=1e-2)


def test_other_times_are_no_bound():
    with pytest.raises(ValidationError, match="take timesteps: uniform, or another weighting"):
        ElboConfig(weighting="elbo", timesteps="logit_normal")
