"""The KL divergence from the reference weights."""

from typing import Literal

from pydantic import Field

from genrl_core import Batch, Capability, ObjectiveConfig
from genrl_objectives.common import ConfiguredObjective, Metrics, Reduction, Tensor, register


class Kl(ConfiguredObjective["KlConfig"]):
    """KL(policy || reference) per term, reduced; mixed with another objective by its weight.

    ``unbiased`` is ``r k3`` with ``r`` the ratio to the drawing weights, not detached: its expected
    gradient is that of the reverse KL on policy and off it. Where a term sums over many events the
    estimators see the sum; ``analytic`` uses the closed form of the sampler instead. ``kl_bounded``
    counts the terms whose log-ratio to the reference, or to the drawing
    weights, is beyond 20 nats.
    """

    separable = True

    def __init__(self, config: "KlConfig"):
        super().__init__(config)
        analytic = config.estimator == "analytic"
        unbiased = {"old_log_probs"} if config.estimator == "unbiased" else set()
        self.needs = frozenset({"kl_reference"} if analytic else {"reference", *unbiased})

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        from genrl_core.functional import beyond_bound, kl_estimate

        metrics: Metrics = {}
        if self.config.estimator == "analytic":
            kl = batch.need("kl_reference")
        else:
            reference, estimator = batch.need("reference"), self.config.estimator
            old = batch.need("old_log_probs") if estimator == "unbiased" else None
            kl = kl_estimate(batch.log_probs, reference, old, estimator)
            far = beyond_bound(batch.log_probs - reference)
            far = far if old is None else far | beyond_bound(batch.log_probs - old)
            metrics["kl_bounded"] = far.to(kl)
        found: Metrics = {"kl": kl}
        return batch.reduce(kl, self.config.reduce), found | metrics


@register("kl")
class KlConfig(ObjectiveConfig):
    """KL divergence from the reference weights, estimated from the samples or in closed form."""

    paper = "Schulman 2020, Approximating KL divergence"
    builds = Kl
    uses_reward = False
    estimator: Literal["k1", "k2", "k3", "unbiased", "analytic"] = Field(
        "unbiased",
        description="unbiased has value and gradient of the reverse KL; analytic needs step_kl; "
        "k1 has no gradient on average, k3 that of the forward KL",
    )
    reduce: Reduction = "sample_mean"

    def view_wanted(self) -> None:
        return None

    def compatible_views(self) -> tuple[Literal["steps", "elbo"], ...]:
        return ("steps",) if self.estimator == "analytic" else ("steps", "elbo")

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_KL} if self.estimator == "analytic" else ())
