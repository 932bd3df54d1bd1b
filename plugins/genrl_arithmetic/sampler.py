"""A sampler that returns data: the answers, as wrong as the recipe wants them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from genrl_arithmetic import ArithmeticDataConfig, task
from genrl_core import Plan, Policy, RecipeError, Sampler, Tensors, Terms, Trajectory


@runtime_checkable
class TakesTexts(Protocol):
    """A policy that turns texts into finished samples of its own kind."""

    def tokenize(self, texts: Sequence[str]) -> Tensors:
        """B texts to ``final``."""


class ArithmeticData(Sampler):
    """The sum that each prompt asks for.

    With probability ``answer_noise`` it is off by a number drawn uniformly from 1 to 9, added or,
    where the answer stays at 0 or above, as often taken away: such an answer is never right.
    """

    def __init__(self, config: ArithmeticDataConfig):
        self._noise = config.answer_noise

    def rollout(
        self, policy: Policy, cond: Tensors, plan: Plan,
        grad_steps: int = 0,  # noqa: ARG002  # data have no gradient
    ) -> Trajectory:  # fmt: skip
        """One answer per sample, no trace and no terms; all randomness is the stream ``data``.

        Raises:
            RecipeError: the policy cannot take texts.
        """
        if not isinstance(policy, TakesTexts):
            raise RecipeError(
                f"sampler.use: arithmetic_data gives texts, which {type(policy).__name__} cannot "
                "take: use it with arithmetic_lm or causal_lm"
            )
        drawn = plan.streams("data").uniform(3).double().tolist()
        texts = []
        for prompt, (noisy, size, sign) in zip(plan.sample_prompts(), drawn, strict=True):
            right, off = task.answer(prompt), 1 + int(9 * size)
            wrong = right - off if sign < 0.5 and right >= off else right + off
            texts.append(str(wrong if noisy < self._noise else right))
        device = torch.device(plan.device)
        final = {name: tensor.to(device) for name, tensor in policy.tokenize(texts).items()}
        return Trajectory(cond, {}, final, Terms.empty(len(plan), device))
