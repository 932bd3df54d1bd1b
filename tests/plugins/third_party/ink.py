"""A reward in one file, for ``--plugin``: how dark a picture is."""

from collections.abc import Callable, Sequence

from genrl_core import Media, Prompt, Reward, RewardConfig, hookimpl


class Ink(Reward):
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        assert media.pixels is not None
        return [1 - float(picture.float().mean()) / 255 for picture in media.pixels]


class InkConfig(RewardConfig):
    """The share of ink, 0 to 1."""

    def build(self) -> Reward:
        return Ink()


@hookimpl
def register_rewards(register: Callable[[str, type[RewardConfig]], None]) -> None:
    register("ink", InkConfig)
