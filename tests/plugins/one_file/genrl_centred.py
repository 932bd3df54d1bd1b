"""A third party's objective for every paradigm, and a step kernel for diffusion models."""

from math import hypot
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genrl_core import Batch, Objective, ObjectiveConfig, Register, hookimpl
from genrl_diffusion import DiffusionSamplerConfig, kernel

if TYPE_CHECKING:
    from torch import Tensor


class CenteredDistillation(Objective):
    """The implicit reward regressed on the reward, both centred in the group (arXiv 2603.14128).

    ``(beta (R - mean R) - A)^2 / (2 beta)``, where R is a sample's log-ratio to the weights that
    drew it and A its advantage: 0 for the policy tilted by ``exp(A / beta)``, whatever the
    normaliser. At the weights that drew, the gradient is that of ``-A log p``.

    Deviations: the paper's pull to a guided reference is the objective ``kl``; it clips the
    regression target, which here is the section ``advantage``.
    """

    needs = frozenset({"old_log_probs"})
    separable = False

    def __init__(self, config: "CenteredDistillationConfig"):
        self.config = config

    def loss(self, batch: Batch) -> "tuple[Tensor, dict[str, Tensor]]":
        from genrl_core.functional import group_mean, log_ratio

        config, old = self.config, batch.need("old_log_probs")
        implied = log_ratio(batch.log_probs, old, batch.events, batch.mask, "sequence", config.over)
        mean = group_mean(implied, batch.group, batch.mask & batch.valid)
        gap = config.beta * (implied - mean) - batch.advantage
        loss = batch.reduce(gap.square() / (2 * config.beta), "sample_mean")
        return loss, {"error": gap.square()}


class CenteredDistillationConfig(ObjectiveConfig):
    """CRD: a sample's log-ratio to the weights that drew it is regressed on its advantage."""

    paper = "arXiv 2603.14128"
    on_policy_gradient = True
    view: Literal["steps", "elbo"] = Field("elbo", description="steps or bound of a sample")
    over: Literal["sum", "mean"] = Field("sum", description="over the events of a sample")
    beta: float = Field(1.0, gt=0, description="advantage per nat at which the regression ends")

    def view_wanted(self) -> Literal["steps", "elbo"]:
        return self.view

    def build(self) -> Objective:
        return CenteredDistillation(self)


class DdpmLargeConfig(DiffusionSamplerConfig):
    """DDPM's steps with the larger variance, beta itself (arXiv 2006.11239, section 3.2)."""

    def coefficients(self, now: float, after: float) -> kernel.Step:
        a, b, s = kernel.ddim(now, after, 1.0)
        return a, b, s and s * now / after * hypot(1 - after, after) / hypot(1 - now, now)


@hookimpl
def register_objectives(register: Register) -> None:
    register("crd", CenteredDistillationConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    register("ddpm_large", DdpmLargeConfig)
