"""PPO with a value per step."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrl_core import Batch, Metric, Objective
from genrl_core.functional import (
    beyond_bound,
    bounded_exp,
    clipped_surrogate,
    generalized_advantage,
    is_clipped,
    log_ratio,
    whiten,
)

if TYPE_CHECKING:
    from genrl_objectives.configs import PpoConfig


class Ppo(Objective):
    """The clipped surrogate plus a clipped value loss (arXiv 1707.06347; values as in TRL's PPO).

    The value loss is ``vf_coef / 2 max((V - R)^2, (clip(V) - R)^2)``, where ``clip`` keeps a value
    within ``cliprange_value`` of the recorded one. Advantages are GAE's over the values recorded
    when the sample was drawn, with its reward at the last term, and ``R = A + V_old``; the recipe's
    section ``advantage`` is not read. A KL in the reward is the objective ``kl`` instead. Where
    ``train.steps`` picks some calls, the values in between are skipped.
    """

    needs = frozenset({"old_log_probs", "value"})
    separable = True

    def __init__(self, config: "PpoConfig"):
        self._config = config

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor | Metric]]:
        config, value, recorded = self._config, batch.need("value"), batch.need("old_value")
        advantage = generalized_advantage(
            recorded, batch.reward.to(recorded), batch.step, batch.denominator_mask, config.gamma,
            config.lam,
        )  # fmt: skip
        target = advantage + recorded
        if config.whiten:
            advantage = whiten(advantage, batch.denominator_mask & batch.valid)
        ratio = log_ratio(
            batch.log_probs, batch.need("old_log_probs"), batch.events, batch.mask, over=config.over
        )
        clip = (config.epsilon, config.epsilon_high, config.delta)
        error = (value - target).square()
        if config.cliprange_value is not None:
            limit = config.cliprange_value
            near = recorded + (value - recorded).clamp(-limit, limit)
            error = torch.maximum(error, (near - target).square())
        entries = clipped_surrogate(ratio, advantage, *clip) + config.vf_coef / 2 * error
        moved = bounded_exp(ratio.detach())
        return batch.reduce(entries, config.reduce), {
            "ratio_mean": moved,
            "ratio_max": Metric(moved, "max"),
            "clip_fraction": is_clipped(ratio.detach(), advantage, *clip).to(moved),
            "ratio_bounded": beyond_bound(ratio.detach()).to(moved),
            "value_error": (value - target).square(),
            "log_probs": batch.log_probs,
        }
