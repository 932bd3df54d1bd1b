"""Measuring a policy on held-out prompts, always with the same random streams."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrl_core.errors import RecipeError, RewardError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.reward_values import ask, brief, checked_number
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.generate import generate, score_rewards
from genrl_core.loop.plan import evaluation_plan

REPORT_SECONDS = 10.0
"""How often an evaluation that takes longer says how far it is."""


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


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Draws ``num_generations`` samples of every held-out prompt and measures the whole set.

    Metrics report through ``Reward.summary``. The training rewards are averaged under
    ``reward/<label>``, so that a gain of the reward can be held against the metrics.

    Attributes:
        sampler: the sampler of an evaluation, with fields overridden.
        prompts: the held-out prompts.
        metrics: label -> what measures.
        rewards: label -> (weight, reward), those of training.
        seed, num_generations, rollout_batch_size: of the samples.
        report: told how far a long evaluation is.
    """

    sampler: Callable[..., Sampler]
    prompts: Sequence[Prompt]
    metrics: Mapping[str, Reward]
    rewards: Mapping[str, tuple[float, Reward]]
    seed: int
    num_generations: int
    rollout_batch_size: int
    runtime: Runtime
    report: Callable[[str], None] = lambda _: None

    def __call__(self, policy: Policy, **overrides: Any) -> Evaluation:
        """Measure; ``overrides`` are fields of the sampler.

        Raises:
            RecipeError: there are no held-out prompts, or the sampler does not take the fields.
            RewardError: a metric or a reward failed.
        """
        if not self.prompts:
            raise RecipeError("nothing to evaluate on: the recipe has no prompts.evaluate")
        runtime, sampler = self.runtime, self.sampler(**overrides)
        plan = evaluation_plan(self.seed, self.prompts, self.num_generations, runtime.device)
        own = runtime.own_groups(len(self.prompts))
        rows = [i for i, g in enumerate(plan.group.tolist()) if g in set(own)]
        media = None
        if rows:
            part = plan.select(plan.group.new_tensor(rows))
            report = _Throttled(self.report, len(rows))
            media = generate(policy, sampler, part, self.rollout_batch_size, report)[1]
        pieces = [(r, m) for r, m in runtime.collect((rows, media)) if m is not None]
        order = [row for piece_rows, _ in pieces for row in piece_rows]
        whole = Media.concat([piece for _, piece in pieces])
        whole = whole.select(sorted(range(len(order)), key=order.__getitem__))
        asked = tuple(plan.sample_prompts())
        found: dict[str, float] = {}
        for label, each in self.metrics.items():
            found |= measure(label, each, whole, asked)
        for label, (_, reward) in self.rewards.items():
            mean = score_rewards(label, reward, whole, asked).nanmean()
            found[f"reward/{label}"] = float(mean)
        return Evaluation(found, whole, asked, self.num_generations)


class _Throttled:
    """Says how many of this rank's samples are drawn, every ``REPORT_SECONDS``."""

    def __init__(self, report: Callable[[str], None], total: int):
        self._report, self._total = report, total
        self._begun = self._said = time.monotonic()

    def __call__(self, drawn: int) -> None:
        now = time.monotonic()
        if now - self._said >= REPORT_SECONDS:
            self._said = now
            seconds = now - self._begun
            self._report(f"evaluation: {drawn} of {self._total} samples drawn in {seconds:.0f} s")


def measure(
    label: str, reward: Reward, media: Media, prompts: Sequence[Prompt]
) -> dict[str, float]:
    """What the metric ``label`` reports of a whole set: name -> number.

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
