"""The objective: REINFORCE that may learn from samples of slightly older weights."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective
from genrl_core.functional import log_ratio

if TYPE_CHECKING:
    from . import TruncatedConfig


class Truncated(Objective):
    """``-min(r, c) A log p``: r the ratio of new to old density, held constant, c the ceiling.

    IMPALA's policy gradient (arXiv 1802.01561, section 4.2), with the recipe's advantage A in the
    place of V-trace's.
    """

    needs = frozenset({"old"})

    def __init__(self, config: "TruncatedConfig") -> None:
        self.ceiling = config.ceiling

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        old = batch.need("old")
        ratio = log_ratio(batch.log_probs, old, batch.events, batch.mask).detach().exp()
        weight = ratio.clamp(max=self.ceiling)
        loss = batch.reduce(-weight * batch.advantage * batch.log_probs)
        return loss, {"ratio_mean": ratio, "clip_fraction": (ratio > self.ceiling).to(ratio)}
