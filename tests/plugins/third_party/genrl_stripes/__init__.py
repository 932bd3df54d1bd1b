"""Stripes, a whole plugin. Every command imports this module, so it imports no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genrl_core import ObjectiveConfig, PolicyConfig, RewardConfig, hookimpl
from genrl_masked import MaskedPolicyConfig

if TYPE_CHECKING:
    from genrl_core import Objective, Policy, Reward


class StripesConfig(MaskedPolicyConfig):
    """Black and white pictures of 4 x 4 pixels, prompted by a direction."""

    width: int = Field(32, ge=1, description="hidden units of the network")

    def build(self) -> "Policy":
        from .policy import Net, StripesPolicy

        return StripesPolicy(self, Net(self.width), num_tokens=16, codebook_size=2)


class StripinessConfig(RewardConfig):
    """Contrast across the prompted stripes minus contrast along them, -1 to 1."""

    def build(self) -> "Reward":
        from .reward import Stripiness

        return Stripiness()


class TruncatedConfig(ObjectiveConfig):
    """REINFORCE with importance weights that are cut off at a ceiling."""

    paper = "arXiv 1802.01561"
    ceiling: float = Field(
        gt=0, description="largest importance weight", json_schema_extra={"propose": 2.0}
    )

    def build(self) -> "Objective":
        from .objective import Truncated

        return Truncated(self)


@hookimpl
def register_policies(register: Callable[[str, type[PolicyConfig]], None]) -> None:
    register("stripes", StripesConfig)


@hookimpl
def register_rewards(register: Callable[[str, type[RewardConfig]], None]) -> None:
    register("stripiness", StripinessConfig)


@hookimpl
def register_objectives(register: Callable[[str, type[ObjectiveConfig]], None]) -> None:
    register("truncated", TruncatedConfig)


@hookimpl
def register_recipes(register: Callable[[Path], None]) -> None:
    register(Path(__file__).parent / "recipes")
