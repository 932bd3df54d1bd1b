"""The configs of the objectives that are not policy gradients over ratios, and of PPO."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Capability, ObjectiveConfig
from genrl_objectives.presets import (
    DELTA,
    EPSILON,
    OVER,
    REDUCE,
    Clip,
    Delta,
    Level,
    Over,
    Reduction,
)

if TYPE_CHECKING:
    from genrl_core import Objective

VIEW = "steps: the sampled trajectory; elbo: the finished sample"
Share = Annotated[float, Field(ge=0, le=1)]


class KlConfig(ObjectiveConfig):
    """KL divergence from the reference weights, estimated from the samples or in closed form."""

    paper = "Schulman 2020, Approximating KL divergence"
    uses_reward = False
    estimator: Literal["k1", "k2", "k3", "unbiased", "analytic"] = Field(
        "unbiased",
        description="unbiased has value and gradient of the reverse KL; analytic needs step_kl; "
        "k1 has no gradient on average, k3 that of the forward KL",
    )
    reduce: Reduction = Field("sample_mean", description="how terms become one number")

    def view_wanted(self) -> None:
        return None

    def compatible_views(self) -> tuple[Literal["steps", "elbo"], ...]:
        return ("steps",) if self.estimator == "analytic" else ("steps", "elbo")

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_KL} if self.estimator == "analytic" else ())

    def build(self) -> "Objective":
        from genrl_objectives.divergence import Kl

        return Kl(self)


class EntropyConfig(ObjectiveConfig):
    """Entropy bonus: `weight` times the mean entropy of the steps is added to what is maximised."""

    paper = "Williams and Peng 1991; arXiv 1602.01783"
    uses_reward = False
    reduce: Reduction = Field("token_mean", description="how terms become one number")

    def view_wanted(self) -> None:
        return None

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.ENTROPY})

    def build(self) -> "Objective":
        from genrl_objectives.divergence import Entropy

        return Entropy(self)


class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning: maximise the bound on the log-likelihood of the samples."""

    paper = "maximum likelihood"
    uses_reward = False
    reduce: Reduction = Field("sample_mean", description="how draws become one number")

    def view_wanted(self) -> Literal["elbo"]:
        return "elbo"

    def build(self) -> "Objective":
        from genrl_objectives.supervised import Sft

        return Sft(self)


class _WeightedConfig(ObjectiveConfig):
    """Maximum likelihood with weights that the rewards of a group give its samples."""

    view: Literal["elbo", "steps"] = Field("elbo", description=VIEW)
    reduce: Reduction = Field("sample_mean", description=REDUCE)

    def view_wanted(self) -> Literal["elbo", "steps"]:
        return self.view


class RwrConfig(_WeightedConfig):
    """Reward-weighted regression: likelihood weighted by the group's softmax of advantages."""

    paper = "Peters and Schaal 2007; arXiv 1910.00177"
    temperature: Clip = Field(
        1.0, description="advantages are divided by it; small ones follow the best sample"
    )

    def build(self) -> "Objective":
        from genrl_objectives.supervised import Rwr

        return Rwr(self)


class BestOfNConfig(_WeightedConfig):
    """Best of n (RAFT): likelihood of the best samples of each group, as if they were data."""

    paper = "arXiv 2304.06767"
    keep: Annotated[int, Field(ge=1)] = Field(1, description="samples kept of each group")

    def build(self) -> "Objective":
        from genrl_objectives.supervised import BestOfN

        return BestOfN(self)


class Wd1Config(_WeightedConfig):
    """wd1: raise what a group's softmax of advantages likes, lower what its opposite likes."""

    paper = "arXiv 2507.08838"
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "group_mean", "scale": "none"}
    temperature: Clip = Field(1.0, description="advantages are divided by it")

    def build(self) -> "Objective":
        from genrl_objectives.supervised import Wd1

        return Wd1(self)


