"""The sections of a recipe that the loop reads: advantage, filter, weights and train."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrl_core.interfaces.configs import NEUTRAL, Count, NonNegative, Positive, Schema

BASELINES = ("group_mean", "leave_one_out", "batch_mean", "prompt_mean", "none")
"""GenRL's own; plugins register further ones as functions."""


class AdvantageConfig(Schema):
    """How rewards become advantages."""

    combine: Literal["sum", "normalise_then_sum"] = Field(
        "sum",
        description="several rewards: their weighted sum, or the weighted sum of each one's group "
        "z-score (GDPO); filter and objectives read it, and with z-scores an advantage is that sum "
        "divided by the batch's deviation, whatever baseline and scale",
    )
    baseline: str = Field(
        "group_mean",
        description="what is subtracted from a reward: group_mean, leave_one_out, batch_mean, "
        "prompt_mean (its prompt's running one), none, or a function that a plugin registered",
    )
    scale: Literal["group_std", "batch_std", "prompt_std", "none"] = Field(
        "group_std",
        description="what the difference is divided by (unbiased standard deviation); prompt_std "
        "is its prompt's running one",
    )
    buffer: Annotated[int, Field(ge=2)] = Field(
        32, description="how many last rewards of a prompt prompt_mean and prompt_std look at"
    )
    min_count: Annotated[int, Field(ge=2)] = Field(
        16, description="rewards of a prompt below which the batch's statistics take their place"
    )
    epsilon: NonNegative = Field(1e-4, description="added to the divisor")
    clip: Positive | None = Field(None, description="advantages are clipped to +- this")

    @model_validator(mode="after")
    def _consistent(self) -> "AdvantageConfig":
        if self.runs and self.combine == "normalise_then_sum":
            raise ValueError(
                "combine: normalise_then_sum normalises each reward within its group, and a "
                "prompt's running statistics are those of the sum of rewards. Choose combine: sum, "
                "or baseline: group_mean with scale: group_std"
            )
        if self.runs and self.min_count > self.buffer:
            raise ValueError(
                f"min_count {self.min_count} is never reached: a prompt's last {self.buffer} "
                "rewards are kept. Lower min_count, or raise buffer"
            )
        return self

    @property
    def runs(self) -> bool:
        """Whether statistics run along with the iterations, prompt by prompt."""
        return self.baseline == "prompt_mean" or self.scale == "prompt_std"

    @property
    def within_groups(self) -> dict[str, str]:
        """The fields that compare the samples of a prompt, with their values."""
        chosen = {"baseline": self.baseline, "scale": self.scale}
        return {k: v for k, v in chosen.items() if v.startswith("group") or v == "leave_one_out"}


class FilterConfig(Schema):
    """Which groups of samples are learned from; the spread of a group is its rewards' deviation."""

    min_std: NonNegative | None = Field(
        None, description="groups whose reward spread is not above this are rejected; 0 for equal"
    )
    std_percentile: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        None, description="groups below this percentile of past spreads are rejected"
    )
    history: Count = Field(500, description="how many past spreads the percentile looks at")
    warmup: Count = Field(50, description="spreads seen before the percentile rejects any group")
    then: Literal["drop", "resample"] = Field(
        "drop", description="leave rejected groups out, or draw new ones in their place"
    )
    max_attempts: Annotated[int, Field(ge=2)] = Field(
        4, description="rollouts per iteration at the most, the first included, with resample"
    )

    @property
    def active(self) -> bool:
        return self.min_std is not None or self.std_percentile is not None


class LoraConfig(Schema):
    """Train low-rank adapters (arXiv 2106.09685, by peft) instead of the network's weights."""

    rank: Count = Field(description="rank of every adapter")
    alpha: Count | None = Field(None, description="scale times rank; silent: the rank")
    target_modules: list[str] | None = Field(
        None, description="names of the modules that get one; silent: the policy's choice"
    )


