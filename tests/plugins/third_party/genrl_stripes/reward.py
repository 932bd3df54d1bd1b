"""The reward: pixels differ across the stripes and agree along them."""

from collections.abc import Sequence

from genrl_core import Media, Prompt, Reward


class Stripiness(Reward):
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        assert media.pixels is not None
        grey = media.pixels[:, 0].float() / 255
        vertical = grey.diff(dim=2).abs().mean((1, 2)) - grey.diff(dim=1).abs().mean((1, 2))
        asked = ["vertical" in prompt.text for prompt in prompts]
        return [v if yes else -v for v, yes in zip(vertical.tolist(), asked, strict=True)]
