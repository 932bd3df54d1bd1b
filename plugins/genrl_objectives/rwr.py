"""Maximum likelihood with weights from the rewards of a group: RWR and best of n."""

from abc import abstractmethod
from typing import Annotated, TypeVar

from pydantic import Field

from genrl_core import Batch, Metric
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


class WeightedConfig(EitherViewConfig):
    """What objectives share whose loss is a weighted likelihood."""

    view: AnyView = "elbo"
    reduce: Reduction = "sample_mean"


Config = TypeVar("Config", bound=WeightedConfig)


class Weighted(ConfiguredObjective[Config]):
    """``-w log p`` with constant weights, of mean 1 in a group (0 where they take both signs)."""

    separable = True

    @abstractmethod
    def weights(self, batch: Batch) -> Tensor:
        """The weight of every term, ``[T, B]``."""

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        weights = self.weights(batch)
        loss = batch.reduce(-weights * batch.log_probs, self.config.reduce)
        return loss, {"weight_max": Metric(weights, "max"), "bound": batch.log_probs}


class Rwr(Weighted["RwrConfig"]):
    """``w = G softmax_G(A / temperature)`` (Peters and Schaal 2007, AWR arXiv 1910.00177).

    With ``advantage.scale: none`` the softmax is that of the rewards. The papers' normaliser runs
    over all samples of a state; that is the group here.
    """

    def weights(self, batch: Batch) -> Tensor:
        return group_softmax(batch.advantage / self.config.temperature, batch.group, batch.valid)


@register("rwr")
class RwrConfig(WeightedConfig):
    """Reward-weighted regression: likelihood weighted by the group's softmax of advantages."""

    paper = "Peters and Schaal 2007; arXiv 1910.00177"
    builds = Rwr
    temperature: Positive = Field(
        1.0, description="advantages are divided by it; small ones follow the best sample"
    )


class BestOfN(Weighted["BestOfNConfig"]):
    """``w = 1`` for the ``keep`` best of a group, scaled to mean 1 (RAFT, arXiv 2304.06767).

    Of equal rewards the earlier sample counts as the better one.
    """

    def weights(self, batch: Batch) -> Tensor:
        import torch

        from genrl_core.functional import group_mean

        reward = batch.reward.masked_fill(~batch.valid, -torch.inf)
        order = reward.argsort(descending=True, stable=True)
        order = order[batch.group[order].argsort(stable=True)]  # group by group, best first
        groups = batch.group[order]
        place = torch.arange(len(order)) - torch.searchsorted(groups, groups)
        chosen = (place < self.config.keep).to(reward)
        best = torch.empty_like(reward).index_copy(0, order, chosen)
        best = (best * batch.valid).unsqueeze(0)
        share = group_mean(best, batch.group, batch.valid)
        return (best / share.clamp(min=1e-9)).expand_as(batch.log_probs)


@register("best_of_n")
class BestOfNConfig(WeightedConfig):
    """Best of n (RAFT): likelihood of the best samples of each group, as if they were data."""

    paper = "arXiv 2304.06767"
    builds = BestOfN
    keep: Annotated[int, Field(ge=1)] = Field(1, description="samples kept of each group")


def group_softmax(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """``G softmax`` of ``x`` (``[T, B]``) over the G valid samples of each group, row by row.

    The weights of a group have mean 1; samples that are not valid weigh 0.
    """
    import torch

    from genrl_core.functional import group_mean

    slots = int(group.max()) + 1 if group.numel() else 0
    index = group.expand_as(x)
    kept = torch.where(valid, x, torch.full_like(x, -torch.inf))
    top = x.new_full((len(x), slots), -torch.inf).scatter_reduce(1, index, kept, "amax")
    mass = torch.where(valid, (kept - top.gather(1, index)).exp(), torch.zeros_like(x))
    return mass / group_mean(mass, group, valid).clamp(min=torch.finfo(x.dtype).tiny)
