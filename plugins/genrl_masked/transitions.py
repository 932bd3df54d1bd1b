"""The step densities of Mask-GRPO (arXiv 2510.13418, eq. 13 to 15): pure functions.

A step finds some positions masked, draws a code for each from the categorical ``p^i``, ranks them
by ``log p^i[y_i] + tau g_i`` with Gumbel noise ``g``, and releases the best n. The others are
masked again. Shapes: R rows, N positions, V codes.

    log_probs       [R, N, V]  log p^i[k], temperature and guidance inside
    codes           [R, N]     int64, the code drawn at each masked position
    released        [R, N]     bool, the positions the step released (the paper's C)
    remasked        [R, N]     bool, the positions it masked again (the paper's R)
    log_thresholds  [R, N]     a code counts as below where its log-probability is (strictly) less

Everything stays in log space: log-probabilities meet log-thresholds, and no log is taken of 0.
"""

import torch
from torch import Tensor

_FAR = 1e30
"""Beyond all log-probabilities, and still a number: what is so far down weighs nothing in a sum."""


def draw_codes(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """One code per position by inversion of its distribution function, summed in float64.

    Args:
        log_probs: ``[R, N, V]``.
        uniform: ``[R, N]`` on [0, 1); the one random number that a position costs.

    Returns:
        ``[R, N]`` int64. Codes of probability 0 are never drawn.
    """
    mass = log_probs.double().exp().cumsum(-1)
    target = uniform.to(mass.dtype).unsqueeze(-1) * mass[..., -1:]
    found = torch.searchsorted(mass, target, right=True).squeeze(-1)
    return found.clamp(max=log_probs.shape[-1] - 1)


def code_log_probs(log_probs: Tensor, codes: Tensor) -> Tensor:
    """``log p^i[y_i]``, the log-confidence of every position: ``[R, N]``."""
    return log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)


def best(keys: Tensor, masked: Tensor, counts: Tensor) -> Tensor:
    """The ``counts`` masked positions with the largest keys, ties to the smaller index.

    Args:
        keys: ``[R, N]`` confidences; larger is released first.
        masked: ``[R, N]`` bool, the candidates.
        counts: ``[R]`` int64, how many each row releases; 0 is allowed.

    Returns:
        ``[R, N]`` bool, the released positions.
    """
    hidden = keys.masked_fill(~masked, -torch.inf)
    order = hidden.argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < counts.unsqueeze(-1)) & masked


def first_needed(needed: Tensor, at_least: int = 1) -> Tensor:
    """The needed positions of every row, in their order, then others: ``[R, S]`` int64.

    Args:
        needed: ``[R, N]`` bool.
        at_least: the smallest S; it is otherwise as many as the neediest row needs.
    """
    most = max(int(needed.sum(-1).max()), at_least)
    return needed.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]


def p2(log_probs: Tensor, codes: Tensor, released: Tensor) -> Tensor:
    """``sum over C of log p^i[y_i]`` (eq. 15): ``[R]``.

    Not normalised: that the other positions were masked again is left out.
    """
    return _sum(code_log_probs(log_probs, codes), released)


def p1(
    log_probs: Tensor, codes: Tensor, released: Tensor, remasked: Tensor, log_thresholds: Tensor
) -> Tensor:
    """``p2 + sum over R of log F_i`` with ``F_i`` the mass below the threshold (eq. 14): ``[R]``.

    With ``noise_aware_thresholds`` this is the log-probability of the step given its Gumbel noise,
    exactly; with ``plain_thresholds`` it is the paper's formula, exact without noise only. The
    thresholds are numbers recorded in the rollout, with no gradient, as in the paper.

    Where no code is below the threshold, which a changed network can cause, the position gives the
    log-probability of the code that was drawn there, the best known of the codes that stayed below.
    """
    return p2(log_probs, codes, released) + _sum(
        log_mass_below(log_probs, codes, log_thresholds), remasked
    )


def log_mass_below(log_probs: Tensor, codes: Tensor, log_thresholds: Tensor) -> Tensor:
    """``log F_i = log sum_{k: p^i[k] < threshold_i} p^i[k]`` of every position: ``[R, N]``."""
    kept = log_probs + _side(log_probs.detach(), log_thresholds).clamp(max=0)
    empty = kept.detach().amax(-1) < -_FAR / 2
    return torch.where(empty, code_log_probs(log_probs, codes), kept.logsumexp(-1))


