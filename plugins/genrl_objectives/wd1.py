"""wd1: maximum likelihood with weights of both signs."""

from typing import Any, ClassVar

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import Positive, Tensor, register
from genrl_objectives.rwr import Weighted, WeightedConfig, group_softmax


class Wd1(Weighted["Wd1Config"]):
    """``w = G softmax_G(A / temperature) - G softmax_G(-A / temperature)`` (arXiv 2507.08838).

    The ratio-free loss ``-sum w+ log p + sum w- log p`` of a group, divided by its size. The
    paper's mixture with the reference inside the weights is left out.
    """

    def weights(self, batch: Batch) -> Tensor:
        advantage = batch.advantage / self.config.temperature
        good = group_softmax(advantage, batch.group, batch.valid)
        return good - group_softmax(-advantage, batch.group, batch.valid)


@register("wd1")
class Wd1Config(WeightedConfig):
    """wd1: raise what a group's softmax of advantages likes, lower what its opposite likes."""

    paper = "arXiv 2507.08838"
    builds = Wd1
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "group_mean", "scale": "none"}
    temperature: Positive = Field(1.0, description="advantages are divided by it")
