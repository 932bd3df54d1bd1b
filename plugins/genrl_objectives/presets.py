"""The policy-gradient presets: one objective, and a row of choices for each published algorithm.

A preset is a config class. It says how the ratio is taken, which surrogate turns ratios into a
loss, how terms are reduced, and what the advantage and the filter are where the recipe is silent.
A recipe may override every field. The KL to the reference is the objective ``kl``, mixed in.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from genrl_core import Capability, ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor

    from genrl_core import Batch, Objective

Reduction = Literal["token_mean", "sample_mean", "constant", "sum", "group_mean"]
Level = Literal["term", "sequence"]
Over = Literal["sum", "mean"]
Clip = Annotated[float, Field(gt=0)]

REDUCE = "how terms become one number; denominators span the whole batch"
LEVEL = "one ratio per term, or one per sample that couples its terms (GSPO)"
OVER = "the log-ratio sums over a term's events, or is their mean"
EPSILON = (
    "clip of the ratio below 1; it has no default, because what a ratio means differs: a token "
    "(0.2), a sum over released tokens (0.1), a mean over latents (1e-4)"
)
Delta = Annotated[float, Field(gt=1)]
DELTA = (
    "largest ratio of a term with a negative advantage (two-sided or dual clip, arXiv 2505.07291); "
    "above 1 + epsilon_high, or it clips positive advantages; null: none, as most papers have it"
)
DELTA_ALONE = "largest ratio that multiplies a negative advantage; null: none, as the paper has it"


class PolicyGradientConfig(ObjectiveConfig):
    """What the policy-gradient presets share."""

    on_policy_gradient: ClassVar[bool] = True
    view: Literal["steps", "elbo"] = Field(
        "steps", description="steps: the sampled trajectory; elbo: the finished sample"
    )
    reduce: Reduction = Field("sample_mean", description=REDUCE)

    def view_wanted(self) -> Literal["steps", "elbo"]:
        return self.view


class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE: minus the log-density times the advantage, on policy."""

    paper = "Williams 1992, Machine Learning 8"

    def build(self) -> "Objective":
        from genrl_objectives.policy_gradient import Reinforce

        return Reinforce(self)


class RatioConfig(PolicyGradientConfig):
    """A surrogate over ratios to the weights that drew the sample."""

    level: Level = Field("term", description=LEVEL)
    over: Over = Field("sum", description=OVER)

    def fields_needed(self) -> frozenset[str]:
        """The fields of the batch that the surrogate reads."""
        return frozenset({"old_log_probs"})

    def couples(self) -> bool:
        """Whether the loss of a term depends on the other terms of its sample."""
        return self.level == "sequence"

    @abstractmethod
    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        """The loss of every term, and where its gradient is held back (bool): ``[T, B]`` each."""

    def build(self) -> "Objective":
        from genrl_objectives.policy_gradient import PolicyGradient

        return PolicyGradient(self)


class GrpoConfig(RatioConfig):
    """GRPO: the clipped ratio to the weights that drew the sample, group-normalised advantages."""

    paper = "arXiv 2402.03300"
    epsilon: Clip = Field(description=EPSILON, json_schema_extra={"propose": 0.1})
    epsilon_high: Clip | None = Field(
        None, description="clip of the ratio above 1; silent: the same as epsilon"
    )
    delta: Delta | None = Field(10.0, description=DELTA)

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        from genrl_core.functional import clipped_surrogate, is_clipped

        clip = (self.epsilon, self.epsilon_high, self.delta)
        held = is_clipped(log_ratio.detach(), batch.advantage, *clip)
        return clipped_surrogate(log_ratio, batch.advantage, *clip), held


class DrGrpoConfig(GrpoConfig):
    """Dr.GRPO: GRPO without its length and difficulty biases: centred rewards, constant divisor.

    The divisor is the number of terms of the longest sample; the paper's is the length limit.
    """

    paper = "arXiv 2503.20783"
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "group_mean", "scale": "none"}
    reduce: Reduction = Field("constant", description=REDUCE)


class BnpoConfig(GrpoConfig):
    """BNPO: GRPO whose mean runs over all terms of the batch (the loss `bnpo` of TRL).

    Over the whole optimizer batch, where TRL takes each micro-batch's own count. The Beta
    normalisation of rewards in arXiv 2506.02864 is not part of it, here or there.
    """

    paper = "TRL's loss_type bnpo; arXiv 2506.02864"
    reduce: Reduction = Field("token_mean", description=REDUCE)