def ar(log_probs: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
    """``sum over all masked of log p^i[y_i]`` (eq. 13), the codes thrown away included: ``[R]``.

    The density of the step with everything that was drawn; which positions are released follows
    from it and the noise. Its score has the mean of p1's, given the step, and a larger variance.

    With noise neither has the score of the whole step, since how the weights choose the positions
    is left out: by .2 to .6 of the gradient's length, at a cosine of .8 to 1, on enumerable toys.
    """
    return _sum(code_log_probs(log_probs, codes), masked)


def noise_aware_thresholds(
    log_probs: Tensor, codes: Tensor, released: Tensor, noise: Tensor
) -> Tensor:
    """The threshold that a re-masked position's code did stay below, noise included: ``[R, N]``.

    ``min over C of (log p^i[y_i] + tau g_i) - tau g_j`` at position j. The paper's (eq. 14) lacks
    the noise and is then not the density of the sampler that ran. Steps that release nothing have
    an infinite threshold.

    Args:
        noise: ``[R, N]``, tau times the Gumbel noise of every position.
    """
    least = _least(code_log_probs(log_probs, codes) + noise, released)
    return centred(log_probs, least - noise)


def plain_thresholds(log_probs: Tensor, codes: Tensor, released: Tensor) -> Tensor:
    """The paper's threshold, the smallest confidence released (eq. 14): ``[R, N]``."""
    least = _least(code_log_probs(log_probs, codes), released)
    return centred(log_probs, least.expand(released.shape))


def centred(log_probs: Tensor, log_thresholds: Tensor) -> Tensor:
    """The threshold moved to the middle between its neighbours among the codes: ``[R, N]``.

    The set of codes below it stays the same, and so does every density. But a threshold that is
    itself a code's log-probability, or close to one, lets rounding (another batch size, another
    kernel) move a code across it, and the density jumps; from the middle only a real change of the
    weights can. Where all codes are below it is infinite, and where none is it stays.
    """
    side = _side(log_probs, log_thresholds)
    low, high = torch.minimum(log_probs, side).amax(-1), torch.maximum(log_probs, side).amin(-1)
    high = high.masked_fill(high > _FAR / 2, torch.inf)
    return torch.where(low > -_FAR / 2, (low + high) / 2, log_thresholds)


def _side(log_probs: Tensor, log_thresholds: Tensor) -> Tensor:
    """``_FAR`` where a code is below the threshold, ``-_FAR`` where it is not: ``[R, N, V]``.

    Numbers and no truth values: a processor compares, fills and counts those one by one, which
    made half of what a step of p1 costs beside its network.
    """
    sign = (log_thresholds.to(log_probs).unsqueeze(-1) - log_probs).sign_()
    return sign.mul_(2).sub_(1).clamp_(-1, 1).mul_(_FAR)  # a code at the threshold is not below


def entropies(log_probs: Tensor) -> Tensor:
    """The entropy of the categorical at every position, in nats: ``[R, N]``."""
    possible = log_probs > -torch.inf
    return -(log_probs.exp() * log_probs.masked_fill(~possible, 0.0)).sum(-1)


def divergences(log_probs: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) of the categoricals at every position, in nats: ``[R, N]``."""
    possible = log_probs > -torch.inf
    difference = (log_probs - other).masked_fill(~possible, 0.0)
    return (log_probs.exp() * difference).sum(-1)


def per_token(values: Tensor, released: Tensor, num_terms: int) -> Tensor:
    """The values of the released positions, first position first: ``[R, num_terms]``, 0 beyond.

    Args:
        values: ``[R, N]``.
        released: ``[R, N]`` bool, at most ``num_terms`` per row.
    """
    first = released.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :num_terms]
    return values.gather(-1, first).masked_fill(~released.gather(-1, first), 0)


def _least(keys: Tensor, released: Tensor) -> Tensor:
    return keys.masked_fill(~released, torch.inf).amin(-1, keepdim=True)


def _sum(values: Tensor, where: Tensor) -> Tensor:
    return values.masked_fill(~where, 0.0).sum(-1)
