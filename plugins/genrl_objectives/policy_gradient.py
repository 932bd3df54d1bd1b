"""REINFORCE and the family of GRPO, for any paradigm."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Metric, Objective
from genrl_core.functional import beyond_bound, bounded_exp, log_ratio

if TYPE_CHECKING:
    from genrl_objectives.presets import RatioConfig, ReinforceConfig


class Reinforce(Objective):
    """``-A log p``, summed over a term's events (Williams 1992, eq. 4).

    On policy its gradient equals that of ``grpo`` with ``level: term`` and ``over: sum``.
    """

    separable = True

    def __init__(self, config: "ReinforceConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | Metric]]:
        loss = batch.reduce(-batch.advantage * batch.log_probs, self._config.reduce)
        return loss, {"log_probs": batch.log_probs}


class PolicyGradient(Objective):
    """A surrogate over ratios to recorded log-densities, reduced (arXiv 2402.03300, eq. 3).

    The presets of ``genrl_objectives.presets`` choose the ratio's level, the surrogate and the
    reduction. Mask-GRPO (arXiv 2510.13418, eq. 10 to 12) is ``grpo`` over unmasking transitions,
    with ``epsilon: 0.1, epsilon_high: 0.2``. The surrogate acts per term, before any mean. The KL
    term of the papers is the objective ``kl``, mixed in by the recipe.
    """

    def __init__(self, config: "RatioConfig"):
        self.needs = config.fields_needed()
        self.separable = not config.couples()
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | Metric]]:
        config = self._config
        ratio = log_ratio(
            batch.log_probs,
            batch.need("old_log_probs"),
            batch.events,
            batch.mask,
            config.level,
            config.over,
        )
        entries, held = config.surrogate(batch, ratio)
        value = bounded_exp(ratio.detach())
        return batch.reduce(entries, config.reduce), {
            "ratio_mean": value,
            "ratio_max": Metric(value, "max"),
            "clip_fraction": held.to(value),
            "ratio_bounded": beyond_bound(ratio.detach()).to(value),
            "log_probs": batch.log_probs,
        }