class DapoConfig(BnpoConfig):
    """DAPO: a mean over all terms, a higher upper clip, groups without a difference drawn again.

    Its clip-higher is ``epsilon_high`` above ``epsilon``: 0.28 and 0.2 for tokens. Overlong shaping
    is a reward's affair.
    """

    paper = "arXiv 2503.14476"
    filter_defaults: ClassVar[dict[str, Any]] = {"min_std": 0.0, "then": "resample"}


class GspoConfig(GrpoConfig):
    """GSPO: one ratio per sample, the geometric mean over its events."""

    paper = "arXiv 2507.18071"
    level: Level = Field("sequence", description=LEVEL)
    over: Over = Field("mean", description=OVER)
    epsilon: Clip = Field(
        description="clip of the mean ratio below 1; it has no default, because it shrinks with "
        "the number of events (3e-4 for a thousand tokens)",
        json_schema_extra={"propose": 3e-4},
    )


class GmpoConfig(RatioConfig):
    """GMPO: the geometric mean of ratios that are clipped one by one, in log space.

    ``-A exp(sum_t clip(d_t) / n)``: the clip stops each log-ratio only the way its advantage pushes
    it, and comes before the mean over the n events of a sample. ``delta`` is not in the paper.
    """

    paper = "arXiv 2507.20673"
    level: Literal["term"] = Field("term", description="what is clipped, before the mean")
    over: Literal["sum"] = Field("sum", description="what is clipped, before the mean")
    epsilon: Clip = Field(
        description="clip of a term's log-ratio below 0, in nats; it has no default, because what "
        "a ratio means differs (0.4 for tokens)",
        json_schema_extra={"propose": 0.4},
    )
    epsilon_high: Clip | None = Field(
        None, description="clip of the log-ratio above 0; silent: the same as epsilon"
    )
    delta: Delta | None = Field(10.0, description=DELTA_ALONE)

    def couples(self) -> bool:
        return True

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        from genrl_core.functional import bounded_exp, capped_surrogate, is_capped, one_sided_clip
        from genrl_core.functional import log_ratio as difference

        clipped = one_sided_clip(log_ratio, batch.advantage, self.epsilon, self.epsilon_high)
        origin = clipped.new_zeros(())
        mean = difference(clipped, origin, batch.events, batch.mask, "sequence", "mean")
        ratio = bounded_exp(mean)
        held = (clipped != log_ratio) | is_capped(ratio.detach(), batch.advantage, self.delta)
        return capped_surrogate(ratio, batch.advantage, self.delta), held


class CispoConfig(RatioConfig):
    """CISPO: REINFORCE weighted by capped ratios, so that no term loses its gradient.

    In ``arXiv 2506.13585`` the cap is written ``1 + epsilon_high``; as in TRL it is the number
    itself, and one below 1 would cap samples that are on policy.
    """

    paper = "arXiv 2506.13585"
    reduce: Reduction = Field("token_mean", description=REDUCE)
    epsilon_high: float = Field(
        description="cap of the ratio itself, above 1; it has no default, because what a ratio "
        "means differs (5 for tokens)",
        json_schema_extra={"propose": 5.0},
    )

    @field_validator("epsilon_high")
    @classmethod
    def _above_one(cls, value: float) -> float:
        if value <= 1:
            raise ValueError(
                f"should be above 1, not {value:g}: it caps the ratio itself, which is 1 on "
                f"policy; {value:g} above 1 is written {1 + value:g}, and the usual cap is 5"
            )
        return value

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        from genrl_core.functional import bounded_exp, cispo_surrogate

        cap = self.epsilon_high
        loss = cispo_surrogate(batch.log_probs, log_ratio, batch.advantage, cap)
        return loss, bounded_exp(log_ratio.detach()) > cap


class SapoConfig(RatioConfig):
    """SAPO: a sigmoid gate in place of the clip; the gradient fades instead of stopping."""

    paper = "arXiv 2511.20347"
    temperature: Clip = Field(1.0, description="sharpness of the gate for positive advantages")
    temperature_negative: Clip = Field(1.05, description="the same for negative advantages")

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch

        from genrl_core.functional import sapo_surrogate

        tau = (self.temperature, self.temperature_negative)
        loss = sapo_surrogate(log_ratio, batch.advantage, *tau)
        return loss, torch.zeros_like(batch.mask)


