"""The KL divergence from the reference weights, and the entropy."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective
from genrl_core.functional import beyond_bound, kl_estimate

if TYPE_CHECKING:
    from genrl_objectives.configs import EntropyConfig, KlConfig


class Kl(Objective):
    """KL(policy || reference) per term, reduced; mixed with another objective by its weight.

    ``unbiased`` is ``r k3`` with ``r`` the ratio to the drawing weights, not detached: its expected
    gradient is that of the reverse KL on policy and off it. Where a term sums over many events the
    estimators see the sum; ``analytic`` uses the closed form of the sampler instead. ``kl_bounded``
    counts the terms whose log-ratio to the reference, or to ``old``, is beyond 20 nats.
    """

    separable = True

    def __init__(self, config: "KlConfig"):
        self._config = config
        analytic = config.estimator == "analytic"
        unbiased = {"old_log_probs"} if config.estimator == "unbiased" else set()
        self.needs = frozenset({"kl_reference"} if analytic else {"reference", *unbiased})

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        metrics = {}
        if self._config.estimator == "analytic":
            kl = batch.need("kl_reference")
        else:
            reference, estimator = batch.need("reference"), self._config.estimator
            old = batch.need("old_log_probs") if estimator == "unbiased" else None
            kl = kl_estimate(batch.log_probs, reference, old, estimator)
            far = beyond_bound(batch.log_probs - reference)
            far = far if old is None else far | beyond_bound(batch.log_probs - old)
            metrics["kl_bounded"] = far.to(kl)
        return batch.reduce(kl, self._config.reduce), {"kl": kl} | metrics


class Entropy(Objective):
    """Minus the entropy of every step, reduced: a bonus whose size is the objective's weight.

    On policy the gradient is that of the steps' own entropies; that of the states they lead to is
    left out, as everywhere (arXiv 1602.01783, section 4).
    """

    needs = frozenset({"entropy"})
    separable = True

    def __init__(self, config: "EntropyConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -batch.reduce(batch.need("entropy"), self._config.reduce), {}
