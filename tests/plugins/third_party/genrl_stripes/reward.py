"""The reward: pixels differ across the stripes and agree along them."""

from genrl_core import Media, Prompt, Register, hookimpl


def stripiness(media: Media, prompts: list[Prompt]) -> list[float]:
    """Contrast across the prompted stripes minus contrast along them, -1 to 1."""
    grey = media.pixels[:, 0].float() / 255
    vertical = (grey.diff(dim=2).abs().mean((1, 2)) - grey.diff(dim=1).abs().mean((1, 2))).tolist()
    return [v if "vertical" in p.text else -v for v, p in zip(vertical, prompts, strict=True)]


@hookimpl
def register_rewards(register: Register) -> None:
    register("stripiness", stripiness)
