"""A plugin in one file that imports no torch: components for the recipe and CLI tests."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from genrl_core import (
    NONE,
    Capability,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
    Schema,
    hookimpl,
)


class Never:
    """A part that no test builds."""

    def build(self) -> Any:
        raise NotImplementedError


class Edge(Schema):
    width: float = Field(1.0, gt=0, description="millimetres")
    milled: bool = False


class Coin(Never, PolicyConfig):
    """A coin that makes images."""

    paradigm: ClassVar[str] = "coin"
    paper = "arXiv 0000.00000"
    sides: int = Field(2, ge=2, description="faces of the coin")
    edge: Edge = Edge()
    label: str | int = "penny"

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.IMAGE, Capability.ELBO})


class Token(Coin):
    """A coin without a bound."""

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.IMAGE})


class Toss(Never, SamplerConfig):
    """Toss the coin step by step."""

    paradigm: ClassVar[str] = "coin"
    num_inference_steps: int = Field(4, ge=1, description="network calls per sample")
    guidance_scale: float = Field(1.0, description="1 is off")
    noise: float = Field(1.0, ge=0, description="spin; 0 is deterministic")
    schedule: Literal["cosine", "linear"] = "cosine"
    limit: float | None = Field(3.0, description="cut; null for none")

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_LOGP}) if self.noise > 0 else NONE

    def why_missing(self, capability: Capability) -> str:
        return "a toss without noise has no step density"


class Drop(Never, SamplerConfig):
    """Drop the coin: deterministic."""

    paradigm: ClassVar[str] = "coin"

    def why_missing(self, capability: Capability) -> str:
        return "a deterministic sampler has no step density"


class Mint(Never, SamplerConfig):
    """Real coins, as data."""

    paradigm: ClassVar[str] = "coin"
    supervised: ClassVar[bool] = True


class Ripple(Never, SamplerConfig):
    """A sampler of another paradigm."""

    paradigm: ClassVar[str] = "wave"

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_LOGP})


class Shine(Never, RewardConfig):
    """How bright the image is."""


class Essay(Never, RewardConfig):
    """How good the text is."""

    media: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})


class Jury(Never, RewardConfig):
    """A held-out judge."""

    evaluation_only: ClassVar[bool] = True


class Clip(Never, ObjectiveConfig):
    """A clipped ratio."""

    view: Literal["steps", "elbo"] = "steps"
    epsilon: float = Field(
        gt=0, description="clip of the ratio", json_schema_extra={"propose": {"coin": 0.2}}
    )
    reduce: Literal["token_mean", "sample_mean"] = "sample_mean"

    def view_wanted(self) -> Any:
        return self.view


class Plain(Never, ObjectiveConfig):
    """An objective on the steps alone, with defaults for the advantage."""

    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "none"}
    filter_defaults: ClassVar[dict[str, Any]] = {"min_std": 0.0}


class Other(Never, ObjectiveConfig):
    """Disagrees with plain about the advantage."""

    advantage_defaults: ClassVar[dict[str, Any]] = {"scale": "batch_std"}


class Near(Never, ObjectiveConfig):
    """Takes its neighbour's view."""

    uses_reward: ClassVar[bool] = False

    def view_wanted(self) -> Any:
        return None


class Fit(Never, ObjectiveConfig):
    """Fits data on the bound."""

    uses_reward: ClassVar[bool] = False

    def view_wanted(self) -> Any:
        return "elbo"


@hookimpl
def register_policies(register: Any) -> None:
    register("coin", Coin)
    register("token", Token)


@hookimpl
def register_samplers(register: Any) -> None:
    for name, config in (("toss", Toss), ("drop", Drop), ("mint", Mint), ("ripple", Ripple)):
        register(name, config)


@hookimpl
def register_rewards(register: Any) -> None:
    for name, config in (("shine", Shine), ("essay", Essay), ("jury", Jury)):
        register(name, config)


@hookimpl
def register_objectives(register: Any) -> None:
    for name, config in (
        ("clip", Clip), ("plain", Plain), ("other", Other), ("near", Near), ("fit", Fit),
    ):  # fmt: skip
        register(name, config)


@hookimpl
def register_commands(register: Any) -> None:
    def flip(times: int = 1) -> None:
        """Flip the coin."""
        print("heads " * times)

    register(flip, name="flip")
