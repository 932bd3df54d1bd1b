"""DPO and its kin: the best against the worst sample of each group."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrl_core import Batch
from genrl_objectives.common import (
    ConfiguredObjective,
    EitherViewConfig,
    Level,
    Metrics,
    Over,
    Positive,
    Tensor,
    register,
)

Preference = Literal[
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down",
]  # fmt: skip


class Dpo(ConfiguredObjective["DpoConfig"]):
    """The mean of ``preference_loss`` over pairs (arXiv 2305.18290, eq. 7, and its successors).

    A pair is the best and the worst sample of a group by reward, drawn by the policy itself; a
    group without a difference gives none. With ``view: steps`` a sample's score is its path's
    log-density against the reference, with ``view: elbo`` the mean of its draws' bounds (D3PO-like
    and Diffusion-DPO-like: two objectives of one formula). ``level: term`` compares the n-th terms
    of both samples (D3PO, arXiv 2311.13231, which also clips each ratio; its log-densities are
    means over a step's elements: ``over: mean``).
    """

    needs = frozenset({"reference"})

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        config = self.config
        score, both = self._scores(batch), batch.mask
        if config.level == "sequence":
            score, both = score.sum(0, keepdim=True), both.any(0, keepdim=True)
        best, worst = group_extremes(batch.reward, batch.group, batch.valid)
        chosen, rejected, paired = score[:, best], score[:, worst], both[:, best] & both[:, worst]
        losses = preference_loss(
            chosen, rejected, config.beta, config.loss_type, config.label_smoothing
        )
        count = paired.sum().clamp(min=1)
        margin = ((chosen - rejected).masked_fill(~paired, 0.0).sum() / count).detach()
        total = losses.masked_fill(~paired, 0.0).sum() / count
        return total, {"margin": margin.expand_as(batch.reward), "log_probs": batch.log_probs}

    def _scores(self, batch: Batch) -> Tensor:
        """Log-ratios to the reference, so that the sum over a sample's terms is its score."""
        config = self.config
        gap = batch.log_probs - batch.need("reference")
        if config.ratio_clip is not None:
            # Of the ratio that is compared: per event with over: mean.
            events = batch.events.clamp(min=1) if config.over == "mean" else 1
            low, high = math.log1p(-config.ratio_clip), math.log1p(config.ratio_clip)
            gap = (gap / events).clamp(low, high) * events
        if config.level == "sequence" or batch.view == "elbo":
            gap = gap * batch.weight
        gap = gap.masked_fill(~batch.mask, 0.0)
        if config.over == "sum" and batch.view == "elbo" and config.level == "sequence":
            return gap / (batch.step.max() + 1)  # of a bound the step is the draw
        if config.over == "sum":
            return gap
        events = batch.events.masked_fill(~batch.mask, 0)
        if config.level == "sequence":
            events = events.sum(0, keepdim=True)
        return gap / events.clamp(min=1)


@register("dpo")
class DpoConfig(EitherViewConfig):
    """DPO and its kin, on line: the best against the worst sample of each group."""

    paper = "arXiv 2305.18290"
    builds = Dpo
    loss_type: Preference = Field("sigmoid", description="the loss of a pair; names as in TRL")
    beta: Positive = Field(
        0.1,
        description="strength of the pull to the reference, per nat; squared errors as a bound "
        "want thousands",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs believed to be the wrong way round: robust and exo_pair"
    )
    level: Level = Field(
        "sequence", description="compare whole samples, or term by term (D3PO, arXiv 2311.13231)"
    )
    over: Over = Field(
        "sum", description="log-densities are summed over events, or averaged (TRL's ipo does)"
    )
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="every term's ratio to the reference, per event with over: mean, is clipped to "
        "1 +- this (D3PO: 0.1)",
    )

    @model_validator(mode="after")
    def _smoothing(self) -> "DpoConfig":
        if self.label_smoothing and self.loss_type not in ("robust", "exo_pair"):
            raise ValueError(f"label_smoothing means nothing to loss_type: {self.loss_type}")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type: exo_pair needs label_smoothing above 0, such as 1e-3")
        return self


def group_extremes(reward: Tensor, group: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the best and the worst valid sample of every group that has a difference.

    Args:
        reward: ``[B]``.
        group: ``[B]`` int64.
        valid: ``[B]`` bool.

    Returns:
        Two ``[P]`` int64; a group whose rewards are all equal gives no pair.
    """
    import torch

    pairs = []
    for slot in sorted(set(group[valid].tolist())):
        inside = ((group == slot) & valid).nonzero().flatten()
        best, worst = inside[reward[inside].argmax()], inside[reward[inside].argmin()]
        if reward[best] > reward[worst]:
            pairs.append(torch.stack([best, worst]))
    found = torch.stack(pairs) if pairs else group.new_zeros(0, 2)
    return found[:, 0], found[:, 1]


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    loss_type: Preference = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of a pair, from ``c`` and ``e``: the log-ratios to the reference of both samples.

    With ``D = c - e``, ``b = beta``, ``s = label_smoothing`` and ``ls = log sigmoid``:

    - ``sigmoid`` ``-ls(b D)`` (DPO, arXiv 2305.18290)
    - ``ipo`` ``(D - 1 / (2 b))^2`` (arXiv 2310.12036)
    - ``hinge`` ``max(0, 1 - b D)`` (SLiC, arXiv 2305.10425)
    - ``robust`` ``(-(1 - s) ls(b D) + s ls(-b D)) / (1 - 2 s)`` (arXiv 2403.00409)
    - ``exo_pair`` ``KL((sigmoid(b D), sigmoid(-b D)) || (1 - s, s))`` (arXiv 2402.00856)
    - ``nca_pair`` ``-ls(b c) - ls(-b c) / 2 - ls(-b e) / 2`` (arXiv 2402.05369)
    - ``bco_pair`` ``-ls(b c) - ls(-b e)`` (arXiv 2404.04656, without its running shift)
    - ``sppo_hard`` ``(c - 1 / (2 b))^2 + (e + 1 / (2 b))^2`` (arXiv 2405.00675)
    - ``apo_zero`` ``1 - sigmoid(b c) + sigmoid(b e)``, ``apo_down`` ``sigmoid(b c) + 1 -
      sigmoid(b D)`` (arXiv 2408.06266)
    """
    from torch.nn.functional import logsigmoid

    s, margin = label_smoothing, beta * (chosen - rejected)
    up, down = logsigmoid(margin), logsigmoid(-margin)
    good, bad = beta * chosen, beta * rejected
    match loss_type:
        case "sigmoid":
            return -up
        case "ipo":
            return (chosen - rejected - 0.5 / beta).square()
        case "hinge":
            return (1 - margin).clamp(min=0)
        case "robust":
            return (s * down - (1 - s) * up) / (1 - 2 * s)
        case "exo_pair":
            return up.exp() * (up - math.log1p(-s)) + down.exp() * (down - math.log(s))
        case "nca_pair":
            return -logsigmoid(good) - (logsigmoid(-good) + logsigmoid(-bad)) / 2
        case "bco_pair":
            return -logsigmoid(good) - logsigmoid(-bad)
        case "sppo_hard":
            return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
        case "apo_zero":
            return 1 - good.sigmoid() + bad.sigmoid()
        case "apo_down":
            return good.sigmoid() + 1 - margin.sigmoid()
