"""A plain function as a reward: the config class and the component that a registry needs of it."""

import inspect
from collections.abc import Sequence
from typing import ClassVar

from genrl_core.errors import PluginError
from genrl_core.interfaces.capability import MEDIA, Capability
from genrl_core.interfaces.configs import RewardConfig
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.reward import Reward, RewardFunction


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
