"""The interface of a reward: how good a finished sample is. Importing it loads no torch."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from genrl_core.capability import MEDIA, Capability
from genrl_core.config import RewardConfig
from genrl_core.errors import PluginError, RewardError
from genrl_core.media import Media, Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RewardFunction = Callable[[Media, list[Prompt]], Sequence[float | None]]
"""A reward without a class: called like one, and registered like one."""


class Reward(ABC):
    """A number per finished sample. It never sees the policy, the sampler or the weights."""

    @abstractmethod
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        """One finite number per sample, larger is better; None where there is none.

        None for every sample of a prompt means that the reward does not apply to it: the other
        rewards alone count there. A sample that lacks what others of its prompt have is left out.
        """

    def to(self, device: torch.device) -> None:  # noqa: B027  # most have nothing to move
        """Move networks to the run's device, once after ``build()``; the default has none."""

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
            RewardError: the reward applies to no sample.
        """
        given = [value for value in self(media, prompts) if value is not None]
        if not given:
            name = type(self).__name__
            raise RewardError(f"{name} gave no value for any of {len(media)} samples")
        return {"": float(sum(given) / len(given))}


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