class RlooConfig(GrpoConfig):
    """RLOO: the other samples' mean reward as the baseline, one ratio per sample."""

    paper = "arXiv 2402.14740"
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "leave_one_out", "scale": "none"}
    level: Level = Field("sequence", description=LEVEL)


class ReinforcePpConfig(GrpoConfig):
    """REINFORCE++: PPO's clip without a critic, rewards whitened over the whole batch.

    The paper whitens terms after a per-term KL penalty in the reward; here the penalty is the
    objective `kl`, and samples are whitened.
    """

    paper = "arXiv 2501.03262"
    advantage_defaults: ClassVar[dict[str, Any]] = {
        "baseline": "batch_mean", "scale": "batch_std", "epsilon": 1e-8,
    }  # fmt: skip
    reduce: Reduction = Field("token_mean", description=REDUCE)


class AwmConfig(GrpoConfig):
    """AWM: GRPO on a bound: ratios of finished samples on shared corruptions, advantages to 1.

    The paper's ``w(t)`` is the weight that the policy's bound gives a draw.
    """

    paper = "arXiv 2509.25050"
    advantage_defaults: ClassVar[dict[str, Any]] = {"clip": 1.0}
    view: Literal["steps", "elbo"] = Field(
        "elbo", description="elbo: the finished sample; steps: the sampled trajectory"
    )
    epsilon: Clip = Field(
        description="clip of the ratio below 1; it has no default, because what a bound measures "
        "differs (1 hardly clips)",
        json_schema_extra={"propose": 1.0},
    )


class _WithOldConfig(RatioConfig):
    view: Literal["steps"] = Field("steps", description="the sampled trajectory")
    level: Literal["term"] = Field("term", description="one ratio per term")
    over: Over = Field("mean", description=OVER)

    def needs(self) -> frozenset[Capability]:
        return super().needs() | {Capability.STEP_KL}

    def fields_needed(self) -> frozenset[str]:
        return frozenset({"old_log_probs", "kl_behavior"})

    def divergence(self, batch: "Batch") -> "Tensor":
        """KL(old || current) of every step, per event where the ratio is: ``[T, B]``."""
        kl = batch.need("kl_behavior")
        return kl / batch.events.clamp(min=1) if self.over == "mean" else kl


class GrpoGuardConfig(_WithOldConfig, GrpoConfig):
    """GRPO-Guard: ratios re-centred and rescaled, so that one clip range fits every step.

    ``r = exp(scale (d + KL(old || current)))``, scale being the sampler's (a diffusion step's noise
    level, or 1). The loss of a step is weighted by ``1 / |dt|``, the inverse of the share of the
    process's time that it covers (1 for samplers without a clock); denominators count terms, so
    that the weights are not normalised, as in the paper's code: of K even steps each weighs K.
    """

    paper = "arXiv 2510.22319"
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    weight_by_duration: bool = Field(
        default=True,
        description="weigh the loss of a step by 1 / |dt|, dt the share of the process's time, 0 "
        "to 1, that it covers; the weights are not normalised",
    )

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        from genrl_core.functional import recentred

        centred = recentred(log_ratio, self.divergence(batch), batch.scale)
        loss, held = super().surrogate(batch, centred)
        if self.weight_by_duration:  # what stands outside the mask may be 0
            loss = loss / batch.need("duration").masked_fill(~batch.mask, 1.0)
        return loss, held


class FlowDppoConfig(_WithOldConfig):
    """Flow-DPPO: no clip; a term that left the trust region may not move further away.

    ``-A r`` where ``KL(old || current) < threshold`` or the gradient leads back. ``delta`` is not
    in the paper.
    """

    paper = "arXiv 2606.11025"
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    threshold: Clip = Field(
        description="radius of the trust region in nats; it has no default, because it is per "
        "event with over: mean (1e-5 for latents) and per term with sum",
        json_schema_extra={"propose": 1e-2},
    )
    delta: Delta | None = Field(10.0, description=DELTA_ALONE)

    def surrogate(self, batch: "Batch", log_ratio: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch

        from genrl_core.functional import bounded_exp, capped_surrogate, is_capped, leaves_region

        kl, ratio = self.divergence(batch).detach(), bounded_exp(log_ratio)
        held = leaves_region(log_ratio.detach(), batch.advantage, kl, self.threshold)
        loss = capped_surrogate(ratio, batch.advantage, self.delta)
        loss = torch.where(held, torch.zeros_like(loss), loss)
        return loss, held | is_capped(ratio.detach(), batch.advantage, self.delta)
