"""DGPO: preferences of whole groups."""

from typing import Any, ClassVar

from pydantic import Field

from genrl_core import Batch
from genrl_objectives.common import (
    AnyView,
    ConfiguredObjective,
    EitherViewConfig,
    Metrics,
    Positive,
    Reduction,
    Tensor,
    register,
)


class Dgpo(ConfiguredObjective["DgpoConfig"]):
    """Group preference on bounds (arXiv 2510.08425): ``sg(sigmoid(u)) A e``, reduced.

    ``e = -log p`` and ``u = beta mean_G(A (e - e_reference))``, term by term, which is draw by draw
    where a bound has one term: up to the factor beta the gradient of ``-log sigmoid(-u)``, the
    chance that the group's good samples beat its bad ones. ``epsilon`` drops terms whose ratio to
    the weights before this iteration left its range the way the advantage pushes. The paper shares
    time and noise inside a group: that is the corruption's affair.
    """

    def __init__(self, config: "DgpoConfig"):
        super().__init__(config)
        ratio = {"old_log_probs"} if config.epsilon is not None else set()
        self.needs = frozenset({"reference", *ratio})

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        from genrl_core.functional import group_mean, is_clipped

        config = self.config
        gap = (batch.need("reference") - batch.log_probs).detach() * batch.advantage
        weight = (config.beta * group_mean(gap, batch.group, batch.mask & batch.valid)).sigmoid()
        entries = -weight * batch.advantage * batch.log_probs
        if config.epsilon is not None:
            ratio = (batch.log_probs - batch.need("old_log_probs")).detach()
            entries = entries.masked_fill(is_clipped(ratio, batch.advantage, config.epsilon), 0.0)
        loss = batch.reduce(entries, config.reduce)
        return loss, {"group_weight": weight, "bound": batch.log_probs}


@register("dgpo")
class DgpoConfig(EitherViewConfig):
    """DGPO: a group's samples against each other by their bounds, weighted by advantage."""

    paper = "arXiv 2510.08425"
    builds = Dgpo
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    view: AnyView = "elbo"
    beta: Positive = Field(
        1.0, description="strength of the pull to the reference; squared errors want 10 to 100"
    )
    epsilon: Positive | None = Field(
        None, description="terms whose ratio to the weights before left 1 +- this are dropped"
    )
    reduce: Reduction = "sample_mean"
