"""The one Gaussian step of every sampler, as coefficients: pure functions of two noise levels.

A step takes a latent from the noise level ``now`` to ``after < now`` (1 = pure noise, 0 = data):

    x' = A x0_hat + B eps_hat + S z,    z ~ N(0, 1)

where ``x0_hat`` and ``eps_hat`` are the data and the noise that the network sees in ``x``. For flow
matching, ``x = (1 - level) x0 + level eps``, the coefficients are used as they are. A model with
``x = alpha x0 + sigma eps`` has the level ``sigma / (alpha + sigma)``: dividing its latents by
``alpha + sigma`` makes them flow-matching latents, so its coefficients are these times
``alpha' + sigma'`` (``rescaled``). Every kernel so serves every model.
"""

import math

Step = tuple[float, float, float]
"""``A, B, S``."""


def flow_ode(_now: float, after: float) -> Step:
    """Euler's step ``x + (after - now) v`` of the flow, ``v = eps_hat - x0_hat``."""
    return 1 - after, after, 0.0


def flow_sde(now: float, after: float, noise: float) -> Step:
    """Flow-GRPO (arXiv 2505.05470): the drift of the SDE with ``s = noise sqrt(now / (1 - now))``.

    From pure noise, where s is infinite, the denominator is ``1 - after``, as in the authors' code.
    """
    return dance_sde(now, after, noise * math.sqrt(now / (1 - (after if now == 1 else now))))


def dance_sde(now: float, after: float, noise: float) -> Step:
    """DanceGRPO (arXiv 2505.07818): the SDE with the constant diffusion coefficient ``noise``.

    An Euler discretisation: ``B^2 + S^2`` exceeds ``after^2``, most of all in the last steps.
    """
    length = now - after
    return 1 - after, after - noise**2 * length / (2 * now), noise * math.sqrt(length)


def cps(_now: float, after: float, noise: float) -> Step:
    """Coefficient-preserving sampling (arXiv 2509.05952): ``B^2 + S^2 = after^2`` exactly."""
    angle = noise * math.pi / 2
    return 1 - after, after * math.cos(angle), after * math.sin(angle)


def ddim(now: float, after: float, eta: float) -> Step:
    """DDIM (arXiv 2010.02502, eq. 12 and 16), ``B^2 + S^2 = after^2``; ``eta`` 1 is DDPM.

    ``S = eta after sqrt(1 - r^2)`` with r the ratio of the levels' noise-to-data ratios; in terms
    of alpha-bar that is ``eta sqrt((1 - a') / (1 - a) (1 - a / a'))``.
    """
    ratio = after * (1 - now) / (now * (1 - after))
    deviation = eta * after * math.sqrt(1 - ratio**2)
    return 1 - after, math.sqrt(after**2 - deviation**2), deviation


def level_of(alpha: float, sigma: float) -> float:
    """The noise level of ``alpha x0 + sigma eps``."""
    return sigma / (alpha + sigma)


def rescaled(step: Step, alpha: float, sigma: float) -> Step:
    """The coefficients for latents that shall arrive at ``alpha x0 + sigma eps``."""
    scale = alpha + sigma
    return step[0] * scale, step[1] * scale, step[2] * scale
