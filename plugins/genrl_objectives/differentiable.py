"""The config of the objective that differentiates the reward itself, through the sampler."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from genrl_core import Capability, ObjectiveConfig

if TYPE_CHECKING:
    from genrl_core import Objective

Count = Annotated[int, Field(ge=1)]


class RewardGradientConfig(ObjectiveConfig):
    """The reward's own gradient, through the last steps of the sampler: DRaFT, AlignProp, ReFL."""

    paper = "arXiv 2309.17400; 2310.03739; 2304.05977"
    steps: Count = Field(
        1,
        description="K, how many network calls before the end carry the gradient (DRaFT-K); all "
        "where there are fewer. The memory of an update grows with it",
    )
    random_steps: bool = Field(
        default=False,
        description="draw K anew for every sample and update, uniform on 1 to steps (AlignProp)",
    )
    stop: Literal["end", "random"] = Field(
        "end",
        description="end: judge the finished sample; random: end every sample at a random step of "
        "stop_range and judge what the network there takes the finished sample for (ReFL)",
    )
    stop_range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[first, end): the steps, counted from 0, of which one is drawn"
    )
    margin: float | None = Field(
        None,
        description="the loss is max(0, margin - reward): samples above it are left alone (ReFL); "
        "null: minus the reward",
    )

    @model_validator(mode="after")
    def _range(self) -> "RewardGradientConfig":
        given = self.stop_range
        if (self.stop == "random") != (given is not None):
            raise ValueError(
                f"stop_range belongs to stop: random, which needs it, and stop is {self.stop}: "
                "give both, for example stop: random, stop_range: [7, 10] of 10 steps, or neither"
            )
        if given is not None and not 0 <= given[0] < given[1]:
            raise ValueError(f"stop_range is [first, end) with 0 <= first < end, not {given}")
        return self

    def view_wanted(self) -> Literal["reward"]:
        return "reward"

    def needs(self) -> frozenset[Capability]:
        early = {Capability.PREVIEW} if self.stop == "random" else set()
        return frozenset({Capability.DIFFERENTIABLE} | early)

    def build(self) -> "Objective":
        from genrl_objectives.reward_gradient import RewardGradient

        return RewardGradient(self)
