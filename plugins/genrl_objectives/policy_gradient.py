"""REINFORCE and GRPO, for any paradigm."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective
from genrl_core.functional import clipped_surrogate, is_clipped, log_ratio

if TYPE_CHECKING:
    from genrl_objectives import GrpoConfig, ReinforceConfig


class Reinforce(Objective):
    """``-A log p``, summed over a term's events (Williams 1992, eq. 4).

    On policy its gradient equals that of ``grpo`` with ``level: term`` and ``over: sum``.
    """

    def __init__(self, config: "ReinforceConfig"):
        self.view = config.view
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = batch.reduce(-batch.advantage * batch.log_probs, self._config.reduce)
        return loss, {"log_probs": batch.log_probs}


class Grpo(Objective):
    """The clipped surrogate over ratios to recorded log-densities (arXiv 2402.03300, eq. 3).

    Mask-GRPO (arXiv 2510.13418, eq. 10 to 12) is this objective over unmasking transitions, with
    ``epsilon: 0.1, epsilon_high: 0.2``. The minimum is taken per term, before any mean. The KL
    term of the paper is the objective ``kl``, mixed in by the recipe.
    """

    needs = frozenset({"old"})

    def __init__(self, config: "GrpoConfig"):
        self.view = config.view
        self.separable = config.level == "term"
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        ratio = log_ratio(
            batch.log_probs, batch.need("old"), batch.events, batch.mask, config.level, config.over
        )
        clip = (config.epsilon, config.epsilon_high)
        loss = batch.reduce(clipped_surrogate(ratio, batch.advantage, *clip), config.reduce)
        value = ratio.detach().exp()
        return loss, {
            "ratio_mean": value,
            "ratio_max": value,
            "clip_fraction": is_clipped(ratio.detach(), batch.advantage, *clip).to(value),
            "log_probs": batch.log_probs,
        }
