"""GRPO-Guard: ratios whose mean and spread are the same at every step."""

from typing import Any, ClassVar

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import Tensor, register
from genrl_objectives.grpo import BehaviorKlConfig, GrpoConfig


@register("grpo_guard")
class GrpoGuardConfig(BehaviorKlConfig, GrpoConfig):
    """GRPO-Guard: ratios re-centred and rescaled, so that one clip range fits every step.

    ``r = exp(scale (d + KL(old || current)))``, scale being the sampler's (a diffusion step's noise
    level, or 1). The loss of a step is weighted by ``1 / |dt|``, the inverse of the share of the
    process's time that it covers (1 for samplers without a clock); denominators count terms, so
    that the weights are not normalised, as in the paper's code: of K even steps each weighs K.
    """

    paper = "arXiv 2510.22319"
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    weight_by_duration: bool = Field(
        default=True,
        description="weigh the loss of a step by 1 / |dt|, dt the share of the process's time, 0 "
        "to 1, that it covers; the weights are not normalised",
    )

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        # Under the drawing weights d has the mean -KL and a spread that differs from step to step.
        centred = batch.scale * (log_ratio + self.divergence(batch))
        loss, held = super().surrogate(batch, centred)
        if self.weight_by_duration:  # what stands outside the mask may be 0
            loss = loss / batch.need("duration").masked_fill(~batch.mask, 1.0)
        return loss, held
