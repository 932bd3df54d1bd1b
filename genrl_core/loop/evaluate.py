"""Measuring a policy on held-out prompts, always with the same random streams."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrl_core.errors import RewardError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.reward_values import ask, brief, checked_number
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.generate import draw, judge
from genrl_core.loop.plan import evaluation_plan

PATIENCE = 10.0
"""Seconds without a word about an evaluation that goes on."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on what.

    Attributes:
        metrics: name -> number for the whole set.
        media, prompts: the samples, in plan order.
        num_generations: consecutive samples of one prompt.
    """

    metrics: dict[str, float]
    media: Media
    prompts: tuple[Prompt, ...]
    num_generations: int


def evaluate(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], *, seed: int,
    num_generations: int, rollout_batch_size: int, measures: Mapping[str, Reward],
    rewards: Mapping[str, tuple[float, Reward]], runtime: Runtime,
    notify: Callable[[str], None] = lambda _: None,
) -> Evaluation:  # fmt: skip
    """Draw ``num_generations`` samples of every prompt and measure the whole set.

    Measures report through ``Reward.summary``. The training rewards are averaged under
    ``reward/<label>``, so that a gain of the reward can be held against the measures. ``notify``
    is told how far it is every ``PATIENCE`` seconds, so never in a short one.
    """
    plan = evaluation_plan(seed, prompts, num_generations, runtime.device)
    own = runtime.own_groups(len(prompts))
    rows = [i for i, g in enumerate(plan.group.tolist()) if g in set(own)]
    media = None
    if rows:
        part = plan.select(plan.group.new_tensor(rows))
        told = _Told(notify, len(rows))
        media = draw(policy, sampler, part, rollout_batch_size, told)[1]
    pieces = [(r, m) for r, m in runtime.collect((rows, media)) if m is not None]
    order = [row for piece_rows, _ in pieces for row in piece_rows]
    whole = Media.concat([piece for _, piece in pieces])
    whole = whole.select(sorted(range(len(order)), key=order.__getitem__))
    asked = tuple(plan.sample_prompts())
    metrics: dict[str, float] = {}
    for label, each in measures.items():
        metrics |= measure(label, each, whole, asked)
    for label, (_, reward) in rewards.items():
        metrics[f"reward/{label}"] = float(judge(label, reward, whole, asked).nanmean())
    return Evaluation(metrics, whole, asked, num_generations)


class _Told:
    """How many of this rank's samples are drawn, now and then."""

    def __init__(self, notify: Callable[[str], None], total: int):
        self._notify, self._total = notify, total
        self._begun = self._said = time.monotonic()

    def __call__(self, drawn: int) -> None:
        now = time.monotonic()
        if now - self._said >= PATIENCE:
            self._said = now
            seconds = now - self._begun
            self._notify(f"evaluation: {drawn} of {self._total} samples drawn in {seconds:.0f} s")


def measure(
    label: str, reward: Reward, media: Media, prompts: Sequence[Prompt]
) -> dict[str, float]:
    """What the measure ``label`` reports of a whole set: name -> number.

    Raises:
        RewardError: it raised, or gave something else than numbers under names.
    """
    what = f"measure {label!r}"
    found: Any = ask(what, lambda: reward.summary(media, prompts))
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise RewardError(
            f"{what} gave {brief(found)} of type {type(found).__name__} as its summary: expected "
            "a mapping of names to numbers"
        )
    return {
        f"{label}/{name}" if name else label: checked_number(value, what, f" under {name!r}")
        for name, value in found.items()
    }
