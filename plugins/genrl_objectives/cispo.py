"""CISPO: the weights of REINFORCE are capped ratios."""

from pydantic import Field, field_validator

from genrl_core import Batch
from genrl_objectives.common import Reduction, Tensor, register
from genrl_objectives.grpo import RatioConfig


@register("cispo")
class CispoConfig(RatioConfig):
    """CISPO: REINFORCE weighted by capped ratios, so that no term loses its gradient.

    In ``arXiv 2506.13585`` the cap is written ``1 + epsilon_high``; as in TRL it is the number
    itself, and one below 1 would cap samples that are on policy.
    """

    paper = "arXiv 2506.13585"
    reduce: Reduction = "token_mean"
    epsilon_high: float = Field(
        description="cap of the ratio itself, above 1; it has no default, because what a ratio "
        "means differs (5 for tokens)",
        json_schema_extra={"propose": 5.0},
    )

    @field_validator("epsilon_high")
    @classmethod
    def _above_one(cls, value: float) -> float:
        if value <= 1:
            raise ValueError(
                f"should be above 1, not {value:g}: it caps the ratio itself, which is 1 on "
                f"policy; {value:g} above 1 is written {1 + value:g}, and the usual cap is 5"
            )
        return value

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        from genrl_core.functional import bounded_exp

        cap = self.epsilon_high
        loss = cispo_surrogate(batch.log_probs, log_ratio, batch.advantage, cap)
        return loss, bounded_exp(log_ratio.detach()) > cap


def cispo_surrogate(log_probs: Tensor, log_ratio: Tensor, advantage: Tensor, cap: float) -> Tensor:
    """``-sg(min(r, cap)) A log p``, ``[T, B]``: every term keeps a gradient.

    ``sg`` stops the gradient; ``cap`` bounds the ratio itself, so 1.2 is what ``epsilon_high: 0.2``
    of a clipped surrogate bounds it to.
    """
    from genrl_core.functional import bounded_exp

    return -bounded_exp(log_ratio.detach()).clamp(max=cap) * advantage * log_probs