class EmaConfig(Schema):
    """A weight set that follows the current weights, once per iteration."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share that the weight set keeps of itself; 0 copies the current weights"
    )
    ramp: Positive | None = Field(
        None,
        description="with it the share is min(decay, start + ramp x max(0, iteration - flat)) "
        "(arXiv 2509.16117)",
    )
    start: NonNegative = Field(0.0, description="the share that the ramp begins at")
    flat: Annotated[int, Field(ge=0)] = Field(
        0, description="iterations before the ramp begins, 75 in the paper's second schedule"
    )

    @model_validator(mode="after")
    def _of_a_ramp(self) -> "EmaConfig":
        if self.ramp is None and (self.start or self.flat):
            raise ValueError("start and flat say where a ramp begins, and there is no ramp: add it")
        return self

    def decay_at(self, iteration: int) -> float:
        """What the weight set keeps after ``iteration`` iterations."""
        if self.ramp is None:
            return self.decay
        return min(self.decay, self.start + self.ramp * max(0, iteration - self.flat))


class WeightsConfig(Schema):
    """Weight sets beside the current one. The reference exists whenever it is needed."""

    lora: LoraConfig | None = Field(None, description="train adapters; the rest is frozen")
    ema: EmaConfig | None = Field(
        None, description="an average of the weights, which evaluations and samples then use"
    )
    lagging: EmaConfig = Field(
        EmaConfig(decay=0.0), description="the lagging weights that some objectives draw with"
    )


class StepsConfig(Schema):
    """Which network evaluations of a sample are trained (computational reduction of Mask-GRPO)."""

    choose: Literal["all", "first", "last", "random", "stratified"] = Field(
        "all", description="random and stratified draw anew for every sample and iteration"
    )
    count: Count | None = Field(None, description="how many evaluations; every one for `all`")
    importance: bool = Field(
        False, description="weigh each by 1 / P(chosen), so that the loss estimates all of them"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "StepsConfig":
        if (self.choose == "all") != (self.count is None):
            raise ValueError("count goes with first, last, random and stratified, and only them")
        if self.importance and self.choose not in ("random", "stratified"):
            raise ValueError(
                "importance needs random or stratified: the others miss some evaluations"
            )
        return self


class TrainConfig(Schema):
    """The optimisation."""

    iterations: Annotated[int, Field(ge=0)] = Field(description="outer iterations")
    num_prompts: Count = Field(description="prompts per iteration")
    num_generations: Count = Field(8, description="samples per prompt: the group size G")
    num_minibatches: Count = Field(
        1, description="optimizer steps that share an iteration's groups"
    )
    num_updates: Count = Field(1, description="passes over an iteration's samples (PPO epochs)")
    learning_rate: Positive = Field(description="peak learning rate of AdamW")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up; linear and cosine end at 0"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="optimizer steps of warm-up")
    adam_betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.95], description="AdamW betas"
    )
    adam_epsilon: Positive = Field(1e-8, description="AdamW epsilon")
    weight_decay: NonNegative = Field(0.0, description="on matrices; never on biases and norms")
    max_grad_norm: Positive | None = Field(1.0, description="gradients are clipped to this norm")
    steps: StepsConfig = StepsConfig()
    draws: Count = Field(1, description="corruption draws per sample, for elbo and denoising")
    micro_batch_size: Count = Field(
        512,
        description="rows (evaluation, sample) of one training forward: the memory of an update; "
        "where the reward is differentiated, samples with the graph of their steps that have one",
        json_schema_extra=NEUTRAL,
    )
    rollout_batch_size: Count = Field(
        512, description="samples drawn together in a rollout", json_schema_extra=NEUTRAL
    )
    drift_tolerance: Positive | None = Field(
        None,
        description="largest allowed |log-density now - as recorded| under equal weights, nats; "
        "of a differentiated reward, in its own units; silent: by the network's precision, 1e-3, "
        "or 1 in bfloat16",
        json_schema_extra=NEUTRAL,
    )
