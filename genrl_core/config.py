"""What recipes are made of: the config classes of components and the schema of every section.

A component is registered as a config class. The class carries the schema (strict, frozen, unknown
keys forbidden), the paradigm, the capabilities given or needed, and ``build()``, the only place
where a plugin imports torch and its heavy libraries. Nothing in this module imports them.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genrl_core.capability import Capability

if TYPE_CHECKING:
    from genrl_core.media import Prompt
    from genrl_core.objective import Objective, View
    from genrl_core.policy import Policy
    from genrl_core.reward import Reward
    from genrl_core.sampler import Sampler

NONE: frozenset[Capability] = frozenset()
NEUTRAL: dict[str, Any] = {"changes_results": False}
"""For ``json_schema_extra``: the field cannot change what is trained, beyond rounding.

It may have another value when a run is resumed. Plugins write the mapping itself.
"""


class Schema(BaseModel):
    """Strict, frozen, no unknown keys, no NaN: what every section and component is."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True,
        defer_build=True,  # a list of components needs none of their validators
    )  # fmt: skip


class Component(Schema):
    """A config class that a plugin registers under a name.

    Attributes:
        paper: where the method comes from, ``arXiv 2510.13418`` or a title; shown by ``genrl ls``.
    """

    paper: ClassVar[str] = ""

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    @classmethod
    def proposed(cls) -> dict[str, Any] | None:
        """The value that every required field proposes; None where a field proposes none."""
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if not field.is_required():
                continue
            if not isinstance(extra, Mapping) or "propose" not in extra:
                return None
            found[name] = extra["propose"]
        return found


class PolicyConfig(Component):
    """A network of one paradigm and the glue around it."""

    paradigm: ClassVar[str]
    loads_weights: ClassVar[bool] = False
    """Whether ``build()`` loads ``weights`` that are neither a recipe's nor in a GenRL folder."""
    on_request: ClassVar[dict[Capability, dict[str, Any]]] = {}
    """Fields that make it provide a capability which its defaults leave out."""
    weights: str | None = Field(
        None,
        description="where the weights come from: `recipe:NAME` trains that recipe once and caches "
        "the result, a GenRL checkpoint or run folder, or whatever the policy itself can load",
    )

    def provides(self) -> frozenset[Capability]:
        """What this configuration gives: bound, matching, value, differentiable, its media."""
        return NONE

    def lacks(self, capability: Capability) -> str:
        """Why ``capability`` is not given, as half a sentence; empty for no more to say."""
        return ""

    def check_prompt(self, prompt: "Prompt") -> None:
        """Asked of every prompt of a recipe before anything is built, so without torch.

        The default takes any; ``Policy.reading`` is for what takes a tokenizer to know.

        Raises:
            GenRLError: the policy cannot take this prompt: which, why, what to do.
        """

    def draws_problem(self, draws: int) -> str:
        """Why ``train.draws`` corruptions per sample do not fit, as sentences; or empty."""
        return ""

    def weights_problem(self) -> str:
        """What ``build()`` would say of ``weights`` before it looks for any; or empty.

        Weights that the core loads are None here, as in ``build()``. The text follows the words
        "policy.weights": `is missing: give ...`.
        """
        return ""

    @abstractmethod
    def build(self) -> "Policy":
        """The policy on the CPU, in evaluation mode. Weights that the core loads are None here."""


class ValueHeadConfig(PolicyConfig):
    """A policy that can predict the expected reward of a state; mixed into its paradigm's config.

    ``build()`` then adds a head to the network and sets ``Policy.predicts_value``.
    """

    on_request: ClassVar[dict[Capability, dict[str, Any]]] = {
        Capability.VALUE: {"value_head": True}
    }
    value_head: bool = Field(
        default=False,
        description="add a head that predicts the expected reward of every state, which ppo needs; "
        "it starts at 0, whatever the weights",
    )

    def provides(self) -> frozenset[Capability]:
        return super().provides() | (frozenset({Capability.VALUE}) if self.value_head else NONE)


class SamplerConfig(Component):
    """A way to draw samples from the policies of one paradigm."""

    paradigm: ClassVar[str]
    supervised: ClassVar[bool] = False
    """Whether it returns data instead of drawing from the policy, so that no reward is needed."""
    gives: ClassVar[Capability | None] = None
    """The medium of the data that a supervised sampler returns; None for any."""

    def provides(self) -> frozenset[Capability]:
        """What this configuration gives: step_logp, step_kl, entropy, preview."""
        return NONE

    def misfits(self, policy: PolicyConfig) -> dict[str, str]:
        """Fields whose values do not fit ``policy``, of the same paradigm, and why: sentences."""
        return {}

    def lacks(self, capability: Capability) -> str:
        """Why ``capability`` is not given, as half a sentence; empty for no more to say."""
        return ""

    @abstractmethod
    def build(self) -> "Sampler":
        """The sampler."""


