"""A sampler that returns data: real digits, with captions as noisy as the recipe wants them."""

from functools import cache

import numpy as np

from genrl_core import DataSampler, Plan
from genrl_digits import DigitsDataConfig
from genrl_digits.data import Array, split
from genrl_digits.words import digit_of


class DigitsDataSampler(DataSampler):
    """Images of the generator split, drawn with replacement.

    With probability ``caption_noise`` c the digit is uniform on 0..9 instead of the prompted one,
    so that a caption is right with probability ``1 - 0.9 c``.
    """

    what = "digits_data gives images of digits"
    taken_by = "a policy of genrl_digits"

    def __init__(self, config: DigitsDataConfig):
        self._noise = config.caption_noise

    def examples(self, plan: Plan) -> Array:
        """Images ``[B, 8, 8]``, grey 0 to 16."""
        noisy, other, which = plan.streams("data").uniform(3).double().cpu().numpy().T
        asked = np.array([digit_of(prompt) for prompt in plan.sample_prompts()])
        digits = np.where(noisy < self._noise, np.floor(other * 10).astype(np.int64), asked)
        chosen = [
            rows[int(share * len(rows))]
            for rows, share in zip((_rows_of(d) for d in digits.tolist()), which, strict=True)
        ]
        return split("generator").images[chosen]


@cache
def _rows_of(digit: int) -> list[int]:
    """Where the generator split shows ``digit``."""
    return [int(row) for row in np.flatnonzero(split("generator").labels == digit)]
