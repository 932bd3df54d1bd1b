"""Masked generative models: the policy base, and the confidence sampler of Mask-GRPO.

This entry module holds configs and hooks only and loads no torch. The classes and pure functions
behind them are reached under the same names, ``from genrl_masked import MaskedPolicy``, and are
imported on first use.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Capability, PolicyConfig, SamplerConfig, Schema, hookimpl

if TYPE_CHECKING:
    from genrl_masked.policy import MaskedPolicy as MaskedPolicy
    from genrl_masked.policy import guided_logits as guided_logits
    from genrl_masked.policy import log_level_weight as log_level_weight
    from genrl_masked.sampler import ConfidenceSampler as ConfidenceSampler
    from genrl_masked.sampler import ConfidenceTransition as ConfidenceTransition
    from genrl_masked.schedule import gumbel_temperatures as gumbel_temperatures
    from genrl_masked.schedule import masked_fraction as masked_fraction
    from genrl_masked.schedule import released_counts as released_counts

_HOMES = {
    "MaskedPolicy": "policy", "guided_logits": "policy", "log_level_weight": "policy",
    "ConfidenceSampler": "sampler", "ConfidenceTransition": "sampler",
    "released_counts": "schedule", "masked_fraction": "schedule", "gumbel_temperatures": "schedule",
    "transitions": "",
}  # fmt: skip

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that reading recipes loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'genrl_masked' has no attribute {name!r}")
    if not _HOMES[name]:
        return importlib.import_module(f"genrl_masked.{name}")
    return getattr(importlib.import_module(f"genrl_masked.{_HOMES[name]}"), name)


class BoundConfig(Schema):
    """How a finished sample is masked again, and how its masked cross-entropy becomes a bound."""

    masking: Literal["cosine", "uniform"] = Field(
        "cosine",
        description="how many of the N positions are masked: ceil(N cos(pi u / 2)) with u uniform "
        "on [0, 1), as MaskGIT trains (cosine), or each of 1..N equally often (uniform)",
    )
    weighting: Literal["mean", "elbo"] = Field(
        "mean",
        description="mean: N times the mean cross-entropy of the masked positions, in nats; elbo: "
        "the same times the importance that makes its expectation a lower bound on the "
        "log-likelihood (1 / mask ratio per position under uniform masking, where the two agree)",
    )
    combine: bool = Field(
        default=False, description="whether several draws are averaged into one term per sample"
    )


class MaskedPolicyConfig(PolicyConfig):
    """A network that predicts the codes of masked positions; the base of every masked policy."""

    paradigm: ClassVar[str] = "masked"
    bound: BoundConfig = Field(
        BoundConfig(), description="the bound on the log-likelihood of a finished sample"
    )

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.BOUND, Capability.MATCHING, Capability.IMAGE})


class ConfidenceConfig(SamplerConfig):
    """Unmask the most confident positions step by step (MaskGIT), with exact step densities."""

    paper: ClassVar[str] = "arXiv 2510.13418"
    paradigm: ClassVar[str] = "masked"

    num_inference_steps: Count = Field(
        description="unmasking steps: network calls per sample",
        json_schema_extra={"propose": 16},
    )
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
    schedule: Literal["cosine", "linear", "power", "sigmoid"] = Field(
        "cosine", description="fraction of positions still masked as the steps go by"
    )
    power: Positive | None = Field(
        None, description="exponent a of the power schedule, whose masked fraction is 1 - t^a"
    )
    temperature: Positive = Field(
        1.0, description="divides the logits before a code is drawn; inside the densities too"
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
    guidance_scale: NonNegative = Field(
        1.0, description="s in uncond + s (cond - uncond), on logits; 1 is off and costs one call"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ConfidenceConfig":
        if self.granularity == "token" and self.transition != "p2":
            raise ValueError(
                "granularity: token goes with transition: p2 only: the density of "
                f"{self.transition} belongs to the step as a whole. Choose transition: p2, or "
                "granularity: step"
            )
        if (self.schedule == "power") != (self.power is not None):
            raise ValueError("power is the exponent of schedule: power: state both or neither")
        return self

    def provides(self) -> frozenset[Capability]:
        closed = {Capability.STEP_KL, Capability.ENTROPY} if self._has_closed_forms() else set()
        return frozenset({Capability.STEP_LOGP} | closed)

    def lacks(self, capability: Capability) -> str:
        if capability in (Capability.STEP_KL, Capability.ENTROPY):
            return (
                f"a transition under {self.transition} has no closed form for it; choose an "
                "estimate from log-densities, transition: p2 with granularity: token, or ar"
            )
        return ""

    def _has_closed_forms(self) -> bool:
        return self.transition == "ar" or self.granularity == "token"

    def build(self) -> "ConfidenceSampler":
        from genrl_masked.sampler import ConfidenceSampler

        return ConfidenceSampler(self)


@hookimpl
def register_samplers(register: Callable[[str, type[SamplerConfig]], None]) -> None:
    """The sampler of masked models."""
    register("confidence", ConfidenceConfig)
