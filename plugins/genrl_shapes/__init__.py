"""A compositional world of coloured shapes and its verifier: the Mask-GRPO paper in miniature.

No download and no GPU: scenes are drawn by rule, 30 x 30 pixels in five colours, and prompts ask
for them in GenEval's six categories. This entry module holds configs and hooks only and loads
neither torch nor scikit-learn.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Capability, Prompt, Register, Reward, RewardConfig, SamplerConfig, hookimpl
from genrl_masked import MaskedPolicyConfig

Count = Annotated[int, Field(ge=1)]

SHIPPED = ("base-0", "base-1", "base-4")
"""Bases that come with the package, by their seeds: ``policy.weights`` takes the names."""


class ShapesMaskedConfig(MaskedPolicyConfig):
    """A transformer of 184,000 parameters over 36 codes of 5 x 5 pixels, prompted by 7 words.

    ``weights`` may be the name of a shipped base: base-0, base-1 or base-4.
    """

    builds = "genrl_shapes.policy:ShapesMaskedPolicy"
    loads_weights: ClassVar[bool] = True
    masks_prompts: ClassVar[bool] = True
    width: Count = Field(64, description="channels of the transformer, a multiple of heads")
    layers: Count = Field(3, description="transformer blocks")
    heads: Count = Field(4, description="attention heads")

    @model_validator(mode="after")
    def _divisible(self) -> "ShapesMaskedConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @model_validator(mode="after")
    def _known_base(self) -> "ShapesMaskedConfig":
        if (self.weights or "").startswith("base-") and self.weights not in SHIPPED:
            raise ValueError(f"weights {self.weights} is none of {', '.join(SHIPPED)}")
        return self

    def check_prompt(self, prompt: Prompt) -> None:
        """Its words are in the vocabulary."""
        from genrl_shapes.grammar import word_ids

        word_ids(prompt)


class ShapesDataConfig(SamplerConfig):
    """Scenes that show what the prompts ask for and nothing else, for supervised training."""

    builds = "genrl_shapes.sampler:ShapesDataSampler"
    paradigm: ClassVar[str] = "masked"
    supervised: ClassVar[bool] = True
    data_kind: ClassVar[Capability | None] = Capability.IMAGE
    caption_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="probability that the scene is that of a random prompt of the same category",
    )


class ShapesVerifierConfig(RewardConfig):
    """Whether the objects found in the pixels are those that the prompt asks for, 0 to 1."""

    paper = "arXiv 2310.11513, its six categories, on shapes that can be found without a network"
    form: Literal["dense", "strict", "random"] = Field(
        "dense",
        description="strict: 1 where the image has the objects asked for, in colour and relation, "
        "and nothing else, else 0; dense: the share of that which is there, 0 to 1, less for what "
        "should not be there; 1 in the same images; random: the control that must fail, a number "
        "that says nothing of the image, from a hash of all the prompt's images",
    )
    shuffle: bool = Field(
        default=False,
        description="the control for form without content: ask each image for a random request of "
        "the prompt's category, picked by a hash of its own pixels, instead of the prompted one",
    )

    def check_prompt(self, prompt: Prompt) -> None:
        """It asks for something in this world."""
        _check(prompt)

    def build(self) -> Reward:
        from genrl_shapes.verifier import ShapesVerifier

        return ShapesVerifier(form=self.form, shuffle=self.shuffle)


class ShapesJudgeConfig(RewardConfig):
    """1 where a classifier trained on other renderings sees just what the prompt asks for."""

    evaluation_only: ClassVar[bool] = True

    def check_prompt(self, prompt: Prompt) -> None:
        """It asks for something in this world."""
        _check(prompt)

    def build(self) -> Reward:
        from genrl_shapes.judge import ShapesJudge

        return ShapesJudge()


def _check(prompt: Prompt) -> None:
    from genrl_shapes.grammar import request_of

    request_of(prompt)


@hookimpl
def register_policies(register: Register) -> None:
    """The policy."""
    register("shapes_masked", ShapesMaskedConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    """The data."""
    register("shapes_data", ShapesDataConfig)


@hookimpl
def register_rewards(register: Register) -> None:
    """The verifier and the judge."""
    register("shapes_verifier", ShapesVerifierConfig)
    register("shapes_judge", ShapesJudgeConfig)
