"""A text task that can be verified: the sum of two numbers, character by character.

No download and no GPU. The prompt is ``12+7=``, the answer ``19`` and the end. This entry module
holds configs and hooks only and loads no torch.
"""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from genrl_autoregressive import AutoregressivePolicyConfig
from genrl_core import (
    Capability,
    PolicyConfig,
    Prompt,
    Register,
    Reward,
    RewardConfig,
    SamplerConfig,
    ValueHeadConfig,
    hookimpl,
)
from genrl_masked import MaskedPolicyConfig

Count = Annotated[int, Field(ge=1)]


class TransformerConfig(PolicyConfig):
    """The size of a small transformer."""

    width: Count = Field(64, description="channels of the transformer, a multiple of heads")
    layers: Count = Field(2, description="transformer blocks")
    heads: Count = Field(4, description="attention heads")

    @model_validator(mode="after")
    def _divisible(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ArithmeticLmConfig(TransformerConfig, ValueHeadConfig, AutoregressivePolicyConfig):
    """A GPT-2 of 102,000 parameters that reads and writes digits, from scratch."""

    builds = "genrl_arithmetic.policy:ArithmeticLm"
    positions: Count = Field(16, description="characters of prompt and answer at the most")

    def check_prompt(self, prompt: Prompt) -> None:
        """It is a sum; whether it is too long depends on the sampler."""
        from genrl_arithmetic.task import prompt_ids

        prompt_ids(prompt)


class ArithmeticMaskedConfig(TransformerConfig, MaskedPolicyConfig):
    """A BERT of 107,000 parameters that fills in the digits of an answer, from scratch."""

    builds = "genrl_arithmetic.canvas:ArithmeticMasked"
    medium: ClassVar[Capability] = Capability.TEXT
    masks_prompts: ClassVar[bool] = True
    prompt_length: Count = Field(6, description="characters of a prompt at the most")
    answer_length: Count = Field(
        3, description="N, characters of an answer, the ends that fill it up included"
    )

    def check_prompt(self, prompt: Prompt) -> None:
        """It is a sum of at most ``prompt_length`` characters."""
        from genrl_arithmetic.task import prompt_ids

        prompt_ids(prompt, self.prompt_length)


class ArithmeticDataConfig(SamplerConfig):
    """The answers to the prompted sums, for supervised training."""

    builds = "genrl_arithmetic.sampler:ArithmeticData"
    paradigm: ClassVar[str] = "autoregressive"
    supervised: ClassVar[bool] = True
    data_kind: ClassVar[Capability | None] = Capability.TEXT
    answer_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="probability that the answer is off by 1 to 9, up or down, instead of right",
    )


class ArithmeticDataMaskedConfig(ArithmeticDataConfig):
    """The same data for masked policies."""

    paradigm: ClassVar[str] = "masked"


class ArithmeticCorrectConfig(RewardConfig):
    """1 where the text is the sum that the prompt asks for, in decimal digits; 0 elsewhere."""

    media: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})

    def build(self) -> Reward:
        from genrl_arithmetic.reward import ArithmeticCorrect

        return ArithmeticCorrect()


@hookimpl
def register_policies(register: Register) -> None:
    """The language model, and the masked one."""
    register("arithmetic_lm", ArithmeticLmConfig)
    register("arithmetic_masked", ArithmeticMaskedConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    """The data."""
    register("arithmetic_data", ArithmeticDataConfig)
    register("arithmetic_data_masked", ArithmeticDataMaskedConfig)


@hookimpl
def register_rewards(register: Register) -> None:
    """The rule."""
    register("arithmetic_correct", ArithmeticCorrectConfig)
