"""Gradients of KL estimators on a categorical, by summing over what can be drawn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genrl_core.functional import kl_estimate

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Log-probabilities of the policy, of the reference and of the weights that draw, to a loss."""


def detached_ratio(new: Tensor, old: Tensor) -> Tensor:
    return (new - old).exp().detach()


def as_reward(new: Tensor, ref: Tensor, old: Tensor) -> Tensor:
    """The penalty inside the reward of a policy gradient."""
    return (new - old).exp() * kl_estimate(new, ref, estimator="k1").detach()


def value_of_k3(new: Tensor, ref: Tensor, old: Tensor) -> Tensor:
    k2, k3 = (kl_estimate(new, ref, estimator=e) for e in ("k2", "k3"))
    return k2 + (k3 - k2).detach()


ESTIMATORS: dict[str, Loss] = {
    "k1": lambda new, ref, old: kl_estimate(new, ref, estimator="k1"),
    "k2": lambda new, ref, old: kl_estimate(new, ref, estimator="k2"),
    "k3": lambda new, ref, old: kl_estimate(new, ref, estimator="k3"),
    "r k1": lambda new, ref, old: (new - old).exp() * kl_estimate(new, ref, estimator="k1"),
    "r k3": lambda new, ref, old: kl_estimate(new, ref, old, "unbiased"),
    "sg(r) k2": lambda new, ref, old: detached_ratio(new, old) * kl_estimate(new, ref, None, "k2"),
    "k1 as reward": as_reward,
    "k3 with the gradient of k2": value_of_k3,
}
EXACT_ON = {"k2", "r k1", "r k3", "sg(r) k2", "k1 as reward", "k3 with the gradient of k2"}
EXACT_OFF = {"r k1", "r k3", "sg(r) k2", "k1 as reward"}


def setting(on_policy: bool) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(4)
    new, ref, old = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    return new.requires_grad_(), ref.log_softmax(0), (new if on_policy else old).log_softmax(0)


def found(name: str, on_policy: bool) -> Tensor:
    logits, ref, old = setting(on_policy)
    old = old.detach()
    loss = (old.exp() * ESTIMATORS[name](logits.log_softmax(0), ref, old)).sum()
    return torch.autograd.grad(loss, logits)[0]


def gradient(direction: str, on_policy: bool = True) -> Tensor:
    """Of KL(policy || reference), or of KL(reference || policy)."""
    logits, ref, _ = setting(on_policy)
    new = logits.log_softmax(0)
    kl = new.exp() * (new - ref) if direction == "reverse" else ref.exp() * (ref - new)
    return torch.autograd.grad(kl.sum(), logits)[0]


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_who_has_the_gradient_of_the_reverse_kl(name: str, on_policy: bool) -> None:
    gap = (found(name, on_policy) - gradient("reverse")).abs().max()
    if name in (EXACT_ON if on_policy else EXACT_OFF):
        assert gap < 1e-12
    else:
        assert gap > 1e-2


def test_what_the_others_have_on_policy() -> None:
    assert found("k1", True).abs().max() < 1e-12
    torch.testing.assert_close(found("k3", True), gradient("forward"), rtol=0, atol=1e-12)
    assert (found("k3", False) - gradient("forward")).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["k1", "k3", "r k1", "r k3"])
def test_whose_mean_is_the_kl(name: str) -> None:
    """Values: k1 and k3 are unbiased on policy, times the ratio off policy too."""
    for on_policy in (True, False):
        logits, ref, old = (t.detach() for t in setting(on_policy))
        new = logits.log_softmax(0)
        mean = (old.exp() * ESTIMATORS[name](new, ref, old)).sum()
        exact = (new.exp() * (new - ref)).sum()
        assert (abs(mean - exact) < 1e-12) == (on_policy or name.startswith("r "))
