"""Supervised fine-tuning on the bound."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective

if TYPE_CHECKING:
    from genrl_objectives import SftConfig


class Sft(Objective):
    """Minus the bound on the log-likelihood of the samples, whatever drew them."""

    view = "bound"

    def __init__(self, config: "SftConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return batch.reduce(-batch.log_probs, self._config.reduce), {"bound": batch.log_probs}
