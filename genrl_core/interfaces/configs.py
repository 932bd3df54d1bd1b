"""What recipes are made of: the config classes of components and the schema of every section.

A component is registered as a config class. The class carries the schema (strict, frozen, unknown
keys forbidden), the paradigm, the capabilities given or needed, and what it builds: only then are
torch and a plugin's heavy libraries imported. Nothing in this module imports them.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from genrl_core.errors import PluginError
from genrl_core.interfaces.capability import Capability

if TYPE_CHECKING:
    from genrl_core.interfaces.media import Prompt
    from genrl_core.interfaces.objective import Objective, ViewName
    from genrl_core.interfaces.policy import Policy
    from genrl_core.interfaces.reward import Reward
    from genrl_core.interfaces.sampler import Sampler

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
        builds: what ``build()`` calls with the config, ``"package.module:Name"``, a class or a
            function that is imported at that moment; or a class, where it can be imported without
            torch. A config that needs more than a call has a ``build()`` of its own.
    """

    paper: ClassVar[str] = ""
    builds: ClassVar[str | type] = ""

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    @classmethod
    def suggested_values(cls) -> dict[str, Any] | None:
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

    def build(self) -> Any:
        """What ``builds`` names, called with this config.

        Raises:
            PluginError: there is no such module, or it has no such name.
        """
        builds = type(self).builds
        if isinstance(builds, type):
            return builds(self)
        module, _, name = builds.partition(":")
        where = f"{type(self).__name__}.builds is {builds!r}"
        if not (module and name):
            raise PluginError(f"{where}; expected package.module:Name, or a build() of its own")
        try:
            home = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
            raise PluginError(f"{where}, and there is no module {error.name}") from None
        if not hasattr(home, name):
            raise PluginError(f"{where}, and {module} has no {name}")
        return getattr(home, name)(self)


class PolicyConfig(Component):
    """A network of one paradigm and the glue around it."""

    paradigm: ClassVar[str]
    loads_weights: ClassVar[bool] = False
    """Whether ``build()`` loads ``weights`` that are neither a recipe's nor in a GenRL folder."""
    fields_enabling: ClassVar[dict[Capability, dict[str, Any]]] = {}
    """Fields that make it provide a capability which its defaults leave out."""
    weights: str | None = Field(
        None,
        description="where the weights come from: `recipe:NAME` trains that recipe once and caches "
        "the result, a GenRL checkpoint or run folder, or whatever the policy itself can load",
    )

    def provides(self) -> frozenset[Capability]:
        """What this configuration gives: elbo, denoising, value, differentiable, its media."""
        return NONE

    def why_missing(self, capability: Capability) -> str:
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

    def build(self) -> "Policy":
        """The policy on the CPU, in evaluation mode. Weights that the core loads are None here."""
        built: Policy = super().build()
        return built


class ValueHeadConfig(PolicyConfig):
    """A policy that can predict the expected reward of a state; mixed into its paradigm's config.

    ``build()`` then adds a head to the network and sets ``Policy.predicts_value``.
    """

    fields_enabling: ClassVar[dict[Capability, dict[str, Any]]] = {
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
    data_kind: ClassVar[Capability | None] = None
    """The medium of the data that a supervised sampler returns; None for any."""

    def provides(self) -> frozenset[Capability]:
        """What this configuration gives: step_logp, step_kl, entropy, preview."""
        return NONE

    def incompatible_fields(self, policy: PolicyConfig) -> dict[str, str]:
        """Fields whose values do not fit ``policy``, of the same paradigm, and why: sentences."""
        return {}

    def why_missing(self, capability: Capability) -> str:
        """Why ``capability`` is not given, as half a sentence; empty for no more to say."""
        return ""

    def build(self) -> "Sampler":
        """The sampler."""
        built: Sampler = super().build()
        return built


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

    def build(self) -> "Reward":
        """The reward."""
        built: Reward = super().build()
        return built


class ObjectiveConfig(Component):
    """A loss on terms, rewards and advantages."""

    advantage_defaults: ClassVar[dict[str, Any]] = {}
    filter_defaults: ClassVar[dict[str, Any]] = {}
    uses_reward: ClassVar[bool] = True
    on_policy_gradient: ClassVar[bool] = False
    """Whether its expected update under the drawing weights is, up to a factor and the advantages'
    scale, the gradient of the expected reward (``genrl_core.testing.check_objective``)."""
    weight: float = Field(1.0, description="factor of this objective in the summed loss")

    def view_wanted(self) -> "ViewName | type[Any] | None":
        """The view of the rollout it reads; None takes the view of its neighbour objective."""
        return "steps"

    def compatible_views(self) -> "tuple[ViewName, ...]":
        """For an objective that takes its neighbour's view: the views where it has its numbers."""
        return ("steps",)

    def draws_with(self) -> Literal["current", "lagging"]:
        """The weight set whose samples it learns from."""
        return "current"

    def needs(self) -> frozenset[Capability]:
        """Capabilities that the policy and the sampler must give together."""
        return frozenset({Capability.STEP_LOGP}) if self.view_wanted() == "steps" else NONE

    def build(self) -> "Objective":
        """The objective."""
        built: Objective = super().build()
        return built


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
