"""GRPO and its variants, and what every objective over ratios shares: one loss, many surrogates.

A config says how the ratio is taken, which surrogate turns ratios into a loss, how terms are
reduced, and what the advantage and the filter are where the recipe is silent. A recipe may override
every field. The KL to the reference is the objective ``kl``, mixed in.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field

from genrl_core import Batch, Capability, Metric
from genrl_objectives.common import (
    ConfiguredObjective,
    Delta,
    EitherViewConfig,
    Epsilon,
    EpsilonHigh,
    Level,
    Metrics,
    Over,
    Positive,
    Reduction,
    Tensor,
    register,
)


def ratio_metrics(batch: Batch, log_ratio: Tensor, held: Tensor) -> Metrics:
    """What every objective over ratios reports; ``held`` says where its gradient is held back."""
    from genrl_core.functional import beyond_bound, bounded_exp

    value = bounded_exp(log_ratio.detach())
    return {
        "ratio_mean": value,
        "ratio_max": Metric(value, "max"),
        "clip_fraction": held.to(value),
        "ratio_bounded": beyond_bound(log_ratio.detach()).to(value),
        "log_probs": batch.log_probs,
    }


class PolicyGradient(ConfiguredObjective["RatioConfig"]):
    """A surrogate over ratios to recorded log-densities, reduced (arXiv 2402.03300, eq. 3).

    The config chooses the ratio's level, the surrogate and the reduction. Mask-GRPO (arXiv
    2510.13418, eq. 10 to 12) is ``grpo`` over unmasking transitions, with ``epsilon: 0.1,
    epsilon_high: 0.2``. The surrogate acts per term, before any mean. The KL term of the papers is
    the objective ``kl``, mixed in by the recipe.
    """

    def __init__(self, config: "RatioConfig"):
        super().__init__(config)
        self.needs = config.fields_needed()
        self.separable = not config.couples()

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        from genrl_core.functional import log_ratio

        config, old = self.config, batch.need("old_log_probs")
        ratio = log_ratio(batch.log_probs, old, batch.events, batch.mask, config.level, config.over)
        entries, held = config.surrogate(batch, ratio)
        return batch.reduce(entries, config.reduce), ratio_metrics(batch, ratio, held)


class PolicyGradientConfig(EitherViewConfig):
    """What the policy-gradient objectives share, whether they use ratios or not."""

    on_policy_gradient: ClassVar[bool] = True
    reduce: Reduction = "sample_mean"


class RatioConfig(PolicyGradientConfig):
    """A surrogate over ratios to the weights that drew the sample."""

    builds = PolicyGradient
    level: Level = "term"
    over: Over = "sum"

    def fields_needed(self) -> frozenset[str]:
        """The fields of the batch that the surrogate reads."""
        return frozenset({"old_log_probs"})

    def couples(self) -> bool:
        """Whether the loss of a term depends on the other terms of its sample."""
        return self.level == "sequence"

    @abstractmethod
    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every term, and where its gradient is held back (bool): ``[T, B]`` each."""


class BehaviorKlConfig(RatioConfig):
    """A surrogate that also reads KL(old || current) of every step, which has a closed form."""

    view: Literal["steps"] = Field("steps", description="the sampled trajectory")
    level: Literal["term"] = Field("term", description="one ratio per term")
    over: Over = "mean"

    def needs(self) -> frozenset[Capability]:
        return super().needs() | {Capability.STEP_KL}

    def fields_needed(self) -> frozenset[str]:
        return frozenset({"old_log_probs", "kl_behavior"})

    def divergence(self, batch: Batch) -> Tensor:
        """KL(old || current) of every step, per event where the ratio is: ``[T, B]``."""
        kl = batch.need("kl_behavior")
        return kl / batch.events.clamp(min=1) if self.over == "mean" else kl


@register("grpo")
class GrpoConfig(RatioConfig):
    """GRPO: the clipped ratio to the weights that drew the sample, group-normalised advantages."""

    paper = "arXiv 2402.03300"
    epsilon: Epsilon
    epsilon_high: EpsilonHigh = None
    delta: Delta = 10.0

    def surrogate(self, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        from genrl_core.functional import clipped_surrogate, is_clipped

        clip = (self.epsilon, self.epsilon_high, self.delta)
        held = is_clipped(log_ratio.detach(), batch.advantage, *clip)
        return clipped_surrogate(log_ratio, batch.advantage, *clip), held


@register("dr_grpo")
class DrGrpoConfig(GrpoConfig):
    """Dr.GRPO: GRPO without its length and difficulty biases: centred rewards, constant divisor.

    The divisor is the number of terms of the longest sample; the paper's is the length limit.
    """

    paper = "arXiv 2503.20783"
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "group_mean", "scale": "none"}
    reduce: Reduction = "constant"


@register("bnpo")
class BnpoConfig(GrpoConfig):
    """BNPO: GRPO whose mean runs over all terms of the batch (the loss `bnpo` of TRL).

    Over the whole optimizer batch, where TRL takes each micro-batch's own count. The Beta
    normalisation of rewards in arXiv 2506.02864 is not part of it, here or there.
    """

    paper = "TRL's loss_type bnpo; arXiv 2506.02864"
    reduce: Reduction = "token_mean"


@register("dapo")
class DapoConfig(BnpoConfig):
    """DAPO: a mean over all terms, a higher upper clip, groups without a difference drawn again.

    Its clip-higher is ``epsilon_high`` above ``epsilon``: 0.28 and 0.2 for tokens. Overlong shaping
    is a reward's affair.
    """

    paper = "arXiv 2503.14476"
    filter_defaults: ClassVar[dict[str, Any]] = {"min_std": 0.0, "then": "resample"}


@register("gspo")
class GspoConfig(GrpoConfig):
    """GSPO: one ratio per sample, the geometric mean over its events."""

    paper = "arXiv 2507.18071"
    level: Level = "sequence"
    over: Over = "mean"
    epsilon: Positive = Field(
        description="clip of the mean ratio below 1; it has no default, because it shrinks with "
        "the number of events (3e-4 for a thousand tokens)",
        json_schema_extra={"propose": 3e-4},
    )
