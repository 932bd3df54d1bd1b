"""The objective: likelihood of the samples that are better than their baseline."""

from pydantic import Field

from genrl_core import Batch, Metric, Objective, ObjectiveConfig, Register, hookimpl


class Winners(Objective):
    """``-max(A, 0)^power log p``: samples of a negative advantage are left out."""

    separable = True

    def __init__(self, config: "WinnersConfig") -> None:
        self.power = config.power

    def loss(self, batch: Batch):
        weight = batch.advantage.clamp(min=0).pow(self.power)
        loss = batch.reduce(-weight * batch.log_probs, "sum")
        return loss, {"won": (weight > 0).to(weight), "weight_max": Metric(weight, "max")}


class WinnersConfig(ObjectiveConfig):
    """Learns from samples that are better than their baseline, and from no others."""

    power: float = Field(1.0, gt=0, description="exponent of the advantage")

    def build(self) -> Objective:
        return Winners(self)


@hookimpl
def register_objectives(register: Register) -> None:
    register("winners", WinnersConfig)
