"""Maximum likelihood of samples or data."""

from typing import Literal

from genrl_core import Batch, ObjectiveConfig
from genrl_objectives.common import ConfiguredObjective, Metrics, Reduction, Tensor, register


class Sft(ConfiguredObjective["SftConfig"]):
    """Minus the bound on the log-likelihood of the samples, whatever drew them."""

    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return batch.reduce(-batch.log_probs, self.config.reduce), {"bound": batch.log_probs}


@register("sft")
class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning: maximise the bound on the log-likelihood of the samples."""

    paper = "maximum likelihood"
    builds = Sft
    uses_reward = False
    reduce: Reduction = "sample_mean"

    def view_wanted(self) -> Literal["elbo"]:
        return "elbo"
