"""The categorical distribution of the next token: pure functions of logits ``[..., V]``.

Logits are the guided and cooled ones, whatever made them; ``-inf`` is a token that cannot come.
Everything is in nats and keeps the dtype of the logits.
"""

import torch
from torch import Tensor


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token per row by inversion of the distribution function, summed in float64.

    Args:
        logits: ``[R, V]``.
        uniform: ``[R]`` on [0, 1), the one random number that a token costs.

    Returns:
        ``[R]`` int64. Tokens of probability 0 are never drawn.
    """
    mass = logits.double().softmax(-1).cumsum(-1)
    target = uniform.to(mass).unsqueeze(-1) * mass[..., -1:]
    found = torch.searchsorted(mass, target, right=True).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability of one token of each distribution: ``[..., V]``, ``[...]`` to ``[...]``.

    Chosen before it is normalised, so that no second matrix of the logits' size is made.
    """
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropies(logits: Tensor) -> Tensor:
    """``- sum p log p``: ``[...]``."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * _finite(log_p, log_p)).sum(-1)


def divergences(logits: Tensor, other: Tensor) -> Tensor:
    """``KL(p || q) = sum p (log p - log q)``: ``[...]``."""
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * _finite(log_p - log_q, log_p)).sum(-1)


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits with all but the most likely tokens at ``-inf``; ties go to the smaller index.

    ``top_p`` (nucleus, arXiv 1904.09751) keeps the fewest tokens whose probability, after
    ``top_k``, is at least that much; one always stays.
    """
    if top_k is None and top_p is None:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranked = logits.gather(-1, order)
    if top_k is not None:
        ranked[..., top_k:] = -torch.inf
    if top_p is not None:
        before = ranked.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0
        ranked = ranked.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ranked)


def _finite(values: Tensor, log_p: Tensor) -> Tensor:
    """The values where the token can come, 0 elsewhere, so that ``0 * inf`` does not arise."""
    return values.masked_fill(log_p == -torch.inf, 0.0)
