"""Orderings of a few items: a paradigm with two samplers, a reward, and recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genrl_core import (
    Capability,
    Media,
    PolicyConfig,
    Prompt,
    Register,
    SamplerConfig,
    hookimpl,
)

if TYPE_CHECKING:
    from .policy import OrderPolicy
    from .samplers import PickSampler, SortSampler


class OrderConfig(PolicyConfig):
    """Orders a few items by scores that depend on the prompt (Plackett-Luce)."""

    paradigm = "orders"
    num_items: int = Field(4, ge=2, description="N, the items of an order")

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.ELBO, Capability.TEXT})

    def build(self) -> "OrderPolicy":
        from .policy import OrderPolicy

        return OrderPolicy(self)


class _OrderSamplerConfig(SamplerConfig):
    paradigm = "orders"
    temperature: float = Field(1.0, gt=0, description="divides the scores, in the density too")


class PickConfig(_OrderSamplerConfig):
    """Picks one item after the other: a step and a term for each."""

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY})

    def build(self) -> "PickSampler":
        from .samplers import PickSampler

        return PickSampler(self)


class SortConfig(_OrderSamplerConfig):
    """Sorts noisy scores: the same distribution, drawn and scored in one call."""

    def provides(self) -> frozenset[Capability]:
        return frozenset({Capability.STEP_LOGP})

    def why_missing(self, capability: Capability) -> str:
        return "an item's distribution depends on those before it; take the sampler pick"

    def build(self) -> "SortSampler":
        from .samplers import SortSampler

        return SortSampler(self)


def in_order(media: Media, prompts: Sequence[Prompt]) -> list[float]:
    """The share of pairs that stand as the prompt asks, ascending or descending."""
    found = []
    for text, prompt in zip(media.texts, prompts, strict=True):
        items = [int(word) for word in text.split()]
        pairs = [(a, b) for place, a in enumerate(items) for b in items[place + 1 :]]
        rising = sum(a < b for a, b in pairs) / len(pairs)
        found.append(1 - rising if "descending" in prompt.text else rising)
    return found


@hookimpl
def register_policies(register: Register) -> None:
    register("order", OrderConfig)


@hookimpl
def register_samplers(register: Register) -> None:
    register("pick", PickConfig)
    register("sort", SortConfig)


@hookimpl
def register_rewards(register: Register) -> None:
    register("in_order", in_order, media="text")


@hookimpl
def register_recipes(register: Register) -> None:
    register(Path(__file__).parent / "recipes")
