"""A reward in one file, for ``--plugin``."""

from genrl_core import Media, Prompt, Register, hookimpl


def ink(media: Media, prompts: list[Prompt]) -> list[float]:
    """The share of ink, 0 to 1."""
    return [1 - float(picture.float().mean()) / 255 for picture in media.pixels]


@hookimpl
def register_rewards(register: Register) -> None:
    register("ink", ink)
