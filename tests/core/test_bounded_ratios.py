"""Ratios and KL estimators far from 1: bounded at 20 nats, and unchanged within them."""

import math

import pytest
import torch
from torch import Tensor

from genrl_core.functional import clipped_surrogate, is_clipped, kl_estimate
from genrl_objectives.cispo import cispo_surrogate
from genrl_objectives.sapo import sapo_surrogate

END = math.exp(20)
DTYPES = [torch.float32, torch.float64]
FAR = [25.0, 89.0, 1e3, 1e4, math.inf]


def slope(x: Tensor, value: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    return found


def leaf(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("delta", [None, 10.0])
def test_a_clipped_or_weightless_term_has_gradient_zero_at_any_log_ratio(
    dtype: torch.dtype, delta: float | None
) -> None:
    gaps = [sign * gap for gap in FAR for sign in (1, -1)]
    for advantage in (2.5, 0.0, -2.5):
        x = leaf(*(gap for gap in gaps if gap * advantage >= 0), dtype=dtype)
        loss = clipped_surrogate(x, torch.full_like(x, advantage), 0.2, 0.3, delta)
        assert slope(x, loss).tolist() == [0.0] * len(x)
        assert loss.isfinite().all()
    x = leaf(*gaps, dtype=dtype)
    for loss in (
        sapo_surrogate(x, torch.ones_like(x), 1.0, 1.05),
        clipped_surrogate(x, -torch.ones_like(x), 0.2, None, 10.0),
        cispo_surrogate(x, x, torch.zeros_like(x), 5.0)[x.isfinite()],
    ):
        assert slope(x, loss).tolist() == [0.0] * len(x)


def test_delta_is_the_dual_clip() -> None:
    """``max(min(r A, clip(r) A), delta A)`` of negative advantages (arXiv 1912.09729)."""
    x = torch.cat([torch.linspace(-5, 20, 101), torch.tensor([25.0, 100.0])]).double()
    x.requires_grad_()
    for advantage in (-3.0, 2.0):
        ratio = x.detach().clamp(max=20).exp()
        clipped = ratio.clamp(0.8, 1.3)
        wanted = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0:
            wanted = wanted.clamp(min=10 * advantage)
        found = clipped_surrogate(x, torch.full_like(x, advantage), 0.2, 0.3, 10.0)
        torch.testing.assert_close(-found.detach(), wanted, rtol=1e-14, atol=0)
        moves = (ratio > 0.8) & (ratio < 10) if advantage < 0 else ratio < 1.3
        expected = torch.where(moves, -ratio * advantage, 0.0)
        torch.testing.assert_close(slope(x, found), expected, rtol=1e-12, atol=0)


def test_a_ratio_without_delta_ends_at_twenty_nats() -> None:
    x = leaf(19.0, 21.0, 25.0, 1e4)
    loss = clipped_surrogate(x, -torch.ones_like(x), 0.2)
    assert loss.tolist() == pytest.approx([math.exp(19), END, END, END], rel=1e-12)
    assert slope(x, loss).tolist() == pytest.approx([math.exp(19), 0, 0, 0], rel=1e-12)


@pytest.mark.parametrize("delta", [None, 1.2, 3.0])
def test_what_counts_as_clipped_is_what_has_no_gradient(delta: float | None) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=noise, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(4000, generator=noise, dtype=torch.float64)
    loss = clipped_surrogate(x, advantage, 0.2, 0.5, delta)
    held = slope(x, loss) == 0
    counted = is_clipped(x.detach(), advantage, 0.2, 0.5, *([] if delta is None else [delta]))
    assert torch.equal(held, counted) and 0.1 < held.double().mean() < 0.9


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_twenty_nats_nothing_changed_by_a_bit(dtype: torch.dtype) -> None:
    """Against the formulas as they were written without a bound."""
    noise = torch.Generator().manual_seed(1)
    new = (40 * torch.rand(3, 999, generator=noise, dtype=dtype) - 20)[:, :-9]
    new[0, :2] = torch.tensor([20.0, -20.0])
    advantage = torch.randn(new.shape, generator=noise, dtype=dtype)
    old, reference = new[1].expand_as(new) * 0, new[2].expand_as(new) * 0
    x = new.requires_grad_()

    def same(found: Tensor, wanted: Tensor) -> None:
        assert torch.equal(found, wanted) and torch.equal(slope(x, found), slope(x, wanted))

    ratio = (x - old).exp()
    lower = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.4) * advantage)
    same(clipped_surrogate(x - old, advantage, 0.2, 0.4), -lower)
    k3 = torch.expm1(-(x - reference)) + (x - reference)
    same(kl_estimate(x, reference), k3)
    same(kl_estimate(x, reference, old, "unbiased"), ratio * k3)


def unbiased(x: Tensor) -> Tensor:
    """With the reference as the weights that drew, so that one number moves both exponents."""
    return kl_estimate(x, torch.zeros_like(x), torch.zeros_like(x), "unbiased")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_divergence_goes_on_with_its_slope_at_twenty_nats(dtype: torch.dtype) -> None:
    x = leaf(21.0, 50.0, 1e3, -21.0, -50.0, -1e3, dtype=dtype)
    k3 = kl_estimate(x, torch.zeros_like(x))
    assert k3.isfinite().all() and unbiased(x).isfinite().all()
    rel = 1e-6 if dtype == torch.float32 else 1e-8
    assert slope(x, k3).tolist() == pytest.approx([1.0] * 3 + [1 - END] * 3, rel=rel)
    wanted = [20 * END] * 3 + [-20 / END] * 3  # the gradient of r k3 is r x
    assert slope(x, unbiased(x)).tolist() == pytest.approx(wanted, rel=rel)


@pytest.mark.parametrize("estimator", ["k3", "unbiased"])
def test_the_slope_of_a_divergence_is_that_of_its_value(estimator: str) -> None:
    """Central differences in float64, on and across the borders, for all three log-densities."""
    noise = torch.Generator().manual_seed(2)
    place, old, reference = (
        25 * torch.randn(4000, generator=noise, dtype=torch.float64) for _ in range(3)
    )

    def value(new: Tensor) -> Tensor:
        return kl_estimate(new, reference, old, estimator)  # type: ignore[arg-type]

    found = slope(leaf_ := place.clone().requires_grad_(), value(leaf_))
    above, below = value(place + 1e-4), value(place - 1e-4)
    size = above.abs().maximum(below.abs())
    numeric = (above - below) / 2e-4
    assert found.isfinite().all()
    gap = (numeric - found).abs() - 1e-3 * found.abs() - 1e-10 * size
    assert (gap < 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", ["k3", "unbiased"])
def test_a_divergence_always_pulls_towards_the_reference(
    dtype: torch.dtype, estimator: str
) -> None:
    """Beyond the bound of either exponent its gradient is finite, with the log-ratio's sign."""
    noise = torch.Generator().manual_seed(3)
    new, old, reference = (40 * torch.randn(20_000, generator=noise).to(dtype) for _ in range(3))
    new.requires_grad_()
    value = kl_estimate(new, reference, old, estimator)  # type: ignore[arg-type]
    found, x = slope(new, value), (new - reference).detach()
    assert value.isfinite().all() and found.isfinite().all()
    far = (x.abs() > 20) | ((new - old).abs() > 20)
    assert far.double().mean() > 0.8
    assert torch.equal(found.sign()[far], x.sign()[far])
