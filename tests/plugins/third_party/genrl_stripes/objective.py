"""The objective: REINFORCE that may learn from samples of slightly older weights."""

from pydantic import Field

from genrl_core import Batch, Objective, ObjectiveConfig, Register, hookimpl


class Truncated(Objective):
    """``-min(r, c) A log p``: r the ratio of new to old density, held constant, c the ceiling.

    IMPALA's policy gradient (arXiv 1802.01561, section 4.2) with the recipe's advantage A.
    """

    needs = frozenset({"old_log_probs"})

    def __init__(self, ceiling: float) -> None:
        self.ceiling = ceiling

    def loss(self, batch: Batch):
        from genrl_core.functional import bounded_exp, log_ratio

        old = batch.need("old_log_probs")
        ratio = bounded_exp(log_ratio(batch.log_probs, old, batch.events, batch.mask).detach())
        loss = batch.reduce(-ratio.clamp(max=self.ceiling) * batch.advantage * batch.log_probs)
        return loss, {"ratio_mean": ratio, "clip_fraction": (ratio > self.ceiling).to(ratio)}


class TruncatedConfig(ObjectiveConfig):
    """REINFORCE with importance weights that are cut off at a ceiling."""

    paper = "arXiv 1802.01561"
    ceiling: float = Field(gt=0, description="largest weight", json_schema_extra={"propose": 2.0})

    def build(self) -> Objective:
        return Truncated(self.ceiling)


@hookimpl
def register_objectives(register: Register) -> None:
    register("truncated", TruncatedConfig)
