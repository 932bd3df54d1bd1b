"""Which prompt, which sample, which random stream: pure functions of (seed, iteration, attempt)."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.records import Plan

EVALUATION = -1
"""The iteration number of evaluation plans: their streams never meet those of training."""


def permutation(seed: int, *key: object, size: int) -> list[int]:
    """A permutation of ``range(size)`` that depends on the seed and the key alone."""
    text = "/".join(map(str, (seed, *key)))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return [int(i) for i in generator.permutation(size)]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, count: int) -> list[int]:
    """The order of an epoch's prompts, made once: there may be a million."""
    return permutation(seed, "epoch", epoch, size=count)


def training_plan(
    seed: int, iteration: int, attempt: int, prompts: Sequence[Prompt],
    num_prompts: int, num_generations: int, device: torch.device | str = "cpu",
) -> Plan:  # fmt: skip
    """The samples of one rollout.

    Attempt 0 walks through the prompts in epochs, each in its own order; later attempts (resampling
    of filtered groups) draw prompts from an order of their own.
    """
    count = len(prompts)
    if attempt == 0:
        places = range(iteration * num_prompts, (iteration + 1) * num_prompts)
        orders = {epoch: _epoch(seed, epoch, count) for epoch in {p // count for p in places}}
        chosen = [orders[place // count][place % count] for place in places]
    else:
        order = permutation(seed, "resample", iteration, attempt, size=count)
        chosen = [order[place % count] for place in range(num_prompts)]
    picked = [prompts[index] for index in chosen]
    return plan_of(seed, iteration, attempt, picked, num_generations, device)


def evaluation_plan(
    seed: int, prompts: Sequence[Prompt], num_generations: int, device: torch.device | str = "cpu"
) -> Plan:
    """Every prompt, always with the same streams, so that evaluations compare like with like."""
    return plan_of(seed, EVALUATION, 0, prompts, num_generations, device)


def plan_of(
    seed: int, iteration: int, attempt: int, prompts: Sequence[Prompt], num_generations: int,
    device: torch.device | str = "cpu",
) -> Plan:  # fmt: skip
    """``num_generations`` samples of each prompt, group by group.

    A prompt that occurs twice continues counting its samples, so no two samples share a stream.
    """
    seen: dict[str, int] = {}
    group: list[int] = []
    sample: list[int] = []
    for place, prompt in enumerate(prompts):
        first = seen.get(prompt.id, 0)
        seen[prompt.id] = first + num_generations
        group += [place] * num_generations
        sample += range(first, first + num_generations)
    return Plan(
        seed, iteration, attempt, tuple(prompts), torch.tensor(group, dtype=torch.int64),
        torch.tensor(sample, dtype=torch.int64), device,
    )  # fmt: skip
