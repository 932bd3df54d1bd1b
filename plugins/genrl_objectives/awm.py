"""AWM: GRPO on the bound of finished samples."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from genrl_objectives.common import Positive, register
from genrl_objectives.grpo import GrpoConfig


@register("awm")
class AwmConfig(GrpoConfig):
    """AWM: GRPO on a bound: ratios of finished samples on shared corruptions, advantages to 1.

    The paper's ``w(t)`` is the weight that the policy's bound gives a draw.
    """

    paper = "arXiv 2509.25050"
    advantage_defaults: ClassVar[dict[str, Any]] = {"clip": 1.0}
    view: Literal["steps", "elbo"] = Field(
        "elbo", description="elbo: the finished sample; steps: the sampled trajectory"
    )
    epsilon: Positive = Field(
        description="clip of the ratio below 1; it has no default, because what a bound measures "
        "differs (1 hardly clips)",
        json_schema_extra={"propose": 1.0},
    )
