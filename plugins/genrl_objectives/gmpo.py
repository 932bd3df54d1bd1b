"""GMPO: the clip acts on log-ratios one by one, before their mean over a sample."""

from typing import Literal

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import DeltaAlone, Positive, Tensor, register
from genrl_objectives.grpo import RatioConfig


@register("gmpo")
class GmpoConfig(RatioConfig):
    """GMPO: the geometric mean of ratios that are clipped one by one, in log space.

    ``-A exp(sum_t clip(d_t) / n)``: the clip stops each log-ratio only the way its advantage pushes
    it, and comes before the mean over the n events of a sample. ``delta`` is not in the paper.
    """

    paper = "arXiv 2507.20673"
    level: Literal["term"] = Field("term", description="what is clipped, before the mean")
    over: Literal["sum"] = Field("sum", description="what is clipped, before the mean")
    epsilon: Positive = Field(
        description="clip of a term's log-ratio below 0, in nats; it has no default, because what "
        "a ratio means differs (0.4 for tokens)",
        json_schema_extra={"propose": 0.4},
    )
    epsilon_high: Positive | None = Field(
        None, description="clip of the log-ratio above 0; silent: the same as epsilon"
    )
    delta: DeltaAlone = 10.0

    def couples(self) -> bool:
        return True

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        from genrl_core import functional

        clipped = one_sided_clip(log_ratio, batch.advantage, self.epsilon, self.epsilon_high)
        origin = clipped.new_zeros(())
        mean = functional.log_ratio(clipped, origin, batch.events, batch.mask, "sequence", "mean")
        ratio = functional.bounded_exp(mean)
        capped = functional.is_capped(ratio.detach(), batch.advantage, self.delta)
        loss = functional.capped_surrogate(ratio, batch.advantage, self.delta)
        return loss, (clipped != log_ratio) | capped


def one_sided_clip(
    log_ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float | None = None
) -> Tensor:
    """A log-ratio that goes no further the way its advantage pushes it: ``[T, B]``.

    ``min(d, epsilon_high)`` where the advantage is positive, ``max(d, -epsilon)`` elsewhere: the
    clip of PPO in log space.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    return log_ratio.clamp(max=high).where(advantage > 0, log_ratio.clamp(min=-epsilon))
