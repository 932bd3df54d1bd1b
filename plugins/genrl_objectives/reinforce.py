"""REINFORCE, and the two estimators named after it: RLOO and REINFORCE++."""

from typing import Any, ClassVar

from genrl_core import Batch
from genrl_objectives.common import ConfiguredObjective, Level, Metrics, Reduction, Tensor, register
from genrl_objectives.grpo import GrpoConfig, PolicyGradientConfig


class Reinforce(ConfiguredObjective["ReinforceConfig"]):
    """``-A log p``, summed over a term's events (Williams 1992, eq. 4).

    On policy its gradient equals that of ``grpo`` with ``level: term`` and ``over: sum``.
    """

    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = batch.reduce(-batch.advantage * batch.log_probs, self.config.reduce)
        return loss, {"log_probs": batch.log_probs}


@register("reinforce")
class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE: minus the log-density times the advantage, on policy."""

    paper = "Williams 1992, Machine Learning 8"
    builds = Reinforce


@register("rloo")
class RlooConfig(GrpoConfig):
    """RLOO: the other samples' mean reward as the baseline, one ratio per sample."""

    paper = "arXiv 2402.14740"
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "leave_one_out", "scale": "none"}
    level: Level = "sequence"


@register("reinforce_pp")
class ReinforcePpConfig(GrpoConfig):
    """REINFORCE++: PPO's clip without a critic, rewards whitened over the whole batch.

    The paper whitens terms after a per-term KL penalty in the reward; here the penalty is the
    objective `kl`, and samples are whitened.
    """

    paper = "arXiv 2501.03262"
    advantage_defaults: ClassVar[dict[str, Any]] = {
        "baseline": "batch_mean", "scale": "batch_std", "epsilon": 1e-8,
    }  # fmt: skip
    reduce: Reduction = "token_mean"
