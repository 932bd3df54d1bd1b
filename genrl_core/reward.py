"""The interface of a reward: how good a finished sample is. Importing it loads no torch."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from genrl_core.capability import MEDIA, Capability
from genrl_core.config import RewardConfig
from genrl_core.errors import GenRLError, PluginError, RewardError
from genrl_core.media import Media, Prompt, Reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

RewardFunction = Callable[[Media, list[Prompt]], Sequence[float | None]]
"""A reward without a class: called like one, and registered like one."""


class Reward(ABC):
    """A number per finished sample. It never sees the policy, the sampler or the weights."""

    @abstractmethod
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        """One finite number per sample, larger is better; None where there is none.

        A list or another sequence, or an array or tensor of one axis; else the run stops.
        None for every sample of a prompt means that the reward does not apply to it: the other
        rewards alone count there. A sample that lacks what others of its prompt have is left out.
        """

    def to(self, device: torch.device) -> None:  # noqa: B027  # most have nothing to move
        """Move networks to the run's device, once after ``build()``; the default has none."""

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:  # noqa: ARG002
        """How much of the prompts the reward reads, as ``Policy.reading``; by default all.

        What is cut off is named before a run: prompts that differ there alone are judged alike.
        """
        return ()

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same number, differentiable: ``[B]`` from pixels ``[B, 3, H, W]`` in [0, 1].

        The config of a reward that has it says ``differentiable = True``. The reward must apply to
        every sample here; those to which ``__call__`` gave None are left out before.
        """
        raise NotImplementedError(f"{type(self).__name__} is not differentiable")

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        """The numbers that an evaluation reports for a whole set; an empty key is the component's
        own label. The default is the mean over the samples where the reward applies.

        Raises:
            RewardError: the reward applies to no sample, or does not give numbers.
        """
        name = type(self).__name__
        found = checked_values(f"reward {name!r}", self(media, prompts), prompts)
        given = [value for value in found if value is not None]
        if not given:
            raise RewardError(f"{name} gave no value for any of {len(media)} samples")
        return {"": float(sum(given) / len(given))}


def ask(what: str, call: Callable[[], T]) -> T:
    """What a reward's method returns; ``what`` begins the message where it fails.

    Raises:
        RewardError: it raised, or asked to leave the process, which must not pass for a success.
    """
    try:
        return call()
    except (GenRLError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"{what} raised {type(error).__name__}: {error}; the run stops, since a failed reward "
            "must not count as a bad sample"
        ) from error


def checked_values(what: str, given: Any, prompts: Sequence[Prompt]) -> list[float | None]:
    """What a reward returned, if it is a number or None per sample.

    Raises:
        RewardError: it is no sequence or array of one axis, has another length than the prompts,
            or holds something that is no real number of a float's range.
    """
    # Of what has keys, no order, or is read once nothing is a sequence; of text and bytes all is.
    array = getattr(given, "ndim", 0) == 1 and hasattr(given, "tolist")
    raw = isinstance(given, str | bytes | bytearray | memoryview)
    if raw or not (array or isinstance(given, Sequence)):
        shape = getattr(given, "shape", None)
        kind = type(given).__name__ + (f" of shape {[*shape]}" if isinstance(shape, tuple) else "")
        raise RewardError(
            f"{what} gave something of type {kind} for {len(prompts)} samples: expected a list, or "
            "an array of one axis, with a number or None for every sample"
        )
    values: Any = ask(what, cast(Any, given).tolist) if array else given
    if len(values) != len(prompts):
        raise RewardError(f"{what} gave {len(values)} values for {len(prompts)} samples")
    return [
        None if value is None else _number(value, what, f" for sample {place}", prompts[place])
        for place, value in enumerate(values)
    ]


def measure(
    label: str, reward: Reward, media: Media, prompts: Sequence[Prompt]
) -> dict[str, float]:
    """What the measure ``label`` reports of a whole set: name -> number.

    Raises:
        RewardError: it raised, or gave something else than numbers under names.
    """
    what = f"measure {label!r}"
    found: Any = ask(what, lambda: reward.summary(media, prompts))
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise RewardError(
            f"{what} gave {_brief(found)} of type {type(found).__name__} as its summary: expected "
            "a mapping of names to numbers"
        )
    return {
        f"{label}/{name}" if name else label: _number(value, what, f" under {name!r}")
        for name, value in found.items()
    }


def _number(value: Any, what: str, where: str, prompt: Prompt | None = None) -> float:
    """A value as a float; array libraries have numbers of their own, without axes."""
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    wrong = "which is no number"
    if not isinstance(plain, bool) and isinstance(plain, Real | Decimal):
        try:
            return float(plain)
        except (OverflowError, ValueError):
            wrong = "which no float can hold"
    asked = f" (prompt {_brief(prompt.text)})" if prompt else ""
    raise RewardError(
        f"{what} gave {_brief(value)}{where}{asked}, of type {type(plain).__name__}, {wrong}: "
        "expected a number"
    )


def _brief(value: object) -> str:
    """A value for a message; an int of thousands of digits refuses to be written out."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # whatever its class does, the message must come
        return "what cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def config_of(function: RewardFunction, media: str) -> type[RewardConfig]:
    """The config class of a plain function that judges ``media``; its one field is the weight.

    Raises:
        PluginError: it has no docstring or takes other arguments, or there is no such medium.
    """
    name, known = function.__name__, sorted(medium.value for medium in MEDIA)
    if not (function.__doc__ or "").strip():
        raise PluginError(f"{name}() has no docstring; `genrl ls` shows the first line of it")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise PluginError(f"{name}() cannot be called as {name}(media, prompts)") from None
    if media not in known:
        raise PluginError(f"{name}() judges the unknown medium {media!r}; there are {known}")
    judged = frozenset({Capability(media)})

    class FunctionReward(Reward):
        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
            return function(media, list(prompts))

    class FunctionConfig(RewardConfig):
        __doc__ = function.__doc__
        media: ClassVar[frozenset[Capability]] = judged

        def build(self) -> Reward:
            return FunctionReward()

    FunctionReward.__name__ = FunctionConfig.__name__ = name
    return FunctionConfig
