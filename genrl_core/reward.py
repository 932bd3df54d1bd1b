"""The interface of a reward: how good a finished sample is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from genrl_core.errors import RewardError
from genrl_core.records import Media, Prompt


class Reward(ABC):
    """A number per finished sample. It never sees the policy, the sampler or the weights."""

    @abstractmethod
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        """One finite number per sample, larger is better; None where it does not apply."""

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same number, differentiable: ``[B]`` from pixels ``[B, 3, H, W]`` in [0, 1]."""
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
