"""The exact gradient of an unmasking step with noise, and what the step densities leave out of it.

Which positions a step releases depends on the weights too, through the confidences that the noise
is added to. Given the codes, the order of release is a Plackett-Luce draw (Gumbel-top-k, arXiv
1903.06059) with scores ``log p^i[y_i] / tau``, so the density of everything is ``ar`` plus that of
the order. Its score gives the gradient of the expected reward exactly; ``ar`` alone, and with it
p1, gives the direction and not the length. Here all is enumerated in float64, and the truth is an
integral over the noise in which Plackett-Luce does not occur.
"""

import itertools

import pytest
import torch

from genrl_masked import transitions

N, V = 3, 3


def reward_of(released, codes):
    """A rugged reward of which positions are released and with which codes."""
    return torch.tensor(sum((1 + p) * 1.7 * (c + 2) for p, c in zip(released, codes, strict=True)))


@pytest.fixture(params=range(2))
def logits(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randn(N, V, dtype=torch.float64, generator=generator).requires_grad_()


def chance_of(released, keys):
    """P(these are the best of ``keys + Gumbel``) by the integral over the noise of one position.

    One released: it beats all others. Two of three: both beat the third. The trapezoid rule is
    exact to rounding, since the integrand dies away at both ends with all its derivatives.
    """
    one = released[0] if len(released) == 1 else next(p for p in range(N) if p not in released)
    noise = torch.linspace(-8, 50, 2901, dtype=torch.float64)
    density = (-noise - (-noise).exp()).exp()
    below = [(-(keys[other] - keys[one] - noise).exp()).exp() for other in range(N) if other != one]
    parts = below if len(released) == 1 else [1 - part for part in below]
    return torch.trapezoid(density * parts[0] * parts[1], noise)


def log_order(order, keys):
    """Plackett-Luce: each takes its turn by the softmax of those that are left."""
    left, total = list(range(N)), torch.zeros((), dtype=torch.float64)
    for position in order:
        total = total + keys[position] - keys[left].logsumexp(0)
        left.remove(position)
    return total


def everything(logits, tau):
    """Every vector of codes, its log-density ``ar``, and the keys that Gumbel noise is added to."""
    log_probs = logits.log_softmax(-1).unsqueeze(0)
    for codes in itertools.product(range(V), repeat=N):
        row = torch.tensor([codes])
        density = transitions.ar(log_probs, row, torch.ones(1, N, dtype=torch.bool))[0]
        keys = transitions.code_log_probs(log_probs, row)[0] / tau
        yield codes, density, keys


def expected_reward(logits, tau, count):
    total = torch.zeros((), dtype=torch.float64)
    for codes, density, keys in everything(logits, tau):
        for released in itertools.combinations(range(N), count):
            reward = reward_of(released, [codes[p] for p in released])
            total = total + density.exp() * chance_of(released, keys) * reward
    return total


def expected_score(logits, tau, count, *, ordered):
    """The mean of reward times score: of ``ar`` with the order's density, or of ``ar`` alone."""
    total = torch.zeros((), dtype=torch.float64)
    for codes, density, keys in everything(logits, tau):
        for order in itertools.permutations(range(N), count):
            reward = reward_of(order, [codes[p] for p in order])
            turn = log_order(order, keys)
            chance = (density + turn).exp().detach()
            total = total + chance * reward * (density + turn if ordered else density)
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_ar_with_the_order_is_the_gradient_of_the_expected_reward(logits, tau, count):
    truth = torch.autograd.grad(expected_reward(logits, tau, count), logits)[0]
    found = expected_score(logits, tau, count, ordered=True)
    assert truth.abs().max() > 0.1
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_ar_alone_leaves_out_how_the_weights_choose_the_positions(logits, tau, count):
    truth = torch.autograd.grad(expected_reward(logits, tau, count), logits)[0]
    found = expected_score(logits, tau, count, ordered=False)
    cosine = torch.cosine_similarity(found.flatten(), truth.flatten(), dim=0)
    assert 0.2 < (found - truth).norm() / truth.norm() < 0.7
    assert cosine > 0.8
