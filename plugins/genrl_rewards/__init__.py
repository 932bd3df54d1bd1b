"""Rewards for images: public networks that judge them, and measures that need none.

The networks are tested with random weights against independent forwards; what the published weights
score has not been compared with the published code.

This entry module holds configs and hooks only and loads no torch.
"""

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from genrl_core import Prompt, Register, RewardConfig, hookimpl

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""CLIP's largest public model: the paper's reward, and the tokenizer of its descendants."""


class NetworkRewardConfig(RewardConfig):
    """What every reward with a network has: where its weights are, and how many images at a time.

    Frozen, float32, on the run's device.
    """

    loads_weights: ClassVar[bool] = True
    called: ClassVar[str]
    """The name that it is registered under, for messages."""
    revision: str | None = Field(None, description="branch, tag or commit of weights on the hub")
    batch_size: Count = Field(
        32,
        description="images that pass through the network at a time",
        json_schema_extra={"changes_results": False},
    )


class ClipScoreConfig(NetworkRewardConfig):
    """Agreement of image and prompt by CLIP: the cosine of their embeddings, or its logit."""

    called: ClassVar[str] = "clip_score"
    paper = "arXiv 2104.08718, without its factor 2.5; the reward of arXiv 2510.13418"
    builds = "genrl_rewards.clip:clip_score"
    weights: str = Field(CLIP_H, description="folder or hub id of a CLIP model")
    tokenizer: str | None = Field(
        None, description="folder or hub id of the text's tokenizer; silent: that of weights"
    )
    scale: Literal["cosine", "logits"] = Field(
        "cosine",
        description="cosine: -1 to 1, in use about 0.1 to 0.4; logits: times exp(logit_scale), "
        "about 100, as logits_per_image is",
    )


class PickScoreConfig(NetworkRewardConfig):
    """Human preference by a CLIP trained on Pick-a-Pic; about 18 to 24, others divide it by 26."""

    called: ClassVar[str] = "pick_score"
    paper = "arXiv 2305.01569"
    builds = "genrl_rewards.clip:clip_score"
    weights: str = Field("yuvalkirstain/PickScore_v1", description="folder or hub id of PickScore")
    tokenizer: str | None = Field(CLIP_H, description="folder or hub id of the text's tokenizer")
    scale: Literal["cosine", "logits"] = Field(
        "logits", description="logits: exp(logit_scale) times the cosine, as published; or cosine"
    )


class HpsConfig(NetworkRewardConfig):
    """Human preference score v2 or v2.1: the cosine of a CLIP trained on HPD v2, 0.2 to 0.35."""

    called: ClassVar[str] = "hps_v2"
    paper = "arXiv 2306.09341"
    builds = "genrl_rewards.hps:hps"
    weights: str = Field(
        "xswu/HPSv2", description="folder or hub id that holds HPS_v2_compressed.pt or its sister"
    )
    tokenizer: str = Field(CLIP_H, description="folder or hub id of the text's tokenizer")
    version: Literal["2.0", "2.1"] = Field(
        "2.1", description="which of the two models: HPS_v2_compressed.pt, HPS_v2.1_compressed.pt"
    )


class ImageRewardConfig(NetworkRewardConfig):
    """Human preference by BLIP, standardised: about -2 to 2, with mean 0 and deviation 1."""

    called: ClassVar[str] = "image_reward"
    paper = "arXiv 2304.05977"
    builds = "genrl_rewards.image_reward:image_reward"
    weights: str = Field(
        "THUDM/ImageReward", description="folder or hub id that holds ImageReward.pt"
    )
    tokenizer: str = Field(
        "google-bert/bert-base-uncased", description="folder or hub id of the text's tokenizer"
    )


class AestheticConfig(NetworkRewardConfig):
    """LAION's aesthetic score of the image alone, about 1 to 10."""

    called: ClassVar[str] = "aesthetic"
    paper = "LAION aesthetic predictor v2; arXiv 2210.08402"
    builds = "genrl_rewards.aesthetic:aesthetic"
    weights: str = Field(
        "ttj/sac-logos-ava1-l14-linearMSE",
        description="folder, file or hub id of the linear layers on top of CLIP",
    )
    clip: str = Field(
        "openai/clip-vit-large-patch14", description="folder or hub id of the CLIP model below"
    )


class JpegSizeConfig(RewardConfig):
    """How many kilobytes (1,000 bytes) the image takes as JPEG, negated or not: no network."""

    paper = "arXiv 2305.13301"
    builds = "genrl_rewards.jpeg:JpegSize"
    prefer: Literal["small", "large"] = Field(
        "small",
        description="small: minus the size in kB (compressibility); large: the size itself "
        "(incompressibility); some published code divides it by 500, which is weight: 0.002 here",
    )
    quality: Annotated[int, Field(ge=1, le=95)] = Field(95, description="JPEG's quality, 1 to 95")


