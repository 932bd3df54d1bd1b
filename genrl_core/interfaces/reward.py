"""The interface of a reward: how good a finished sample is. Importing it loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from genrl_core.errors import RewardError
from genrl_core.interfaces.media import Media, Prompt, Reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor
from genrl_core.interfaces.reward_values import checked_values

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