class RewardConfig(Component):
    """A judgement of finished samples."""

    media: ClassVar[frozenset[Capability]] = frozenset({Capability.IMAGE})
    evaluation_only: ClassVar[bool] = False
    """Whether it judges whole sets or must stay held out: allowed under evaluate.metrics alone."""
    differentiable: ClassVar[bool] = False
    """Whether the reward has ``gradient``: the same number, from pixels that carry a graph."""
    loads_weights: ClassVar[bool] = False
    """Whether ``build()`` loads weights from elsewhere: it is no example for others' recipes."""
    weight: float = Field(1.0, description="factor of this reward in the sum of rewards")

    def needs(self) -> frozenset[Capability]:
        """Capabilities beyond a fitting medium."""
        return NONE

    def check_prompt(self, prompt: "Prompt") -> None:
        """Asked of every prompt of a recipe before anything is built, so without torch.

        The default judges any.

        Raises:
            RewardError: the reward cannot judge samples of this prompt: which, why, what to do.
        """

    @abstractmethod
    def build(self) -> "Reward":
        """The reward."""


class ObjectiveConfig(Component):
    """A loss on terms, rewards and advantages."""

    advantage_defaults: ClassVar[dict[str, Any]] = {}
    filter_defaults: ClassVar[dict[str, Any]] = {}
    uses_reward: ClassVar[bool] = True
    on_policy_gradient: ClassVar[bool] = False
    """Whether its expected update under the drawing weights is, up to a factor and the advantages'
    scale, the gradient of the expected reward (``genrl_core.testing.check_objective``)."""
    weight: float = Field(1.0, description="factor of this objective in the summed loss")

    def view_wanted(self) -> "View | None":
        """The view of the rollout it reads; None takes the view of its neighbour objective."""
        return "steps"

    def joins(self) -> "tuple[View, ...]":
        """For an objective that takes its neighbour's view: the views where it has its numbers."""
        return ("steps",)

    def draws_with(self) -> Literal["current", "old"]:
        """The weight slot whose samples it learns from: its ``draw_with``."""
        return "current"

    def needs(self) -> frozenset[Capability]:
        """Capabilities that the policy and the sampler must give together."""
        return frozenset({Capability.STEP_LOGP}) if self.view_wanted() == "steps" else NONE

    @abstractmethod
    def build(self) -> "Objective":
        """The objective."""


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class AdvantageConfig(Schema):
    """How rewards become advantages."""

    combine: Literal["sum", "normalise_then_sum"] = Field(
        "sum",
        description="several rewards: their weighted sum, or the weighted sum of each one's group "
        "z-score (GDPO); filter and objectives read it, and with z-scores an advantage is that sum "
        "divided by the batch's deviation, whatever baseline and scale",
    )
    baseline: Literal["group_mean", "leave_one_out", "batch_mean", "prompt_mean", "none"] = Field(
        "group_mean",
        description="what is subtracted from a reward; prompt_mean is its prompt's running one",
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

    min_spread: NonNegative | None = Field(
        None, description="groups whose reward spread is not above this are rejected; 0 for equal"
    )
    spread_percentile: Annotated[float, Field(gt=0, lt=100)] | None = Field(
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
        return self.min_spread is not None or self.spread_percentile is not None


class LoraConfig(Schema):
    """Train low-rank adapters (arXiv 2106.09685, by peft) instead of the network's weights."""

    rank: Count = Field(description="rank of every adapter")
    alpha: Count | None = Field(None, description="scale times rank; silent: the rank")
    target_modules: list[str] | None = Field(
        None, description="names of the modules that get one; silent: the policy's choice"
    )


class FollowConfig(Schema):
    """A slot that follows the current weights, once per iteration."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share that the slot keeps of itself; 0 copies the current weights"
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
    def _of_a_ramp(self) -> "FollowConfig":
        if self.ramp is None and (self.start or self.flat):
            raise ValueError("start and flat say where a ramp begins, and there is no ramp: add it")
        return self

    def share(self, iteration: int) -> float:
        """What the slot keeps after ``iteration`` iterations."""
        if self.ramp is None:
            return self.decay
        return min(self.decay, self.start + self.ramp * max(0, iteration - self.flat))


class WeightsConfig(Schema):
    """Weight slots beside the current one. The reference slot exists whenever it is needed."""

    lora: LoraConfig | None = Field(None, description="train adapters; the rest is frozen")
    ema: FollowConfig | None = Field(
        None, description="an average of the weights, which evaluations and samples then use"
    )
    old: FollowConfig = Field(
        FollowConfig(decay=0.0), description="the lagging weights that some objectives draw with"
    )


class PromptsConfig(Schema):
    """Where prompts come from: text (one per line), JSON lines or CSV with a column `text`."""

    file: str | None = Field(None, description="prompts to train on; relative to the recipe")
    evaluate: str | None = Field(
        None, description="held-out prompts to evaluate on", json_schema_extra=NEUTRAL
    )


class StepsConfig(Schema):
    """Which network calls of a sample are trained (computational reduction of Mask-GRPO)."""

    choose: Literal["all", "first", "last", "random", "stratified"] = Field(
        "all", description="random and stratified draw anew for every sample and iteration"
    )
    count: Count | None = Field(None, description="how many calls; every one for `all`")
    importance: bool = Field(
        False, description="weigh each call by 1 / P(chosen), so that the loss estimates all calls"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "StepsConfig":
        if (self.choose == "all") != (self.count is None):
            raise ValueError("count goes with first, last, random and stratified, and only them")
        if self.importance and self.choose not in ("random", "stratified"):
            raise ValueError("importance needs random or stratified: the others miss some calls")
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
    draws: Count = Field(1, description="corruption draws per sample, for bound and matching")
    rows_per_forward: Count = Field(
        512,
        description="rows (call, sample) in one training forward: the memory of an update; where "
        "the reward is differentiated, samples with the graph of all their steps that have one",
        json_schema_extra=NEUTRAL,
    )
    samples_per_forward: Count = Field(
        512, description="samples drawn together in a rollout", json_schema_extra=NEUTRAL
    )
    drift_tolerance: Positive | None = Field(
        None,
        description="largest allowed |log-density now - as recorded| under equal weights, nats; "
        "of a differentiated reward, in its own units; silent: by the network's precision, 1e-3, "
        "or 1 in bfloat16",
        json_schema_extra=NEUTRAL,
    )


class EvaluateConfig(Schema):
    """What is measured on the held-out prompts, always with the same random streams."""

    every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="iterations between evaluations; 0 for before and after alone",
        json_schema_extra=NEUTRAL,
    )
    num_generations: Count = Field(
        1, description="samples per held-out prompt", json_schema_extra=NEUTRAL
    )
    sampler: dict[str, Any] = Field(
        {}, description="sampler fields that differ in evaluation", json_schema_extra=NEUTRAL
    )
    metrics: dict[str, Any] = Field(
        {}, description="label -> reward used as a measure alone", json_schema_extra=NEUTRAL
    )
    base_sweep: dict[str, list[Any]] = Field(
        {},
        description="sampler field -> values at which the untrained policy is measured too",
        json_schema_extra=NEUTRAL,
    )
    headline: str | None = Field(
        None,
        description="the metric by which base_sweep picks its best; the first one if silent",
        json_schema_extra=NEUTRAL,
    )


class SaveConfig(Schema):
    """Checkpoints."""

    every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="iterations between checkpoints; 0 for those by time and the last",
        json_schema_extra=NEUTRAL,
    )
    minutes: NonNegative = Field(
        10.0,
        description="minutes after which an iteration is saved as well, counted from the last "
        "checkpoint by the clock of the first process; 0 for never",
        json_schema_extra=NEUTRAL,
    )
    keep: Annotated[int, Field(ge=1)] = Field(
        2, description="how many checkpoints are kept", json_schema_extra=NEUTRAL
    )


class RunConfig(Schema):
    """The run itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = Field(
        None,
        description="name of the run folder; silent: the recipe's name, numbered",
        json_schema_extra=NEUTRAL,
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="the seed of every random stream")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs", json_schema_extra=NEUTRAL
    )
    threads: Count | None = Field(
        None, description="CPU threads of torch; silent: torch's choice", json_schema_extra=NEUTRAL
    )


SECTIONS: dict[str, type[Schema]] = {
    "advantage": AdvantageConfig,
    "filter": FilterConfig,
    "weights": WeightsConfig,
    "prompts": PromptsConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "save": SaveConfig,
    "run": RunConfig,
}
"""The sections with a fixed schema; policy, sampler, reward and objective hold components."""
