"""Preferences inside a group: DPO on pairs, DGPO on whole groups."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrl_core import Batch, Objective
from genrl_core.functional import group_extremes, group_mean, is_clipped, preference_loss

if TYPE_CHECKING:
    from genrl_objectives.configs import DgpoConfig, DpoConfig


class Dpo(Objective):
    """The mean of ``preference_loss`` over pairs (arXiv 2305.18290, eq. 7, and its successors).

    A pair is the best and the worst sample of a group by reward, drawn by the policy itself; a
    group without a difference gives none. With ``view: steps`` a sample's score is its path's
    log-density against the reference, with ``view: elbo`` the mean of its draws' bounds (D3PO-like
    and Diffusion-DPO-like: two objectives of one formula). ``level: term`` compares the n-th terms
    of both samples (D3PO, arXiv 2311.13231, which also clips each ratio; its log-densities are
    means over a step's elements: ``over: mean``).
    """

    needs = frozenset({"reference"})

    def __init__(self, config: "DpoConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        score, both = self._scores(batch), batch.mask
        if config.level == "sequence":
            score, both = score.sum(0, keepdim=True), both.any(0, keepdim=True)
        best, worst = group_extremes(batch.reward, batch.group, batch.valid)
        chosen, rejected, paired = score[:, best], score[:, worst], both[:, best] & both[:, worst]
        losses = preference_loss(
            chosen, rejected, config.beta, config.loss_type, config.label_smoothing
        )
        count = paired.sum().clamp(min=1)
        margin = (torch.where(paired, chosen - rejected, 0.0).sum() / count).detach()
        total = torch.where(paired, losses, torch.zeros_like(losses)).sum() / count
        return total, {"margin": margin.expand_as(batch.reward), "log_probs": batch.log_probs}

    def _scores(self, batch: Batch) -> Tensor:
        """Log-ratios to the reference, so that the sum over a sample's terms is its score."""
        config = self._config
        gap = batch.log_probs - batch.need("reference")
        if config.ratio_clip is not None:
            # Of the ratio that is compared: per event with over: mean.
            events = batch.events.clamp(min=1) if config.over == "mean" else 1
            low, high = math.log1p(-config.ratio_clip), math.log1p(config.ratio_clip)
            gap = (gap / events).clamp(low, high) * events
        if config.level == "sequence" or batch.view == "elbo":
            gap = gap * batch.weight
        gap = torch.where(batch.mask, gap, torch.zeros_like(gap))
        if config.over == "sum" and batch.view == "elbo" and config.level == "sequence":
            return gap / (batch.step.max() + 1)  # of a bound the step is the draw
        if config.over == "sum":
            return gap
        events = torch.where(batch.mask, batch.events, torch.zeros_like(batch.events))
        if config.level == "sequence":
            events = events.sum(0, keepdim=True)
        return gap / events.clamp(min=1)


class Dgpo(Objective):
    """Group preference on bounds (arXiv 2510.08425): ``sg(sigmoid(u)) A e``, reduced.

    ``e = -log p`` and ``u = beta mean_G(A (e - e_reference))``, term by term, which is draw by draw
    where a bound has one term: up to the factor beta the gradient of ``-log sigmoid(-u)``, the
    chance that the group's good samples beat its bad ones. ``epsilon`` drops terms whose ratio to
    the weights before this iteration left its range the way the advantage pushes. The paper shares
    time and noise inside a group: that is the corruption's affair.
    """

    def __init__(self, config: "DgpoConfig"):
        self.needs = frozenset(
            {"reference"} | ({"old_log_probs"} if config.epsilon is not None else set())
        )
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        gap = (batch.need("reference") - batch.log_probs).detach() * batch.advantage
        weight = (config.beta * group_mean(gap, batch.group, batch.mask & batch.valid)).sigmoid()
        entries = -weight * batch.advantage * batch.log_probs
        if config.epsilon is not None:
            ratio = (batch.log_probs - batch.need("old_log_probs")).detach()
            held = is_clipped(ratio, batch.advantage, config.epsilon)
            entries = torch.where(held, torch.zeros_like(entries), entries)
        loss = batch.reduce(entries, config.reduce)
        return loss, {"group_weight": weight, "bound": batch.log_probs}
