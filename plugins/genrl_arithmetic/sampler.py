"""A sampler that returns data: the answers, as wrong as the recipe wants them."""

from genrl_arithmetic import ArithmeticDataConfig, task
from genrl_core import DataSampler, Plan


class ArithmeticData(DataSampler):
    """The sum that each prompt asks for.

    With probability ``answer_noise`` it is off by a number drawn uniformly from 1 to 9, added or,
    where the answer stays at 0 or above, as often taken away: such an answer is never right.
    """

    what = "arithmetic_data gives texts"
    taken_by = "a policy of genrl_arithmetic, or causal_lm"

    def __init__(self, config: ArithmeticDataConfig):
        self._noise = config.answer_noise

    def examples(self, plan: Plan) -> list[str]:
        """The answers as texts."""
        drawn = plan.streams("data").uniform(3).double().tolist()
        texts = []
        for prompt, (noisy, size, sign) in zip(plan.sample_prompts(), drawn, strict=True):
            right, off = task.answer(prompt), 1 + int(9 * size)
            wrong = right - off if sign < 0.5 and right >= off else right + off
            texts.append(str(wrong if noisy < self._noise else right))
        return texts
