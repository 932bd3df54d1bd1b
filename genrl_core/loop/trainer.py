"""The one loop: prompts to records, one direction, any paradigm, any objective.

An iteration is GRPO's (arXiv 2402.03300) with the parts apart: samples are drawn in groups, rewards
become advantages, an objective differentiates numbers of the samples, and the gradient of these
numbers goes through the network. It differs from GRPO and PPO as published in that any objective
may take the loss's place, that densities are recorded when a sample is drawn and never assumed
equal, and that the gradient of coupled losses is exact (``gradient``).
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from genrl_core.errors import GenRLError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.advantage import Advantages, Baseline
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.evaluate import Evaluation, Evaluator
from genrl_core.loop.objectives import ObjectiveGroup, RequiredWeights
from genrl_core.loop.rollout import Rollout, RolloutEngine
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.update import Learner
from genrl_core.loop.views import Context
from genrl_core.loop.weights import CURRENT, REFERENCE, WeightSets

SKIPPED_ITERATIONS = 3
"""Iterations' worth of skipped steps in a row that stop a run."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a trainer is made of; ``run.assembly`` builds them from a recipe.

    Attributes:
        policy, sampler: what draws and scores.
        rewards: label -> (weight, reward).
        objectives: grouped by view.
        weight_sets: of the policy; ``required`` says which beside the current one.
        rollouts: where samples come from.
        evaluator: measures on held-out prompts.
        optimizer, scheduler: of the trainable parameters.
        train, advantage: the sections of the recipe.
        seed: of minibatches.
        baseline: a plugin's, in place of those that ``advantage`` names.
        began_with: a hash of the policy's weights before training, which a checkpoint names.
        warn: told what the user should look at.
    """

    policy: Policy
    sampler: Sampler
    rewards: Mapping[str, tuple[float, Reward]]
    objectives: Sequence[ObjectiveGroup]
    weight_sets: WeightSets
    required: RequiredWeights
    rollouts: RolloutEngine
    evaluator: Evaluator
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train: TrainConfig
    advantage: AdvantageConfig
    runtime: Runtime
    seed: int
    began_with: str = ""
    baseline: Baseline | None = None
    warn: Callable[[str], None] = warnings.warn


@dataclass(frozen=True)
class Record:
    """One iteration.

    Attributes:
        iteration: 1 for the first.
        metrics: what ``metrics.jsonl`` holds, see ``run.glossary``.
        media, prompts: this rank's samples that were learned from.
        problem: why an optimizer step was skipped, or None.
        empty: why there was nothing to learn in all of its steps, or None.
    """

    iteration: int
    metrics: dict[str, float]
    media: Media
    prompts: tuple[Prompt, ...]
    problem: str | None = None
    empty: str | None = None


class Trainer:
    """A policy being trained: everything that an iteration changes, and nothing that it writes."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.weight_sets = parts.weight_sets
        self.averages = dict(parts.required.averages)
        for name in ([REFERENCE] if parts.required.reference else []) + list(self.averages):
            self.weight_sets.snapshot(name)
        self.rollouts = parts.rollouts
        self.advantages = Advantages(parts.advantage, parts.baseline)
        context = Context(
            parts.policy, parts.sampler, parts.weight_sets, parts.train, parts.advantage,
            parts.runtime, parts.rewards,
        )  # fmt: skip
        self.learner = Learner(parts.objectives, context, parts.optimizer, parts.scheduler)
        self.iteration = 0
        self._idle, self._barren, self._idle_because = 0, 0, ""

    def step(self) -> Record:
        """One iteration.

        Raises:
            GenRLError: a reward failed, the drift check failed, or too many steps were skipped.
        """
        start, rate = time.perf_counter(), float(self.parts.optimizer.param_groups[0]["lr"])
        rollout = self.rollouts.collect(self.iteration)
        middle = time.perf_counter()
        advantage = self.advantages(rollout)
        learned, problem = self.learner.learn(rollout, advantage, self.parts.seed, self.iteration)
        self.iteration += 1
        if learned["skipped"] < 1:
            for name, average in self.averages.items():
                self.weight_sets.ema_update(name, average.decay_at(self.iteration))
        empty = rollout.nothing_to_learn if learned["empty"] == 1 else None
        self._guard(rollout, learned["skipped"] == 1, problem, empty)
        now = time.perf_counter()
        metrics = {"iteration": float(self.iteration), "learning_rate": rate} | rollout.metrics
        metrics |= learned | {"seconds_update": now - middle, "seconds": now - start}
        return Record(self.iteration, metrics, rollout.media, rollout.prompts, problem, empty)

    def _guard(self, rollout: Rollout, idle: bool, problem: str | None, empty: str | None) -> None:
        """Count the iterations that moved nothing, and stop where steps are skipped on and on."""
        if idle:
            self._idle, self._idle_because = self._idle + 1, problem or empty or "see its warnings"
            self._barren += problem is not None or not rollout.valid.any()
        skipped = self.learner.skipped
        if problem and skipped >= SKIPPED_ITERATIONS * self.learner.steps:
            raise GenRLError(
                f"{skipped} optimizer steps in a row were skipped; the last because {problem}. "
                "Lower train.learning_rate, or look at that reward or term; the last checkpoint "
                "is intact"
            )

    def check_learned(self) -> None:
        """Refuse to call a policy trained that never had anything to learn from.

        Where there were rewards, but always equal ones, a warning says that no weight has moved: a
        run of few iterations may be meant to try a recipe.

        Raises:
            GenRLError: there were iterations, and none had a usable sample.
        """
        if not self.iteration or self._idle < self.iteration:
            return
        said = (
            f"nothing was learned: none of {self.iteration} iterations took an optimizer step, the "
            f"last because {self._idle_because}. The weights are those that the run began with: "
            "look at the rewards and at the section filter"
        )
        if self._barren == self.iteration:
            raise GenRLError(said)
        self.parts.warn(said)

    def evaluate(self, **overrides: Any) -> Evaluation:
        """Measure the policy on the held-out prompts, with sampler fields overridden.

        Raises:
            RecipeError: there are no held-out prompts, or the sampler does not take the fields.
        """
        with self.evaluated_policy() as policy:
            return self.parts.evaluator(policy, **overrides)

    def evaluated_policy(self) -> AbstractContextManager[Policy]:
        """The policy under the weights that evaluations and samples use: the average, if any."""
        return self.weight_sets.using(self.evaluated_weights)

    @property
    def evaluated_weights(self) -> str:
        return "ema" if "ema" in self.averages else CURRENT

    def state_dict(self) -> dict[str, Any]:
        """What an iteration changes beside weights and optimizer moments: JSON."""
        return {
            "scheduler_step": self.parts.scheduler.last_epoch,
            "filter": self.rollouts.state_dict(), "statistics": self.advantages.state_dict(),
            "skipped": self.learner.skipped, "idle": self._idle, "barren": self._barren,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], iteration: int) -> None:
        """Continue from ``state_dict`` after ``iteration`` iterations."""
        self.parts.scheduler.last_epoch = state["scheduler_step"]
        self.rollouts.load_state_dict(state["filter"])
        self.advantages.load_state_dict(state["statistics"])
        self.learner.skipped = state["skipped"]
        # Checkpoints of before do not count them.
        self._idle, self._barren = state["idle"], state["barren"]
        self._idle_because = "see its warnings"
        self.iteration = iteration
