"""The entropy of the steps."""

from genrl_core import Batch, Capability, ObjectiveConfig
from genrl_objectives.common import ConfiguredObjective, Metrics, Reduction, Tensor, register


class Entropy(ConfiguredObjective["EntropyConfig"]):
    """Minus the entropy of every step, reduced: a bonus whose size is the objective's weight.

    On policy the gradient is that of the steps' own entropies; that of the states they lead to is
    left out, as everywhere (arXiv 1602.01783, section 4).
    """

    needs = frozenset({"entropy"})
    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return -batch.reduce(batch.need("entropy"), self.config.reduce), {}


@register("entropy")
class EntropyConfig(ObjectiveConfig):
    """Entropy bonus: `weight` times the mean entropy of the steps is added to what is maximised."""

    paper = "Williams and Peng 1991; arXiv 1602.01783"
    builds = Entropy
    uses_reward = False
    reduce: Reduction = "token_mean"

    def view_wanted(self) -> None:
        return None

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.ENTROPY})
