"""The rule: the text is the right number, or it is not."""

from collections.abc import Sequence

from genrl_arithmetic.task import answer
from genrl_core import Media, Prompt, Reward, RewardError


class ArithmeticCorrect(Reward):
    """1 where the stripped text is the sum in decimal digits without leading zeros, else 0."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        if media.kind != "text":
            raise RewardError(f"arithmetic_correct judges texts and found {media.kind}")
        pairs = zip(media.texts, prompts, strict=True)
        return [float(text.strip() == str(answer(prompt))) for text, prompt in pairs]
