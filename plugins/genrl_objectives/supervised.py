"""Maximum likelihood of the samples, plain or weighted by the rewards of their group."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrl_core import Batch, Metric, Objective
from genrl_core.functional import group_mean, group_softmax

if TYPE_CHECKING:
    from genrl_objectives.configs import BestOfNConfig, RwrConfig, SftConfig, Wd1Config


class Sft(Objective):
    """Minus the bound on the log-likelihood of the samples, whatever drew them."""

    separable = True

    def __init__(self, config: "SftConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | Metric]]:
        return batch.reduce(-batch.log_probs, self._config.reduce), {"bound": batch.log_probs}


class _Weighted(Objective):
    """``-w log p`` with constant weights, of mean 1 in a group (0 where they take both signs)."""

    separable = True

    def __init__(self, config: "RwrConfig | BestOfNConfig | Wd1Config"):
        self._reduce = config.reduce

    @abstractmethod
    def weights(self, batch: Batch) -> Tensor:
        """The weight of every term, ``[T, B]``."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | Metric]]:
        weights = self.weights(batch)
        loss = batch.reduce(-weights * batch.log_probs, self._reduce)
        return loss, {"weight_max": Metric(weights, "max"), "bound": batch.log_probs}


class Rwr(_Weighted):
    """``w = G softmax_G(A / temperature)`` (Peters and Schaal 2007, AWR arXiv 1910.00177).

    With ``advantage.scale: none`` the softmax is that of the rewards. The papers' normaliser runs
    over all samples of a state; that is the group here.
    """

    def __init__(self, config: "RwrConfig"):
        super().__init__(config)
        self._temperature = config.temperature

    def weights(self, batch: Batch) -> Tensor:
        return group_softmax(batch.advantage / self._temperature, batch.group, batch.valid)


class BestOfN(_Weighted):
    """``w = 1`` for the ``keep`` best of a group, scaled to mean 1 (RAFT, arXiv 2304.06767).

    Of equal rewards the earlier sample counts as the better one.
    """

    def __init__(self, config: "BestOfNConfig"):
        super().__init__(config)
        self._keep = config.keep

    def weights(self, batch: Batch) -> Tensor:
        reward = torch.where(batch.valid, batch.reward, torch.full_like(batch.reward, -torch.inf))
        order = reward.argsort(descending=True, stable=True)
        order = order[batch.group[order].argsort(stable=True)]  # group by group, best first
        weight_sets = batch.group[order]
        place = torch.arange(len(order)) - torch.searchsorted(weight_sets, weight_sets)
        best = torch.empty_like(reward).index_copy(0, order, (place < self._keep).to(reward))
        best = (best * batch.valid).unsqueeze(0)
        share = group_mean(best, batch.group, batch.valid)
        return (best / share.clamp(min=1e-9)).expand_as(batch.log_probs)


class Wd1(_Weighted):
    """``w = G softmax_G(A / temperature) - G softmax_G(-A / temperature)`` (arXiv 2507.08838).

    The ratio-free loss ``-sum w+ log p + sum w- log p`` of a group, divided by its size. The
    paper's mixture with the reference inside the weights is left out.
    """

    def __init__(self, config: "Wd1Config"):
        super().__init__(config)
        self._temperature = config.temperature

    def weights(self, batch: Batch) -> Tensor:
        advantage = batch.advantage / self._temperature
        good = group_softmax(advantage, batch.group, batch.valid)
        return good - group_softmax(-advantage, batch.group, batch.valid)
