"""SAPO: a soft gate in the place of the clip."""

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import Positive, Tensor, register
from genrl_objectives.grpo import RatioConfig


@register("sapo")
class SapoConfig(RatioConfig):
    """SAPO: a sigmoid gate in place of the clip; the gradient fades instead of stopping."""

    paper = "arXiv 2511.20347"
    temperature: Positive = Field(1.0, description="sharpness of the gate for positive advantages")
    temperature_negative: Positive = Field(1.05, description="the same for negative advantages")

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        tau = (self.temperature, self.temperature_negative)
        nowhere = batch.mask.new_zeros(batch.mask.shape)
        return sapo_surrogate(log_ratio, batch.advantage, *tau), nowhere


def sapo_surrogate(
    log_ratio: Tensor, advantage: Tensor, temperature: float, temperature_negative: float
) -> Tensor:
    """``-sigmoid(tau (r - 1)) 4 / tau A``, ``[T, B]``.

    ``tau`` is ``temperature`` where the advantage is positive and ``temperature_negative``
    elsewhere. At ``r = 1`` the gradient is that of ``-r A``; away from it, it fades.
    """
    import torch

    from genrl_core.functional import MOST_NATS

    positive = torch.full_like(advantage, temperature)
    tau = torch.where(advantage > 0, positive, torch.full_like(advantage, temperature_negative))
    gate = torch.sigmoid(tau * torch.expm1(log_ratio.clamp(-MOST_NATS, MOST_NATS)))
    return -gate * 4 / tau * advantage
