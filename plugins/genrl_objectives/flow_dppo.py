"""Flow-DPPO: a trust region in place of the clip."""

from typing import Any, ClassVar

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import DeltaAlone, Positive, Tensor, register
from genrl_objectives.grpo import BehaviorKlConfig


@register("flow_dppo")
class FlowDppoConfig(BehaviorKlConfig):
    """Flow-DPPO: no clip; a term that left the trust region may not move further away.

    ``-A r`` where ``KL(old || current) < threshold`` or the gradient leads back. ``delta`` is not
    in the paper.
    """

    paper = "arXiv 2606.11025"
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    threshold: Positive = Field(
        description="radius of the trust region in nats; it has no default, because it is per "
        "event with over: mean (1e-5 for latents) and per term with sum",
        json_schema_extra={"propose": 1e-2},
    )
    delta: DeltaAlone = 10.0

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        from genrl_core.functional import bounded_exp, capped_surrogate, is_capped

        kl, ratio = self.divergence(batch).detach(), bounded_exp(log_ratio)
        held = leaves_region(log_ratio.detach(), batch.advantage, kl, self.threshold)
        loss = capped_surrogate(ratio, batch.advantage, self.delta).masked_fill(held, 0.0)
        return loss, held | is_capped(ratio.detach(), batch.advantage, self.delta)


def leaves_region(
    log_ratio: Tensor, advantage: Tensor, divergence: Tensor, threshold: float
) -> Tensor:
    """Where a term is outside the trust region and its gradient leads further away: bool.

    ``KL(old || new) >= threshold`` and ``r > 1, A > 0`` or ``r < 1, A < 0``.
    """
    away = ((log_ratio > 0) & (advantage > 0)) | ((log_ratio < 0) & (advantage < 0))
    return away & (divergence >= threshold)
