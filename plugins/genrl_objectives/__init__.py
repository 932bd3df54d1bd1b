"""Objectives for every paradigm: presets over the pure functions of ``genrl_core.functional``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from genrl_core import Capability, ObjectiveConfig, hookimpl

if TYPE_CHECKING:
    from genrl_core import Objective

Reduction = Literal["token_mean", "sample_mean", "constant", "sum", "group_mean"]
Clip = Annotated[float, Field(gt=0)]


class _PolicyGradientConfig(ObjectiveConfig):
    """What the policy-gradient presets share."""

    view: Literal["steps", "bound"] = Field(
        "steps", description="steps: the sampled trajectory; bound: the finished sample"
    )
    reduce: Reduction = Field(
        "sample_mean", description="how terms become one number; denominators span the whole batch"
    )

    def view_wanted(self) -> Literal["steps", "bound"]:
        return self.view


class ReinforceConfig(_PolicyGradientConfig):
    """REINFORCE: minus the log-density times the advantage, on policy."""

    paper = "Williams 1992, Machine Learning 8"

    def build(self) -> "Objective":
        from genrl_objectives.policy_gradient import Reinforce

        return Reinforce(self)


class GrpoConfig(_PolicyGradientConfig):
    """GRPO: the clipped ratio to the weights that drew the sample, group-normalised advantages."""

    paper = "arXiv 2402.03300"
    epsilon: Clip = Field(
        description="clip of the ratio below 1; it has no default, because what a ratio means "
        "differs: a token (0.2), a sum over released tokens (0.1), a mean over latents (1e-4)",
        json_schema_extra={"propose": 0.1},
    )
    epsilon_high: Clip | None = Field(
        None, description="clip of the ratio above 1; silent: the same as epsilon"
    )
    level: Literal["term", "sequence"] = Field(
        "term", description="one ratio per term, or one per sample that couples its terms (GSPO)"
    )
    over: Literal["sum", "mean"] = Field(
        "sum", description="the log-ratio sums over a term's events, or is their mean"
    )

    def build(self) -> "Objective":
        from genrl_objectives.policy_gradient import Grpo

        return Grpo(self)


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

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_KL} if self.estimator == "analytic" else ())

    def build(self) -> "Objective":
        from genrl_objectives.divergence import Kl

        return Kl(self)


class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning: maximise the bound on the log-likelihood of the samples."""

    paper = "maximum likelihood"
    uses_reward = False
    reduce: Reduction = Field("sample_mean", description="how draws become one number")

    def view_wanted(self) -> Literal["bound"]:
        return "bound"

    def build(self) -> "Objective":
        from genrl_objectives.supervised import Sft

        return Sft(self)


@hookimpl
def register_objectives(register: Callable[[str, type[ObjectiveConfig]], None]) -> None:
    register("reinforce", ReinforceConfig)
    register("grpo", GrpoConfig)
    register("kl", KlConfig)
    register("sft", SftConfig)
