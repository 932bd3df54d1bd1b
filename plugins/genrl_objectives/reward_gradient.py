"""The reward's own gradient in the place of a policy gradient: DRaFT, AlignProp, ReFL."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrl_core import Batch, Capability, ObjectiveConfig, SamplerBackprop
from genrl_objectives.common import ConfiguredObjective, Metrics, Tensor, register

Count = Annotated[int, Field(ge=1)]


class RewardGradient(ConfiguredObjective["RewardGradientConfig"]):
    """``-r`` or ``max(0, margin - r)``, r the differentiable reward of the sample drawn again.

    One objective for three papers, which differ in what carries the gradient:

    - DRaFT-K (arXiv 2309.17400): the last ``steps`` network calls of the finished sample. Its LV
      variant, which averages several noised copies of the last step, is left out.
    - AlignProp (arXiv 2310.03739): the same with a random K. The paper draws one K per batch; here
      every sample has its own, which has the same mean and less noise.
    - ReFL (arXiv 2304.05977): a random step of the last ones, whose prediction of the finished
      sample is judged, with ``margin`` 2. Its pre-training term is the objective ``sft``, and its
      factor 1e-3 is the ``weight``.

    Neither advantage nor group enters. The gradient sees the reward as a function: it climbs
    whatever the reward is blind to, so compare a held-out measure.
    """

    separable = True

    def __init__(self, config: "RewardGradientConfig"):
        super().__init__(config)
        stop = None if config.stop_range is None else (config.stop_range[0], config.stop_range[1])
        self.backprop = SamplerBackprop(config.steps, config.random_steps, stop)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        reward, margin = batch.need("differentiable_reward"), self.config.margin
        entries = -reward if margin is None else (margin - reward).clamp(min=0)
        gap = (reward.detach() - batch.reward).abs()
        return batch.reduce(entries), {"reward_gap": gap}


@register("reward_gradient")
class RewardGradientConfig(ObjectiveConfig):
    """The reward's own gradient, through the last steps of the sampler: DRaFT, AlignProp, ReFL."""

    paper = "arXiv 2309.17400; 2310.03739; 2304.05977"
    builds = RewardGradient
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
