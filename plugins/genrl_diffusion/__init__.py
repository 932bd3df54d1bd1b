"""Diffusion and flow-matching models: the policy bases, and samplers with exact step densities.

This entry module holds configs and hooks only and loads no torch. The classes and pure functions
behind them are reached under the same names, ``from genrl_diffusion import FlowPolicy``, and are
imported on first use.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Register, hookimpl, lazy_names
from genrl_diffusion import kernel
from genrl_diffusion.configs import DiffusionPolicyConfig as DiffusionPolicyConfig
from genrl_diffusion.configs import DiffusionSamplerConfig as DiffusionSamplerConfig
from genrl_diffusion.configs import ElboConfig as ElboConfig
from genrl_diffusion.configs import NonNegative, Share
from genrl_diffusion.configs import RolloutConfig as RolloutConfig
from genrl_diffusion.configs import WindowConfig as WindowConfig

if TYPE_CHECKING:
    from genrl_diffusion.policy import DiffusionPolicy as DiffusionPolicy
    from genrl_diffusion.policy import FlowPolicy as FlowPolicy
    from genrl_diffusion.policy import guided_prediction as guided_prediction
    from genrl_diffusion.sampler import GaussianTransition as GaussianTransition
    from genrl_diffusion.sampler import KernelSampler as KernelSampler
    from genrl_diffusion.solver import SolverSampler as SolverSampler
    from genrl_diffusion.variance_preserving import (
        VariancePreservingPolicy as VariancePreservingPolicy,
    )

_HOMES = {
    "DiffusionPolicy": "policy", "FlowPolicy": "policy",
    "guided_prediction": "policy",
    "VariancePreservingPolicy": "variance_preserving",
    "GaussianTransition": "sampler", "KernelSampler": "sampler", "SolverSampler": "solver",
}  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)


class FlowOdeConfig(DiffusionSamplerConfig):
    """Euler steps of the probability-flow ODE, without noise; DDIM with eta 0."""

    paper: ClassVar[str] = "arXiv 2209.03003"

    @model_validator(mode="after")
    def _no_window(self) -> "FlowOdeConfig":
        if self.window is not None:
            raise ValueError(
                "flow_ode has no noise, and window says which steps have it: leave window out, or "
                "choose flow_sde, dance_sde, cps or ddim"
            )
        return self

    def coefficients(self, now: float, after: float) -> kernel.Step:
        return kernel.flow_ode(now, after)


class FlowSdeConfig(DiffusionSamplerConfig):
    """Flow-GRPO's stochastic steps: noise grows with the noise level."""

    paper: ClassVar[str] = "arXiv 2505.05470"
    noise: NonNegative = Field(
        0.7, description="a in the diffusion coefficient a sqrt(sigma / (1 - sigma)); 0 for none"
    )

    def coefficients(self, now: float, after: float) -> kernel.Step:
        return kernel.flow_sde(now, after, self.noise)


class DanceSdeConfig(DiffusionSamplerConfig):
    """DanceGRPO's stochastic steps: the same noise per unit of time at all noise levels."""

    paper: ClassVar[str] = "arXiv 2505.07818"
    noise: NonNegative = Field(
        0.3, description="the diffusion coefficient (the paper's eta); 0 for none"
    )

    def coefficients(self, now: float, after: float) -> kernel.Step:
        return kernel.dance_sde(now, after, self.noise)


class CpsConfig(DiffusionSamplerConfig):
    """Coefficient-preserving sampling: every latent has exactly the noise its level says."""

    paper: ClassVar[str] = "arXiv 2509.05952"
    noise: Share = Field(
        0.8, description="a: the share of fresh noise is sin(a pi / 2); 0 for none, 1 for all"
    )
    density: Literal["gaussian", "unscaled"] = Field(
        "gaussian",
        description="what counts as the log-density of a step: gaussian is the true one; unscaled "
        "is the authors' -(x' - mean)^2 without 1 / (2 S^2) and constants, a reweighting of the "
        "steps by 2 S^2 and no density (KL divergences stay the true ones)",
    )

    @property
    def unscaled(self) -> bool:
        return self.density == "unscaled"

    def coefficients(self, now: float, after: float) -> kernel.Step:
        return kernel.cps(now, after, self.noise)


class DdimConfig(DiffusionSamplerConfig):
    """DDIM; with eta 1 the ancestral steps of DDPM, which DDPO and D3PO train."""

    paper: ClassVar[str] = "arXiv 2010.02502"
    eta: Share = Field(
        1.0, description="fraction of the standard deviation of DDPM's posterior; 0 for none"
    )

    def coefficients(self, now: float, after: float) -> kernel.Step:
        return kernel.ddim(now, after, self.eta)


class DiffusersSolverConfig(RolloutConfig):
    """A multistep ODE solver of diffusers: few steps, no densities, for objectives on the bound."""

    paper: ClassVar[str] = "arXiv 2211.01095"
    builds = "genrl_diffusion.solver:SolverSampler"
    scheduler: Literal["dpm_solver", "unipc", "deis"] = Field(
        "dpm_solver", description="DPM-Solver++, UniPC or DEIS"
    )
    solver_order: Annotated[int, Field(ge=1, le=3)] = Field(2, description="order of the solver")


@hookimpl
def register_samplers(register: Register) -> None:
    """The step kernels, and the multistep solvers."""
    register("flow_ode", FlowOdeConfig)
    register("flow_sde", FlowSdeConfig)
    register("dance_sde", DanceSdeConfig)
    register("cps", CpsConfig)
    register("ddim", DdimConfig)
    register("diffusers_solver", DiffusersSolverConfig)