class GenEvalConfig(NetworkRewardConfig):
    """GenEval's rules on transformers' detector: not comparable with published GenEval numbers.

    For prompts with GenEval's columns ``tag``, ``include`` and ``exclude``, as
    ``python -m genrl_rewards.geneval_prompts FOLDER`` writes them.
    """

    called: ClassVar[str] = "geneval"
    paper = "arXiv 2310.11513; the dense form of arXiv 2505.05470"
    builds = "genrl_rewards.geneval:geneval"
    weights: str = Field(
        "facebook/mask2former-swin-small-coco-instance",
        description="folder or hub id of a Mask2Former with COCO's 80 classes",
    )
    clip: str = Field(
        "openai/clip-vit-large-patch14", description="folder or hub id of the CLIP for colours"
    )
    form: Literal["strict", "dense"] = Field(
        "dense",
        description="strict: the benchmark's verdict, 1 or 0; dense: the mean over what is asked "
        "of its share that is there, with exact counts, 1 at best and below 0 for a crowd",
    )
    resolution: Annotated[int, Field(ge=32)] = Field(
        800, description="pixels of the shorter side at which the detector sees an image"
    )
    batch_size: Count = Field(
        8,
        description="images that pass through the network at a time",
        json_schema_extra={"changes_results": False},
    )

    def check_prompt(self, prompt: Prompt) -> None:
        """Its columns are GenEval's."""
        from genrl_rewards.geneval_rules import request_of

        request_of(prompt)


class VlmJudgeConfig(RewardConfig):
    """What a vision-language model behind an OpenAI-compatible service thinks of an image, 0 to 1.

    It asks after the whole prompt as it stands. For UnifiedReward (arXiv 2503.05236), served by
    ``vllm serve CodeGoat24/UnifiedReward-qwen-7b``, whose 1 to 5 become 0 to 1 by ``(x - 1) / 4``;
    ``minimum: 0`` gives ``x / 5``, as published code has it, and takes a 0 for an answer too::

        vlm_judge:
          model: CodeGoat24/UnifiedReward-qwen-7b
          mode: score
          max_tokens: 512
          question: >-
            You are given a text caption and a generated image based on that caption. Your task is
            to evaluate this image based on two key criteria:

            1. Alignment with the Caption: Assess how well this image aligns with the provided
            caption. Consider the accuracy of depicted objects, their relationships, and attributes
            as described in the caption.

            2. Overall Image Quality: Examine the visual quality of this image, including clarity,
            detail preservation, color accuracy, and overall aesthetic appeal.

            Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.

            Your task is provided as follows:

            Text Caption: [{prompt}]
    """

    paper = "yes_probability: VQAScore, arXiv 2404.01291; score: UnifiedReward, arXiv 2503.05236"
    builds = "genrl_rewards.judge:VlmJudge"
    base_url: str = Field(
        "http://127.0.0.1:8000/v1",
        description="address of the service without /chat/completions; the default is vLLM's",
        json_schema_extra={"changes_results": False},
    )
    model: str = Field(min_length=1, description="name of the model, as the service knows it")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="NAME of the environment variable that holds the key; never the key",
        json_schema_extra={"changes_results": False},
    )
    mode: Literal["yes_probability", "score"] = Field(
        "yes_probability",
        description="yes_probability: P(yes) / (P(yes) + P(no)) of the answer's first token; "
        "score: a number x in the answer, as (x - minimum) / (maximum - minimum), "
        "so that 1 to 5 become (x - 1) / 4 unless minimum or maximum are given",
    )
    question: str = Field(
        'Does this figure show "{prompt}"? Please answer yes or no.',
        description="what is asked beside the image; {prompt} stands for the sample's prompt",
    )
    pattern: str = Field(
        r"Final Score:\s*([-+]?\d+(?:\.\d+)?)",
        description="score: regular expression with one group, the number; its last match counts",
    )
    minimum: float = Field(1.0, description="score: the worst; a number below is no answer")
    maximum: float = Field(5.0, description="score: the best; a number above is no answer")
    max_tokens: Count = Field(256, description="score: tokens that an answer may have")
    timeout: Positive = Field(
        120.0,
        description="seconds that one attempt may take",
        json_schema_extra={"changes_results": False},
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        4,
        description="attempts after the first one, 1, 2, 4, ... and at most 30 seconds apart",
        json_schema_extra={"changes_results": False},
    )
    outage: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="seconds that a run waits for a service that is down before it stops",
        json_schema_extra={"changes_results": False},
    )
    min_answered: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="share of a batch that must have a reply, and a number in it; with fewer the "
        "run waits, or stops; the rest has no reward",
    )
    concurrency: Count = Field(
        8,
        description="requests at a time",
        json_schema_extra={"changes_results": False},
    )

    @model_validator(mode="after")
    def _usable(self) -> "VlmJudgeConfig":
        address = urlsplit(self.base_url)
        _ = address.port  # raises where it is none
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("base_url should begin with http:// or https:// and name a host")
        if address.username or address.password or address.query or address.fragment:
            raise ValueError(
                "base_url holds more than an address, and run folders show it: give the key in an "
                "environment variable, and its name under api_key_env"
            )
        if "{prompt}" not in self.question:
            raise ValueError("question lacks {prompt}: the model would not know what to look for")
        _check_pattern(self.pattern)
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        return self


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"pattern is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"pattern has {groups} groups; expected one, the number: (\\d+)")


@hookimpl
def register_rewards(register: Register) -> None:
    """The networks, and the size of a file."""
    register(ClipScoreConfig.called, ClipScoreConfig)
    register(PickScoreConfig.called, PickScoreConfig)
    register(HpsConfig.called, HpsConfig)
    register(ImageRewardConfig.called, ImageRewardConfig)
    register(AestheticConfig.called, AestheticConfig)
    register("jpeg_size", JpegSizeConfig)
    register(GenEvalConfig.called, GenEvalConfig)
    register("vlm_judge", VlmJudgeConfig)
