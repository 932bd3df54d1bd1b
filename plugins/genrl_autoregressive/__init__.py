"""Autoregressive models: the policy base, the token sampler, and any causal language model.

This entry module holds configs and hooks only and loads no torch. The classes and pure functions
behind them are reached under the same names, ``from genrl_autoregressive import TokenSampler``, and
are imported on first use.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from genrl_core import (
    Capability,
    PolicyConfig,
    Register,
    SamplerConfig,
    ValueHeadConfig,
    hookimpl,
    lazy_names,
)

if TYPE_CHECKING:
    from genrl_autoregressive.causal_lm import CausalLm as CausalLm
    from genrl_autoregressive.policy import AutoregressivePolicy as AutoregressivePolicy
    from genrl_autoregressive.policy import left_padded as left_padded
    from genrl_autoregressive.policy import teacher_forced as teacher_forced
    from genrl_autoregressive.sampler import TokenSampler as TokenSampler
    from genrl_autoregressive.transformers_policy import TransformersPolicy as TransformersPolicy
    from genrl_autoregressive.transformers_policy import tiny_gpt2 as tiny_gpt2

_HOMES = {
    "AutoregressivePolicy": "policy", "left_padded": "policy", "teacher_forced": "policy",
    "TokenSampler": "sampler",
    "TransformersPolicy": "transformers_policy", "tiny_gpt2": "transformers_policy",
    "CausalLm": "causal_lm",
    "distribution": "",
}  # fmt: skip

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


__getattr__ = lazy_names(__name__, _HOMES)


class AutoregressivePolicyConfig(PolicyConfig):
    """A network that predicts the next token; the base of every autoregressive policy."""

    paradigm: ClassVar[str] = "autoregressive"
    medium: ClassVar[Capability] = Capability.TEXT

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.ELBO, Capability.DENOISING, self.medium})

    def why_missing(self, capability: Capability) -> str:
        if capability is Capability.DIFFERENTIABLE:
            return "a sampled token is one of a set, and no gradient passes through the choice"
        return ""


class CausalLmConfig(ValueHeadConfig, AutoregressivePolicyConfig):
    """Any causal language model of transformers, with its tokenizer, from a folder or the hub."""

    builds = "genrl_autoregressive.causal_lm:CausalLm"
    loads_weights: ClassVar[bool] = True
    base: str | None = Field(
        None,
        description="folder or hub id that is loaded first, tokenizer included, where weights are "
        "GenRL's own (a run, a checkpoint, recipe:NAME); silent: what that run began with, or "
        "weights itself is the model",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what the weights are rounded to when they are loaded, and of the network's "
        "products; what is trained or averaged, and densities, are float32 in any case",
    )
    chat_template: bool = Field(
        default=False, description="put each prompt into the tokenizer's template as one user turn"
    )
    keep_special_tokens: bool = Field(
        default=False,
        description="whether the texts that rewards judge hold the answer's special tokens, as "
        "tags like <think> may be; the end token is left out. media.raw_texts holds them always",
    )

    def weights_problem(self) -> str:
        if self.weights or self.base:
            return ""
        return (
            "is missing: give causal_lm a folder or a hub id, and where the weights are GenRL's "
            "own, name under policy.base the model they belong to"
        )


class TokenConfig(SamplerConfig):
    """Draw token after token from a cache of the past, with the exact density of each."""

    builds = "genrl_autoregressive.sampler:TokenSampler"
    paradigm: ClassVar[str] = "autoregressive"

    max_new_tokens: Count | None = Field(
        None,
        description="tokens at which a sample is cut off; silent where the policy itself has a "
        "fixed number, as images have",
    )
    temperature: Positive = Field(
        1.0, description="divides the logits before a token is drawn; inside the densities too"
    )
    guidance_scale: NonNegative = Field(
        1.0, description="s in uncond + s (cond - uncond), on logits; 1 is off and costs one call"
    )
    guidance_density: Literal["guided", "guided_detach_uncond", "conditional"] = Field(
        "guided",
        description="the density of a guided token. guided: of the guided distribution, exact; "
        "guided_detach_uncond: the same without gradient through the unconditional side; "
        "conditional: of the prompted side alone, which did not draw the token: biased",
    )
    top_k: Count | None = Field(
        None, description="draw among this many most likely tokens; takes the step densities away"
    )
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="draw among the fewest most likely tokens that hold this probability together; "
        "takes the step densities away",
    )

    @property
    def truncates(self) -> bool:
        """Whether some tokens are cut off."""
        return self.top_k is not None or self.top_p is not None

    def provides(self) -> frozenset[Capability]:
        if self.truncates:
            return frozenset()
        return frozenset({Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY})

    def why_missing(self, capability: Capability) -> str:
        exact = {Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY}
        if self.truncates and capability in exact:
            return (
                "top_k and top_p cut tokens off, and which ones changes with the weights, so a "
                "token drawn earlier may have no density; leave them out in training (they may "
                "stand under evaluate.sampler)"
            )
        return ""


@hookimpl
def register_policies(register: Register) -> None:
    """The policy of any language model."""
    register("causal_lm", CausalLmConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    """The sampler of autoregressive models."""
    register("token", TokenConfig)
