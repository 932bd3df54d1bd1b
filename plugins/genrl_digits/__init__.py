"""The embedded default: real handwritten digits, a tiny policy, a reward, three held-out measures.

No download and no GPU: the images are scikit-learn's (8 x 8 pixels, 17 grey levels). A third of
them trains the generator, a third the reward and a third the judge. This entry module holds configs
and hooks only and loads neither torch nor scikit-learn.
"""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from genrl_autoregressive import AutoregressivePolicyConfig
from genrl_core import (
    Capability,
    Prompt,
    Register,
    Reward,
    RewardConfig,
    SamplerConfig,
    ValueHeadConfig,
    hookimpl,
)
from genrl_diffusion import DiffusionPolicyConfig
from genrl_masked import MaskedPolicyConfig

Count = Annotated[int, Field(ge=1)]
LEVELS = 1000
"""Noise levels of the variance-preserving policy."""


class DigitsTokensConfig(ValueHeadConfig):
    """A small transformer over the 16 codes of an image."""

    width: Count = Field(64, description="channels of the transformer, a multiple of heads")
    layers: Count = Field(2, description="transformer blocks")
    heads: Count = Field(4, description="attention heads")
    codebook: Annotated[int, Field(ge=2, le=1024)] = Field(
        64, description="codes of the k-means codebook of 2 x 2 patches"
    )

    @model_validator(mode="after")
    def _divisible(self) -> "DigitsTokensConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def check_prompt(self, prompt: Prompt) -> None:
        """Its words are in the vocabulary."""
        _check(prompt)


class DigitsMaskedConfig(DigitsTokensConfig, MaskedPolicyConfig):
    """A transformer of 111,000 parameters over 16 codes of 2 x 2 pixels, prompted by four words."""

    builds = "genrl_digits.policy:DigitsMaskedPolicy"
    masks_prompts: ClassVar[bool] = True


class DigitsAutoregressiveConfig(DigitsTokensConfig, AutoregressivePolicyConfig):
    """A GPT-2 of 112,000 parameters that writes 16 codes of 2 x 2 pixels after four words."""

    builds = "genrl_digits.autoregressive:DigitsAutoregressivePolicy"
    medium: ClassVar[Capability] = Capability.IMAGE


class DigitsPixelsConfig(ValueHeadConfig, DiffusionPolicyConfig):
    """An MLP over 64 pixels, whatever it predicts."""

    differentiable: ClassVar[bool] = True
    width: Count = Field(256, description="units of a layer")
    layers: Count = Field(3, description="residual layers")

    def check_prompt(self, prompt: Prompt) -> None:
        """Its words are in the vocabulary."""
        _check(prompt)


class DigitsDiffusionConfig(DigitsPixelsConfig):
    """A flow-matching MLP of 509,000 parameters over 64 pixels, prompted by four words."""

    builds = "genrl_digits.pixels:DigitsDiffusionPolicy"


class DigitsDiffusionVpConfig(DigitsPixelsConfig):
    """The same MLP as a DDPM: variance preserving, 1,000 noise levels, it predicts the noise."""

    paper: ClassVar[str] = "arXiv 2006.11239"
    builds = "genrl_digits.pixels:DigitsDiffusionVpPolicy"
    noise_levels: ClassVar[int | None] = LEVELS


class DigitsDataConfig(SamplerConfig):
    """Real images of the prompted digit, from the generator split, for supervised training."""

    builds = "genrl_digits.sampler:DigitsDataSampler"
    paradigm: ClassVar[str] = "masked"
    supervised: ClassVar[bool] = True
    data_kind: ClassVar[Capability | None] = Capability.IMAGE
    caption_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="probability that the image is of a uniformly random digit (the prompted one "
        "included), so that the prompt says nothing about it",
    )


class DigitsDataAutoregressiveConfig(DigitsDataConfig):
    """The same data for autoregressive policies."""

    paradigm: ClassVar[str] = "autoregressive"


class DigitsDataDiffusionConfig(DigitsDataConfig):
    """The same data for diffusion policies."""

    paradigm: ClassVar[str] = "diffusion"


class DigitClassifierConfig(RewardConfig):
    """The probability that a classifier of the reward split gives the prompted digit, 0 to 1."""

    differentiable: ClassVar[bool] = True
    shuffle: bool = Field(
        default=False,
        description="the control that must fail: ask each image for a random digit, picked by a "
        "hash of its own pixels, instead of the prompted one",
    )

    def build(self) -> Reward:
        from genrl_digits.rewards import DigitClassifier

        return DigitClassifier(shuffle=self.shuffle)


class DigitJudgeConfig(RewardConfig):
    """Accuracy by a classifier of another kind on the judge split: whether the gain is real."""

    evaluation_only: ClassVar[bool] = True

    def build(self) -> Reward:
        from genrl_digits.rewards import DigitJudge

        return DigitJudge()


class DigitFrechetConfig(RewardConfig):
    """Frechet distance to the judge split in 16 principal components of the pixels; 0 is best."""

    paper = "arXiv 1706.08500, on pixels instead of Inception features"
    evaluation_only: ClassVar[bool] = True

    def build(self) -> Reward:
        from genrl_digits.rewards import DigitFrechet

        return DigitFrechet()


class DigitDiversityConfig(RewardConfig):
    """Mean distance in grey levels between two images of one prompt; real digits have about 36."""

    evaluation_only: ClassVar[bool] = True

    def build(self) -> Reward:
        from genrl_digits.rewards import DigitDiversity

        return DigitDiversity()


def _check(prompt: Prompt) -> None:
    from genrl_digits.words import word_ids

    word_ids(prompt)


@hookimpl
def register_policies(register: Register) -> None:
    """One policy per paradigm; for diffusion, flow matching and its elder sister."""
    register("digits_masked", DigitsMaskedConfig)
    register("digits_diffusion", DigitsDiffusionConfig)
    register("digits_diffusion_vp", DigitsDiffusionVpConfig)
    register("digits_autoregressive", DigitsAutoregressiveConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    """The data."""
    register("digits_data", DigitsDataConfig)
    register("digits_data_diffusion", DigitsDataDiffusionConfig)
    register("digits_data_autoregressive", DigitsDataAutoregressiveConfig)


@hookimpl
def register_rewards(register: Register) -> None:
    """The reward and the measures."""
    register("digit_classifier", DigitClassifierConfig)
    register("digit_judge", DigitJudgeConfig)
    register("digit_frechet", DigitFrechetConfig)
    register("digit_diversity", DigitDiversityConfig)
