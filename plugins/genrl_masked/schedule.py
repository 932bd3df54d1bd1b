"""How many positions every step releases, and how much noise ranks them: pure functions."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

Schedule = Literal["cosine", "linear", "power", "sigmoid"]
FinalStep = Literal["release_all", "keep_one"]
Decay = Literal["linear", "cumulative"]

SIGMOID_EDGE = 3.0


def masked_fraction(t: float, schedule: Schedule, power: float | None = None) -> float:
    """The fraction of positions that should still be masked at time ``t`` in [0, 1].

    ``cosine``: ``cos(pi t / 2)`` (MaskGIT, arXiv 2202.04200), its angle in float32 as in Show-o's
    code, which puts ``t = 2/3`` just below one half and so decides a tie; ``linear``: ``1 - t``;
    ``power``: ``1 - t^power``; ``sigmoid``: a logistic curve from -3 to 3, scaled to 1 and 0.

    Raises:
        ValueError: ``power`` is missing for the power schedule.
    """
    if schedule == "cosine":
        return max(0.0, math.cos(np.float32(math.pi / 2 * t)))
    if schedule == "linear":
        return 1 - t
    if schedule == "power":
        if power is None:
            raise ValueError("the power schedule needs its exponent")
        return float(1 - t**power)
    edge = _logistic(SIGMOID_EDGE)
    return (edge - _logistic(SIGMOID_EDGE * (2 * t - 1))) / (2 * edge - 1)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@lru_cache(maxsize=256)
def released_counts(
    num_tokens: int, num_steps: int, schedule: Schedule = "cosine",
    final_step: FinalStep = "release_all", power: float | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """The number of positions that each of ``num_steps`` steps releases.

    After step k (counted from 0) ``floor(N masked_fraction((k + 1) / K))`` positions stay masked,
    but at least one fewer than before and at least one. So with ``keep_one`` the counts sum to
    ``N - 1``, and steps that find a single position release none; ``release_all`` adds the position
    left over to the last step, and the sum is N.

    Raises:
        ValueError: fewer than one token or step.
    """
    if num_tokens < 1 or num_steps < 1:
        raise ValueError(f"no schedule for {num_tokens} tokens in {num_steps} steps")
    masked, counts = num_tokens, []
    for step in range(num_steps):
        target = math.floor(num_tokens * masked_fraction((step + 1) / num_steps, schedule, power))
        left = max(1, min(masked - 1, target))
        counts.append(masked - left)
        masked = left
    if final_step == "release_all":
        counts[-1] += 1
    return tuple(counts)


@lru_cache(maxsize=256)
def release_chances(
    num_steps: int, schedule: Schedule = "cosine", power: float | None = None
) -> tuple[float, ...]:
    """The probability that a position still masked is released, at every step.

    ``1 - f((k + 1) / K) / f(k / K)`` with the masked fraction f (arXiv 2510.02880), so that after
    step k a position is masked with probability ``f((k + 1) / K)``; 1 at the last step.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"no schedule in {num_steps} steps")
    left = [masked_fraction(step / num_steps, schedule, power) for step in range(num_steps)]
    # Where a steep schedule rounds to nothing left, nothing is left to release.
    return (*(1 - after / before if before else 1.0 for before, after in pairwise(left)), 1.0)


@lru_cache(maxsize=256)
def gumbel_temperatures(start: float, num_steps: int, decay: Decay = "linear") -> tuple[float, ...]:
    """The factor tau of the Gumbel noise at every step, in nats.

    ``linear``: ``start (1 - (k + 1) / K)`` at step k, counted from 0; ``cumulative``: ``start``
    times the product of these factors over all steps so far, which is nearly 0 from the middle on.
    The last step has no noise: what it ranks is released anyway.
    """
    factors = [1 - (step + 1) / num_steps for step in range(num_steps)]
    if decay == "cumulative":
        return tuple(start * math.prod(factors[: step + 1]) for step in range(num_steps))
    return tuple(start * factor for factor in factors)
