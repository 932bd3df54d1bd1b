"""What a recipe may say of diffusion models: the bases of their policies and of their samplers.

It loads no torch. The samplers themselves, a config per step kernel, stand in the entry module.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Capability, PolicyConfig, SamplerConfig, Schema
from genrl_diffusion import kernel

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Shift = Annotated[float, Field(ge=1e-3, le=1e3)]


ONLY_STEP = (
    "the only step is the last one, which adds no noise with final_step: denoise; take "
    "num_inference_steps: 2 or more, or final_step: kernel"
)


class ElboConfig(Schema):
    """How a finished sample is noised again, and what the error of the prediction counts for."""

    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="distribution of the time in 0..1 (data to noise): uniform, or the logistic "
        "function of a standard normal number, which prefers the middle (Stable Diffusion 3)",
    )
    weighting: Literal["uniform", "sigma", "sigma_squared", "elbo"] = Field(
        "uniform",
        description="w in bound = -w x mean squared error: 1, the noise level s or s^2, where s = "
        "sigma / (alpha + sigma) is 0 for data and 1 for noise (AWM's choices); or elbo, which "
        "makes it the evidence lower bound per element, in nats and up to a constant",
    )
    shared_by_group: bool = Field(
        default=False, description="whether all samples of a group get the same times and noises"
    )
    combine: bool = Field(
        default=False, description="whether several draws are averaged into one term per sample"
    )

    @model_validator(mode="after")
    def _bounds(self) -> "ElboConfig":
        if self.weighting == "elbo" and self.timesteps != "uniform":
            raise ValueError(
                f"weighting: elbo is a bound under uniform times alone, and timesteps is "
                f"{self.timesteps}: take timesteps: uniform, or another weighting"
            )
        return self


class DiffusionPolicyConfig(PolicyConfig):
    """A network that denoises; the base of every diffusion and flow-matching policy."""

    paradigm: ClassVar[str] = "diffusion"
    differentiable: ClassVar[bool] = False
    """Whether the policy implements ``decode_pixels``; every sampler here keeps the graph."""
    noise_levels: ClassVar[int | None] = None
    """The length of a variance-preserving model's table; None for flow matching, or unknown."""
    elbo: ElboConfig = Field(
        ElboConfig(), description="the surrogate of a finished sample's log-likelihood"
    )

    def provides(self) -> frozenset[Capability]:
        given = frozenset({
            Capability.ELBO, Capability.DENOISING, Capability.CLEAN_SAMPLE, Capability.IMAGE,
        })  # fmt: skip
        return given | {Capability.DIFFERENTIABLE} if self.differentiable else given


class WindowConfig(Schema):
    """The steps with noise; all others are deterministic. Every sample of a group has the same."""

    size: Count = Field(description="how many consecutive steps have noise, and are trained")
    range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="[first, end): the steps, counted from 0, in which the window lies; silent: "
        "all that can have noise",
    )
    mode: Literal["random", "first", "progressive"] = Field(
        "random", description="where in the range: anywhere, drawn per group; at its beginning; or "
        "moving from its beginning to its end, and from there to the beginning again (MixGRPO)",
    )  # fmt: skip
    shift_every: Count | None = Field(
        None, description="iterations between two moves; for progressive alone"
    )
    stride: Count = Field(1, description="steps by which it moves; for progressive alone")

    @model_validator(mode="after")
    def _moves(self) -> "WindowConfig":
        moving = self.mode == "progressive"
        if moving != (self.shift_every is not None) or (self.stride != 1 and not moving):
            raise ValueError(
                f"shift_every and stride belong to mode: progressive, which needs shift_every, and "
                f"mode is {self.mode}: give both keys or neither, for example mode: progressive, "
                "shift_every: 25"
            )
        return self


