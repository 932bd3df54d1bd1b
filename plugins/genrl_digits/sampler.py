"""A sampler that returns data: real digits, with captions as noisy as the recipe wants them."""

from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from genrl_core import Plan, Policy, RecipeError, Sampler, Tensors, Terms, Trajectory
from genrl_digits import DigitsDataConfig
from genrl_digits.data import Array, split
from genrl_digits.words import digit_of


@runtime_checkable
class TakesDigits(Protocol):
    """A policy that turns real images into finished samples of its own kind."""

    def tokenize(self, images: Array) -> Tensors:
        """Images ``[B, 8, 8]``, grey 0 to 16, to ``final``."""


class DigitsDataSampler(Sampler):
    """Images of the generator split, drawn with replacement.

    With probability ``caption_noise`` c the digit is uniform on 0..9 instead of the prompted one,
    so that a caption is right with probability ``1 - 0.9 c``.
    """

    def __init__(self, config: DigitsDataConfig):
        self._noise = config.caption_noise

    def rollout(
        self, policy: Policy, cond: Tensors, plan: Plan,
        grad_steps: int = 0,  # noqa: ARG002  # data have no gradient
    ) -> Trajectory:  # fmt: skip
        """One image per sample, no trace and no terms; all randomness is the stream ``data``.

        Raises:
            RecipeError: the policy cannot take digits.
        """
        if not isinstance(policy, TakesDigits):
            raise RecipeError(
                f"sampler.use: digits_data gives images of digits, which {type(policy).__name__} "
                "cannot take: use it with a policy of genrl_digits"
            )
        noisy, other, which = plan.streams("data").uniform(3).double().cpu().numpy().T
        asked = np.array([digit_of(prompt) for prompt in plan.sample_prompts()])
        digits = np.where(noisy < self._noise, np.floor(other * 10).astype(np.int64), asked)
        chosen = [
            rows[int(share * len(rows))]
            for rows, share in zip((_rows_of(d) for d in digits.tolist()), which, strict=True)
        ]
        final = policy.tokenize(split("generator").images[chosen])
        device = torch.device(plan.device)
        placed = {name: tensor.to(device) for name, tensor in final.items()}
        return Trajectory(cond, {}, placed, Terms.empty(len(plan), device))


@cache
def _rows_of(digit: int) -> list[int]:
    """Where the generator split shows ``digit``."""
    return [int(row) for row in np.flatnonzero(split("generator").labels == digit)]
