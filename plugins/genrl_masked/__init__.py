"""Masked generative models: the policy base, Mask-GRPO's confidence sampler, random release.

This entry module holds configs and hooks only and loads no torch. The classes and pure functions
behind them are reached under the same names, ``from genrl_masked import MaskedPolicy``, and are
imported on first use.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import (
    Capability,
    PolicyConfig,
    Register,
    SamplerConfig,
    Schema,
    hookimpl,
    lazy_names,
)

if TYPE_CHECKING:
    from genrl_masked.corruption import log_level_weight as log_level_weight
    from genrl_masked.corruption import remasked as remasked
    from genrl_masked.policy import MaskedPolicy as MaskedPolicy
    from genrl_masked.policy import at_positions as at_positions
    from genrl_masked.policy import guided_logits as guided_logits
    from genrl_masked.release import RandomReleaseSampler as RandomReleaseSampler
    from genrl_masked.release import RandomReleaseTransition as RandomReleaseTransition
    from genrl_masked.sampler import ConfidenceSampler as ConfidenceSampler
    from genrl_masked.sampler import ConfidenceTransition as ConfidenceTransition
    from genrl_masked.sampler import UnmaskingSampler as UnmaskingSampler
    from genrl_masked.schedule import gumbel_temperatures as gumbel_temperatures
    from genrl_masked.schedule import masked_fraction as masked_fraction
    from genrl_masked.schedule import release_chances as release_chances
    from genrl_masked.schedule import released_counts as released_counts

_HOMES = {
    "MaskedPolicy": "policy", "at_positions": "policy", "guided_logits": "policy",
    "log_level_weight": "corruption", "remasked": "corruption",
    "ConfidenceSampler": "sampler", "ConfidenceTransition": "sampler",
    "UnmaskingSampler": "sampler",
    "RandomReleaseSampler": "release", "RandomReleaseTransition": "release",
    "release_chances": "schedule", "released_counts": "schedule",
    "masked_fraction": "schedule", "gumbel_temperatures": "schedule",
    "transitions": "",
}  # fmt: skip

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


__getattr__ = lazy_names(__name__, _HOMES)


Masking = Literal["cosine", "uniform", "full", "structured", "rising", "complement", "quadrature"]


class ElboConfig(Schema):
    """How a finished sample is masked again, and how its masked cross-entropy becomes a bound."""

    masking: Masking = Field(
        "cosine",
        description="how many of the N positions are masked: ceil(N cos(pi u / 2)) with u uniform "
        "on [0, 1), as MaskGIT trains (cosine); each of 1..N equally often (uniform); all (full, "
        "diffu-GRPO); a ratio that rises evenly over the updates of an iteration, from a uniform "
        "one to 1 (structured, UniGRPO), or from above 0.8 to 0.999 (rising, MaskGRPO); all, "
        "then each with probability t uniform on 0.2..0.8, "
        "then the others, in three draws (complement, coupled-GRPO); each with probability t at "
        "the Gauss-Legendre nodes of 0..1, one draw per node (quadrature, GDPO)",
    )
    weighting: Literal["mean", "elbo"] = Field(
        "mean",
        description="mean: N times the mean cross-entropy of the masked positions, in nats; elbo: "
        "the same times the importance that makes its expectation a lower bound on the "
        "log-likelihood (1 / mask ratio per position under uniform masking, where the two agree); "
        "complement and quadrature have weights of their own, 1 / t per position",
    )
    granularity: Literal["sample", "token"] = Field(
        "sample",
        description="one term per draw, or one per masked position: its log-probability, with the "
        "weights above inside where they make a sum (combine, elbo, complement, quadrature)",
    )
    combine: bool = Field(
        default=False,
        description="whether several draws are summed, with their weights, into one term per "
        "sample (per position with granularity: token), or are separate terms",
    )
    shared_by_group: bool = Field(
        default=False, description="whether all samples of a group have the same masks"
    )
    prompt_masking: Share = Field(
        0.0,
        description="probability that a token of the prompt is hidden too, anew for every draw and "
        "update (0.15 in diffu-GRPO)",
    )

    @model_validator(mode="after")
    def _weighable(self) -> "ElboConfig":
        if self.weighting == "elbo" and self.masking not in ("cosine", "uniform"):
            raise ValueError(
                f"weighting: elbo needs every number of masked positions, each with a known "
                f"probability, and masking: {self.masking} "
                + (
                    "has weights of its own; leave weighting out"
                    if self.masking in ("complement", "quadrature")
                    else "has not; choose masking: uniform, cosine, or quadrature without weighting"
                )
            )
        return self

    def draws_problem(self, draws: int) -> str:
        """Why ``draws`` corruptions per sample do not fit the masking; empty where they do."""
        if self.masking == "complement" and draws % 3:
            return (
                "policy.elbo.masking: complement takes its draws in threes (everything masked, a "
                f"random set, the rest), and {draws} is no multiple of 3. Take 3"
            )
        if self.masking == "full" and draws > 1 and not self.prompt_masking:
            return (
                f"policy.elbo.masking: full masks everything, so that {draws} draws are the same. "
                "Take 1, or set policy.elbo.prompt_masking above 0"
            )
        return ""


class MaskedPolicyConfig(PolicyConfig):
    """A network that predicts the codes of masked positions; the base of every masked policy."""

    paradigm: ClassVar[str] = "masked"
    medium: ClassVar[Capability] = Capability.IMAGE
    masks_prompts: ClassVar[bool] = False
    """Whether the policy has ``mask_prompt``, for ``elbo.prompt_masking``."""
    elbo: ElboConfig = Field(
        ElboConfig(), description="the bound on the log-likelihood of a finished sample"
    )

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.ELBO, Capability.DENOISING, self.medium})

    def draws_problem(self, draws: int) -> str:
        return self.elbo.draws_problem(draws)

    @model_validator(mode="after")
    def _masks_prompts(self) -> "MaskedPolicyConfig":
        if self.elbo.prompt_masking and not self.masks_prompts:
            raise ValueError(
                "elbo.prompt_masking hides tokens of the prompt, and this policy does not say "
                "how: leave it out, or give the policy mask_prompt(cond, where)"
            )
        return self

    def why_missing(self, capability: Capability) -> str:
        if capability is Capability.DIFFERENTIABLE:
            return "a sampled token is one of a set, and no gradient passes through the choice"
        return ""


class UnmaskingConfig(SamplerConfig):
    """What every sampler that unmasks step by step has in common."""

    paradigm: ClassVar[str] = "masked"

    num_inference_steps: Count = Field(
        description="unmasking steps: network calls per sample",
        json_schema_extra={"propose": 16},
    )
    schedule: Literal["cosine", "linear", "power", "sigmoid"] = Field(
        "cosine", description="fraction of positions still masked as the steps go by"
    )
    power: Positive | None = Field(
        None, description="exponent a of the power schedule, whose masked fraction is 1 - t^a"
    )
    temperature: Positive = Field(
        1.0, description="divides the logits before a code is drawn; inside the densities too"
    )
    guidance_scale: NonNegative = Field(
        1.0, description="s in uncond + s (cond - uncond), on logits; 1 is off and costs one call"
    )

    @model_validator(mode="after")
    def _power_fits(self) -> "UnmaskingConfig":
        if (self.schedule == "power") != (self.power is not None):
            raise ValueError("power is the exponent of schedule: power: state both or neither")
        return self


class ConfidenceConfig(UnmaskingConfig):
    """Unmask the most confident positions step by step (MaskGIT), with exact step densities."""

    paper: ClassVar[str] = "arXiv 2510.13418"
    builds = "genrl_masked.sampler:ConfidenceSampler"

    transition: Literal["p1", "p1_plain", "p2", "ar"] = Field(
        "p1",
        description="the density of a step. p1: of the released codes and of the others' staying "
        "masked, exact given the Gumbel noise; p1_plain: the same with the paper's threshold that "
        "ignores the noise; p2: of the released codes alone; ar: of the codes sampled at every "
        "masked position",
    )
    granularity: Literal["step", "token"] = Field(
        "step",
        description="one term per unmasking step, or one per released token (with p2 only)",
    )
    gumbel_temperature: NonNegative = Field(
        1.0,
        description="factor, in nats, of the Gumbel noise on the confidence log p that ranks the "
        "positions; 0 ranks by confidence alone",
    )
    gumbel_decay: Literal["linear", "cumulative"] = Field(
        "linear",
        description="how that factor falls over K steps: by 1 - k/K (MaskGIT), or by the running "
        "product of these (Show-o's released code)",
    )
    final_step: Literal["release_all", "keep_one"] = Field(
        "release_all",
        description="whether the last step releases every position, or leaves one that gets its "
        "code but is never credited for it (Show-o's released code)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ConfidenceConfig":
        if self.granularity == "token" and self.transition != "p2":
            raise ValueError(
                "granularity: token goes with transition: p2 only: the density of "
                f"{self.transition} belongs to the step as a whole. Choose transition: p2, or "
                "granularity: step"
            )
        return self

    def provides(self) -> frozenset[Capability]:
        closed = {Capability.STEP_KL, Capability.ENTROPY} if self._has_closed_forms() else set()
        return frozenset({Capability.STEP_LOGP} | closed)

    def why_missing(self, capability: Capability) -> str:
        if capability in (Capability.STEP_KL, Capability.ENTROPY):
            return (
                f"a transition under {self.transition} has no closed form for it; choose an "
                "estimate from log-densities, transition: p2 with granularity: token, or ar"
            )
        return ""

    def _has_closed_forms(self) -> bool:
        return self.transition == "ar" or self.granularity == "token"


class RandomReleaseConfig(UnmaskingConfig):
    """Unmask random positions step by step: only the codes depend on the weights."""

    paper: ClassVar[str] = "arXiv 2510.02880"
    builds = "genrl_masked.release:RandomReleaseSampler"

    release: Literal["independent", "fixed"] = Field(
        "independent",
        description="how a step chooses: each masked position alike and by itself, so that the "
        "fraction of masked ones follows the schedule on average (MaskGRPO's emerge sampler), or "
        "a random set of the fixed number that the schedule says",
    )
    granularity: Literal["step", "token"] = Field(
        "step", description="one term per unmasking step, or one per released token"
    )

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY})


@hookimpl
def register_samplers(register: Register) -> None:
    """The samplers of masked models."""
    register("confidence", ConfidenceConfig)
    register("random_release", RandomReleaseConfig)