class RolloutConfig(SamplerConfig):
    """What every sampler of diffusion models shares."""

    paradigm: ClassVar[str] = "diffusion"
    num_inference_steps: Count = Field(
        description="denoising steps: network calls per sample",
        json_schema_extra={"propose": 10},
    )
    shift: Shift = Field(
        1.0,
        description="s in sigma -> s sigma / (1 + (s - 1) sigma), which for s > 1 spends more "
        "steps on high noise; 0.001 to 1000, for flow matching only",
    )
    guidance_scale: NonNegative = Field(
        1.0, description="s in uncond + s (cond - uncond), on predictions; 1 is off and costs one "
        "call",
    )  # fmt: skip
    temperature: Positive = Field(
        1.0, description="standard deviation of the noise that a sample starts from"
    )
    same_noise: bool = Field(
        default=False, description="whether all samples of a group start from the same noise"
    )

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.PREVIEW})

    def incompatible_fields(self, policy: PolicyConfig) -> dict[str, str]:
        levels = policy.noise_levels if isinstance(policy, DiffusionPolicyConfig) else None
        found = {}
        if levels is not None and self.shift != 1:
            found["shift"] = (
                f"{self.shift:g} moves the times of flow matching, but this policy has a table of "
                f"{levels} noise levels: leave shift at 1"
            )
        if levels is not None and self.num_inference_steps > levels:
            found["num_inference_steps"] = (
                f"{self.num_inference_steps} steps are more than the {levels} noise levels of this "
                f"policy: take at most {levels}"
            )
        return found

    def why_missing(self, capability: Capability) -> str:
        if capability in (Capability.STEP_LOGP, Capability.STEP_KL):
            return "a deterministic sampler has no step density"
        if capability is Capability.ENTROPY:
            return "the entropy of a Gaussian step does not depend on the weights"
        return ""


class DiffusionSamplerConfig(RolloutConfig):
    """A sampler by one Gaussian step kernel; a subclass adds a knob and ``coefficients``."""

    builds = "genrl_diffusion.sampler:KernelSampler"
    window: WindowConfig | None = Field(
        None, description="restricts noise and training to some steps (Flow-GRPO-Fast, MixGRPO)"
    )
    final_step: Literal["denoise", "kernel"] = Field(
        "denoise",
        description="denoise: the last step adds no noise and is not trained; kernel: it is a step "
        "like any other, and leaves its noise in the sample",
    )
    storage: Literal["full", "float16", "bfloat16"] = Field(
        "full",
        description="precision in which the latents are recorded: full is float32, or float64 "
        "where the network is; a latent is rounded before its density is computed",
    )

    @property
    def unscaled(self) -> bool:
        """Whether ``log_prob`` is the bare squared distance to the mean (``cps``)."""
        return False

    @abstractmethod
    def coefficients(self, now: float, after: float) -> kernel.Step:
        """``A, B, S`` of a step from one noise level to the next, 1 = pure noise, 0 = data.

        The step is ``x' = A x0_hat + B eps_hat + S z``; see ``genrl_diffusion.kernel``.
        """

    @property
    def noisy_steps(self) -> int:
        """How many steps, from the first, may have noise."""
        return self.num_inference_steps - (self.final_step == "denoise")

    @property
    def window_range(self) -> tuple[int, int]:
        """[first, end) of the steps in which the window lies."""
        if self.window is None or self.window.range is None:
            return 0, self.noisy_steps
        return self.window.range[0], self.window.range[1]

    def window_place(self, iteration: int) -> int | None:
        """The first step of the window in an iteration; None where it is drawn per group.

        A pure function of the iteration, so that a resumed run continues where it was. An
        evaluation, whose iteration is negative, has the window of iteration 0.
        """
        (low, end), window = self.window_range, self.window
        if window is None or window.mode == "first":
            return low
        if window.shift_every is None:
            return None
        places = (end - low - window.size) // window.stride + 1
        return low + max(iteration, 0) // window.shift_every % places * window.stride

    @property
    def stochastic(self) -> bool:
        """Whether any step has noise."""
        return self.noisy_steps > 0 and self.coefficients(0.5, 0.25)[2] > 0

    @model_validator(mode="after")
    def _window_fits(self) -> "DiffusionSamplerConfig":
        if self.window is None:
            return self
        first, end = self.window_range
        if self.noisy_steps == 0:
            raise ValueError(f"window says which steps have noise, and {ONLY_STEP}")
        if not 0 <= first < end <= self.noisy_steps or end - first < self.window.size:
            raise ValueError(
                f"a window of {self.window.size} steps does not fit into [{first}, {end}) of the "
                f"steps 0 to {self.noisy_steps - 1}, which can have noise (final_step: "
                f"{self.final_step}): make it smaller, widen the range, or take more steps"
            )
        return self

    def provides(self) -> frozenset[Capability]:
        closed = {Capability.STEP_LOGP, Capability.STEP_KL}
        return super().provides() | (closed if self.stochastic else set())

    def why_missing(self, capability: Capability) -> str:
        reason = super().why_missing(capability)
        if capability not in (Capability.STEP_LOGP, Capability.STEP_KL):
            return reason
        if self.noisy_steps == 0:
            return ONLY_STEP
        silent = [knob for knob in ("noise", "eta") if getattr(self, knob, None) == 0]
        return f"{silent[0]} is 0, and {reason}" if silent else reason