class DpoConfig(ObjectiveConfig):
    """DPO and its kin, on line: the best against the worst sample of each group."""

    paper = "arXiv 2305.18290"
    view: Literal["steps", "elbo"] = Field("steps", description=VIEW)
    loss_type: Literal[
        "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
        "apo_zero", "apo_down",
    ] = Field("sigmoid", description="the loss of a pair; names as in TRL")  # fmt: skip
    beta: Clip = Field(
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

    def view_wanted(self) -> Literal["steps", "elbo"]:
        return self.view

    def build(self) -> "Objective":
        from genrl_objectives.preference import Dpo

        return Dpo(self)


class DgpoConfig(ObjectiveConfig):
    """DGPO: a group's samples against each other by their bounds, weighted by advantage."""

    paper = "arXiv 2510.08425"
    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std", "clip": 5.0}
    view: Literal["elbo", "steps"] = Field("elbo", description=VIEW)
    beta: Clip = Field(
        1.0, description="strength of the pull to the reference; squared errors want 10 to 100"
    )
    epsilon: Clip | None = Field(
        None, description="terms whose ratio to the weights before left 1 +- this are dropped"
    )
    reduce: Reduction = Field("sample_mean", description=REDUCE)

    def view_wanted(self) -> Literal["elbo", "steps"]:
        return self.view

    def build(self) -> "Objective":
        from genrl_objectives.preference import Dgpo

        return Dgpo(self)


class NftConfig(ObjectiveConfig):
    """NFT: fit good samples, and unfit bad ones, by predictions on either side of the old one."""

    paper = "arXiv 2509.16117"
    beta: Clip = Field(1.0, description="how far the current prediction stands in for either side")
    advantage_clip: Clip = Field(
        5.0, description="advantage at which a sample counts as wholly good, or wholly bad"
    )
    partner: Literal["lagging", "reference"] = Field(
        "lagging",
        description="the weights that are mixed in: the lagging ones, which then also draw "
        "(weights.lagging), or the fixed reference, with samples of the current ones",
    )
    pull: Annotated[float, Field(ge=0)] = Field(
        1e-4,
        description="factor of the mean squared distance to the reference's prediction (of about "
        "their KL in nats for logits); 0 leaves it and the reference out",
    )
    normalize: bool = Field(
        False,
        description="the paper's adaptive weight: squared errors of the clean sample over the mean "
        "absolute one (for diffusion)",
    )
    reduce: Reduction = Field("sample_mean", description=REDUCE)

    def view_wanted(self) -> Literal["denoising"]:
        return "denoising"

    def draws_with(self) -> Literal["current", "lagging"]:
        return "lagging" if self.partner == "lagging" else "current"

    def needs(self) -> frozenset[Capability]:
        return super().needs() | ({Capability.CLEAN_SAMPLE} if self.normalize else frozenset())

    def build(self) -> "Objective":
        from genrl_objectives.nft import Nft

        return Nft(self)


class PpoConfig(ObjectiveConfig):
    """PPO with a value of every step: clipped ratios, generalised advantages, clipped values."""

    paper = "arXiv 1707.06347"
    on_policy_gradient = True
    advantage_defaults: ClassVar[dict[str, Any]] = {"baseline": "none", "scale": "none"}
    epsilon: Clip = Field(description=EPSILON, json_schema_extra={"propose": 0.1})
    epsilon_high: Clip | None = Field(
        None, description="clip of the ratio above 1; silent: the same as epsilon"
    )
    delta: Delta | None = Field(10.0, description=DELTA)
    over: Over = Field("sum", description=OVER)
    gamma: Share = Field(1.0, description="discount from one step to the next")
    lam: Share = Field(0.95, description="decay of what later values say of a step (GAE)")
    vf_coef: Clip = Field(0.1, description="factor of the value loss")
    cliprange_value: Clip | None = Field(
        0.2, description="values move by at most this from the recorded ones; null: freely"
    )
    whiten: bool = Field(True, description="advantages get mean 0 and deviation 1 over all terms")
    reduce: Reduction = Field("token_mean", description=REDUCE)

    def needs(self) -> frozenset[Capability]:
        return super().needs() | {Capability.VALUE}

    def build(self) -> "Objective":
        from genrl_objectives.actor_critic import Ppo

        return Ppo(self)
