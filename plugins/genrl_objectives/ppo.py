"""PPO with a value of every step."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from genrl_core import Batch, Capability, ObjectiveConfig
from genrl_objectives.common import (
    ConfiguredObjective,
    Delta,
    Epsilon,
    EpsilonHigh,
    Metrics,
    Over,
    Positive,
    Reduction,
    Tensor,
    register,
)
from genrl_objectives.grpo import ratio_metrics

Share = Annotated[float, Field(ge=0, le=1)]


class Ppo(ConfiguredObjective["PpoConfig"]):
    """The clipped surrogate plus a clipped value loss (arXiv 1707.06347; values as in TRL's PPO).

    The value loss is ``vf_coef / 2 max((V - R)^2, (clip(V) - R)^2)``, where ``clip`` keeps a value
    within ``cliprange_value`` of the recorded one. Advantages are GAE's over the values recorded
    when the sample was drawn, with its reward at the last term, and ``R = A + V_old``; the recipe's
    section ``advantage`` is not read. A KL in the reward is the objective ``kl`` instead. Where
    ``train.steps`` picks some calls, the values in between are skipped.
    """

    needs = frozenset({"old_log_probs", "value"})
    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        from genrl_core.functional import clipped_surrogate, is_clipped, log_ratio, whiten

        config, value, recorded = self.config, batch.need("value"), batch.need("old_value")
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
            error = error.maximum((near - target).square())
        entries = clipped_surrogate(ratio, advantage, *clip) + config.vf_coef / 2 * error
        metrics = ratio_metrics(batch, ratio, is_clipped(ratio.detach(), advantage, *clip))
        metrics["value_error"] = (value - target).square()
        return batch.reduce(entries, config.reduce), metrics


@register("ppo")
class PpoConfig(ObjectiveConfig):
    """PPO with a value of every step: clipped ratios, generalised advantages, clipped values."""

    paper = "arXiv 1707.06347"
    builds = Ppo
    on_policy_gradient = True
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "none", "scale": "none"}
    epsilon: Epsilon
    epsilon_high: EpsilonHigh = None
    delta: Delta = 10.0
    over: Over = "sum"
    gamma: Share = Field(1.0, description="discount from one step to the next")
    lam: Share = Field(0.95, description="decay of what later values say of a step (GAE)")
    vf_coef: Positive = Field(0.1, description="factor of the value loss")
    cliprange_value: Positive | None = Field(
        0.2, description="values move by at most this from the recorded ones; null: freely"
    )
    whiten: bool = Field(True, description="advantages get mean 0 and deviation 1 over all terms")
    reduce: Reduction = "token_mean"

    def needs(self) -> frozenset[Capability]:
        return super().needs() | {Capability.VALUE}


def generalized_advantage(
    value: Tensor, reward: Tensor, step: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    """Advantages of terms from the values of their states (GAE, arXiv 1506.02438, eq. 16).

    ``delta_t = gamma V_{t+1} - V_t``, with the sample's reward in place of the next value at its
    last term, and ``A_t = delta_t + gamma lam A_{t+1}``. Terms of one step share its state: between
    them nothing is discounted.

    Args:
        value: ``[T, B]`` as recorded, terms in the order of time.
        reward: ``[B]``, given at the end.
        step: ``[T, B]`` int64.
        mask: ``[T, B]`` bool; terms outside it do not exist.
        gamma, lam: the discount, and the decay of what later values say.

    Returns:
        ``[T, B]``, 0 outside the mask.
    """
    import torch

    found, running, following = torch.zeros_like(value), torch.zeros_like(reward), reward
    seen, after = torch.zeros_like(mask[0]), torch.full_like(step[0], -1)
    for t in reversed(range(len(value))):
        here = mask[t]
        moves = (seen & (step[t] != after)).to(value)
        delta = (1 - moves * (1 - gamma)) * following - value[t]
        advantage = delta + (1 - moves * (1 - gamma * lam)) * running
        found[t] = torch.where(here, advantage, found[t])
        running = torch.where(here, advantage, running)
        following = torch.where(here, value[t], following)
        seen, after = seen | here, torch.where(here, step[t], after)
    return found
