"""The one loop: prompts to records, one direction, any paradigm, any objective."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrl_core.errors import CheckpointError, GenRLError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.advantage import PromptStatistics
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.evaluate import Evaluation, evaluate
from genrl_core.loop.filters import GroupFilter
from genrl_core.loop.optim import build_optimizer, build_scheduler
from genrl_core.loop.plan import training_plan
from genrl_core.loop.preparation import Side, build_objective, sides_of
from genrl_core.loop.rollout import Collector, Rollout
from genrl_core.loop.settings import EmaConfig
from genrl_core.loop.update import Learner
from genrl_core.loop.weights import WeightSets, fingerprint
from genrl_core.recipe.check import CheckedRecipe, check_recipe
from genrl_core.recipe.identity import refusal
from genrl_core.recipe.problems import raise_if
from genrl_core.recipe.prompts import Reader, unread
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.recipe.views import resolve_views
from genrl_core.run import assembly as build
from genrl_core.run import checkpoint
from genrl_core.run.bases import Notify

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
SKIPS = 3
"""Iterations' worth of skipped steps in a row that stop a run."""


@dataclass(frozen=True)
class Record:
    """One iteration.

    Attributes:
        iteration: 1 for the first.
        metrics: what ``metrics.jsonl`` holds, see ``recorder.GLOSSARY``.
        media, prompts: this rank's samples that were learned from.
        problem: why an optimizer step was skipped, or None.
        empty: why there was nothing to learn in all of its steps, or None.
    """

    iteration: int
    metrics: dict[str, float]
    media: Media
    prompts: tuple[Prompt, ...]
    problem: str | None = field(default=None)
    empty: str | None = field(default=None)


class Trainer:
    """A policy being trained: everything that an iteration changes, and nothing that it writes."""

    def __init__(
        self, recipe: Recipe | CheckedRecipe, *, policy: Policy | None = None,
        sampler: Sampler | None = None, rewards: Mapping[str, Reward] | None = None,
        optimizer: OptimizerFactory | None = None, runtime: Runtime | None = None,
        notify: Notify = lambda _: None, warn: Notify = warnings.warn,
    ):  # fmt: skip
        """Build what the recipe names; what is injected replaces it.

        ``notify`` is told what goes on, ``warn`` what the user should look at.

        Raises:
            RecipeError: the recipe's parts do not fit together.
        """
        checked = check_recipe(
            recipe, policy_injected=policy is not None, sampler_injected=sampler is not None,
            rewards_injected=rewards is not None,
        )  # fmt: skip
        self.recipe = recipe = checked.recipe
        self._notify, self._warn = notify, warn
        self.runtime = runtime or Runtime(recipe.run.device)
        if recipe.run.threads is not None:
            torch.set_num_threads(recipe.run.threads)
        train_base = partial(_train_base, notify=notify)
        self.policy = policy or build.build_policy(recipe, self.runtime, train_base, notify)
        self._sampler_injected = sampler is not None
        self.sampler = sampler or _required(recipe.sampler, "sampler").build()
        self.rewards = _rewards(recipe, rewards)
        self.measures = {label: config.build() for label, config in recipe.metrics.items()}
        built = [] if rewards is not None else [reward for _, reward in self.rewards.values()]
        for reward in (*built, *self.measures.values()):
            reward.to(self.runtime.device)
        self.prompts, self.held_out = checked.prompts, checked.eval_prompts
        self._sides = _sides(recipe)
        base = fingerprint(self.policy.network)
        self.weight_sets = WeightSets(self.policy, recipe.weights.lora, recipe.run.seed)
        self.runtime.broadcast_(p.data for p in self.weight_sets.trainable.values())
        needs = frozenset().union(*(side.needs for side in self._sides))
        mixed = {slot for side in self._sides for mix in side.mixtures for slot in mix}
        reference = bool(needs & {"reference", "kl_reference"}) or "reference" in mixed
        if reference:
            self.weight_sets.snapshot("reference")
        # What a checkpoint does not hold must be the same when a run is resumed.
        self._base_hash = base if reference or recipe.weights.lora is not None else ""
        members = [objective for side in self._sides for _, _, objective in side.members]
        draws = {objective.draw_with for objective in members}
        self._followers: dict[str, EmaConfig] = {}
        if "lagging" in draws or "lagging" in mixed or "kl_behavior" in needs:
            self._followers["lagging"] = recipe.weights.lagging
        if "kl_behavior" in needs and "lagging" not in draws and recipe.weights.lagging.decay > 0:
            raise RecipeError(
                f"{recipe.place('weights', 'lagging')}: weights.lagging: decay is "
                f"{recipe.weights.lagging.decay:g}, but the trust region is around the weights "
                f"that "
                "drew the samples, the current ones here: leave weights.lagging out"
            )
        if recipe.weights.ema is not None:
            self._followers["ema"] = recipe.weights.ema
        for name in self._followers:
            self.weight_sets.snapshot(name)
        parameters = list(self.weight_sets.trainable.values())
        self.optimizer = (
            build_optimizer(self.weight_sets.trainable.items(), recipe.train)
            if optimizer is None
            else optimizer(parameters)
        )
        self._scheduler = build_scheduler(self.optimizer, recipe.train)
        self._filter = GroupFilter(recipe.filter)
        self._collector = Collector(
            self.sampler, self.rewards, self._filter, recipe.filter, self.runtime,
            recipe.train.rollout_batch_size, self.weight_sets,
            "lagging" if "lagging" in draws else "current",
            recipe.advantage,
        )  # fmt: skip
        self._learner = Learner(
            self.policy, self.sampler, self.weight_sets, self._sides, recipe.train,
            recipe.advantage,
            self.optimizer, self._scheduler, self.runtime, self.rewards,
        )  # fmt: skip
        self.iteration = 0
        self._idle, self._barren, self._idle_because = 0, 0, ""
        self._prompts_checked = False

    def check_prompts(self) -> None:
        """Look at every prompt before any is drawn; done once, by ``step`` and ``evaluate`` too.

        A prompt that is read in part is a warning.

        Raises:
            RecipeError: the policy cannot take a prompt; all of them.
        """
        if self._prompts_checked:
            return
        self._prompts_checked = True
        files, sampler = self.recipe.prompt_files, self.sampler
        readers: dict[str, Reader] = {"the policy": partial(sampler.reading, self.policy)}
        rewards = {name: reward for name, (_, reward) in self.rewards.items()}
        readers |= _reading_of("reward", rewards)
        problems, cuts = unread(self.prompts, readers, files["file"].place)
        if self.held_out:
            if not self._sampler_injected:
                sampler = self.recipe.sampler_for().build()
            readers["the policy"] = partial(sampler.reading, self.policy)
            readers |= _reading_of("measure", self.measures)
            refused, cut = unread(self.held_out, readers, files["evaluate"].place)
            problems, cuts = problems + refused, cuts + cut
        for text in dict.fromkeys(cuts):
            self._warn(text)
        raise_if(problems)

    def step(self) -> Record:
        """One iteration.

        Raises:
            RecipeError: the policy cannot take a prompt, at the first.
            GenRLError: a reward failed, the drift check failed, or too many steps were skipped.
        """
        self.check_prompts()
        train, seed = self.recipe.train, self.recipe.run.seed
        start = time.perf_counter()

        def plan(attempt: int, groups: int) -> Plan:
            return training_plan(
                seed, self.iteration, attempt, self.prompts, groups, train.num_generations,
                self.runtime.device,
            )  # fmt: skip

        rollout = self._collector.collect(plan, train.num_prompts)
        middle = time.perf_counter()
        rate = float(self.optimizer.param_groups[0]["lr"])
        learned, problem = self._learner.learn(rollout, seed, self.iteration)
        self.iteration += 1
        empty = _nothing_to_learn(rollout) if learned["empty"] == 1 else None
        if learned["skipped"] == 1:
            self._idle, self._idle_because = self._idle + 1, problem or empty or "see its warnings"
            self._barren += problem is not None or not rollout.valid.any()
        else:
            for name, follow in self._followers.items():
                self.weight_sets.ema_update(name, follow.decay_at(self.iteration))
        self._guard(problem)
        now = time.perf_counter()
        metrics = {"iteration": float(self.iteration), "learning_rate": rate} | rollout.metrics
        metrics |= learned | {"seconds_update": now - middle, "seconds": now - start}
        return Record(self.iteration, metrics, rollout.media, rollout.prompts, problem, empty)

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
        self._warn(said)

    def _guard(self, problem: str | None) -> None:
        skipped = self._learner.skipped
        if problem and skipped >= SKIPS * self._learner.steps:
            raise GenRLError(
                f"{skipped} optimizer steps in a row were skipped; the last because {problem}. "
                "Lower train.learning_rate, or look at that reward or term; the last checkpoint "
                "is intact"
            )

    def evaluate(self, **overrides: Any) -> Evaluation:
        """Measure the policy on the held-out prompts, with sampler fields overridden.

        Raises:
            RecipeError: there are no held-out prompts, or an injected sampler is to be overridden.
        """
        recipe = self.recipe
        if not self.held_out:
            raise RecipeError("nothing to evaluate on: the recipe has no prompts.evaluate")
        if self._sampler_injected and overrides:
            raise RecipeError("an injected sampler has no fields to override in an evaluation")
        self.check_prompts()
        sampler = self.sampler
        if not self._sampler_injected:
            sampler = recipe.sampler_for(**overrides).build()
        with self.in_use() as policy:
            return evaluate(
                policy, sampler, self.held_out, seed=recipe.run.seed,
                num_generations=recipe.evaluate.num_generations,
                rollout_batch_size=recipe.train.rollout_batch_size, measures=self.measures,
                rewards=self.rewards, runtime=self.runtime, notify=self._notify,
            )  # fmt: skip

    def in_use(self) -> AbstractContextManager[Policy]:
        """The policy under the weights that evaluations and samples use: the average, if any."""
        return self.weight_sets.using(self.slot_in_use)

    @property
    def slot_in_use(self) -> str:
        return "ema" if "ema" in self._followers else "current"

    def save(self, folder: Path) -> None:
        """Write a checkpoint on rank 0; every rank may call it."""
        if not self.runtime.main:
            return
        tensors, optimizer = checkpoint.optimizer_tensors(self.optimizer)
        state = {
            "recipe": self.recipe.essence(),
            "base": self._base_hash,
            "optimizer": optimizer,
            "scheduler_step": self._scheduler.last_epoch,
            "filter": self._filter.state_dict(),
            "statistics": self._learner.statistics.state_dict(),
            "skipped": self._learner.skipped,
            "idle": self._idle,
            "barren": self._barren,
        }
        groups = {"policy": self.weight_sets.state_dict(), "optimizer": tensors}
        groups |= {f"slot_{name}": self.weight_sets.state_dict(name) for name in self._followers}
        checkpoint.save(folder, self.iteration, groups, state, self.recipe.save.keep)

    def check(self, snapshot: checkpoint.Snapshot, *, to_learn: bool = True) -> None:
        """Whether ``restore`` would take a checkpoint; nothing changes.

        Raises:
            CheckpointError: it belongs to another recipe, network or reference, or it is damaged.
        """
        state, tensors, path = snapshot.state, snapshot.tensors, snapshot.path
        with checkpoint.understood(path):
            if why := refusal(state["recipe"], self.recipe, snapshot.iteration):
                raise CheckpointError(
                    f"{path} was written by another recipe ({why}): resume with the run's own "
                    "recipe.resolved.yaml, or start a new run with policy.weights set to this "
                    "folder"
                )
            if state["base"] != self._base_hash:
                raise CheckpointError(
                    f"the reference weights of {path} cannot be rebuilt: policy.weights gives "
                    "other weights than when the run began"
                )
            try:
                self.weight_sets.check(tensors["policy"])
                for name in self._followers:
                    self.weight_sets.check(tensors[f"slot_{name}"], name)
            except ValueError as error:
                raise CheckpointError(f"{path} holds another network: {error}") from error
            if to_learn:
                self._check_learning(state, tensors["optimizer"])

    def _check_learning(self, state: Mapping[str, Any], moments: Mapping[str, Tensor]) -> None:
        checkpoint.optimizer_state(self.optimizer, moments, state["optimizer"])
        GroupFilter(self.recipe.filter).load_state_dict(state["filter"])
        PromptStatistics(self.recipe.advantage).load_state_dict(state["statistics"])
        for name in ("scheduler_step", "skipped"):
            if type(state[name]) is not int or state[name] < 0:
                raise CheckpointError(f"{name} is {state[name]!r}, which is no count")

    def restore(self, snapshot: checkpoint.Snapshot, *, to_learn: bool = True) -> None:
        """Continue exactly where ``save`` was called; unless ``to_learn``, the weights alone.

        Raises:
            CheckpointError: as for ``check``; nothing has changed then.
        """
        self.check(snapshot, to_learn=to_learn)
        state, tensors = snapshot.state, snapshot.tensors
        self.weight_sets.load_state_dict(tensors["policy"])
        for name in self._followers:
            self.weight_sets.load_state_dict(tensors[f"slot_{name}"], name)
        if not to_learn:
            return
        checkpoint.load_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self._scheduler.last_epoch = state["scheduler_step"]
        self._filter.load_state_dict(state["filter"])
        self._learner.statistics.load_state_dict(state["statistics"])
        self._learner.skipped = state["skipped"]
        # Checkpoints of before do not count them.
        self._idle, self._barren = state.get("idle", 0), state.get("barren", 0)
        self._idle_because = "see its warnings"
        self.iteration = snapshot.iteration


def train(
    recipe: Recipe | str | Path | Mapping[str, Any], *, policy: Policy | None = None,
    sampler: Sampler | None = None, rewards: Mapping[str, Reward] | None = None,
    optimizer: OptimizerFactory | None = None,
) -> Iterator[Record]:  # fmt: skip
    """Train and yield one record per iteration; nothing is written.

    Args:
        recipe: a recipe, its name, its path, or its mapping.
        policy, sampler, rewards, optimizer: take the place of what the recipe names.

    Raises:
        RecipeError: the recipe is wrong.
        GenRLError: the run failed, with the reason.
    """
    known = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    trainer = Trainer(known, policy=policy, sampler=sampler, rewards=rewards, optimizer=optimizer)
    while trainer.iteration < known.train.iterations:
        yield trainer.step()


def _train_base(recipe: Recipe, notify: Notify) -> dict[str, Tensor]:
    """The weights that a recipe ends with, trained by this process alone."""
    trainer = Trainer(recipe, runtime=Runtime(recipe.run.device, alone=True), notify=notify)
    metrics = [trainer.step().metrics for _ in range(recipe.train.iterations)]
    trainer.check_learned()
    losses = [each["loss"] for each in metrics if "loss" in each]
    if losses and not math.isfinite(losses[-1]):
        raise GenRLError(f"{recipe.name} ended with loss {losses[-1]}")
    return trainer.weight_sets.merged(trainer.slot_in_use)


def _nothing_to_learn(rollout: Rollout) -> str:
    if not len(rollout.reward):
        return "the filter rejected every group"
    if not rollout.valid.any():
        return "no sample has all the rewards that apply to it"
    return "no objective has a gradient, as where all rewards of a prompt are equal"


def _required(value: Any, name: str) -> Any:
    if value is None:
        raise RecipeError(f"the recipe has no {name}")
    return value


def _rewards(
    recipe: Recipe, injected: Mapping[str, Reward] | None
) -> dict[str, tuple[float, Reward]]:
    if injected is not None:
        weights = {label: config.weight for label, config in recipe.reward.items()}
        return {label: (weights.get(label, 1.0), reward) for label, reward in injected.items()}
    return {label: (config.weight, config.build()) for label, config in recipe.reward.items()}


def _reading_of(kind: str, judges: Mapping[str, Reward]) -> dict[str, Reader]:
    """How each of them reads prompts; an injected one may be a function, which says nothing."""
    return {
        f"{kind} {name!r}": judge.reading
        for name, judge in judges.items()
        if hasattr(judge, "reading")
    }


def _sides(recipe: Recipe) -> Sequence[Side]:
    """The objectives grouped by view, in the recipe's order."""
    views = resolve_views(recipe)
    configs = recipe.objective.items()
    return sides_of(
        (views[label], label, each.weight, build_objective(label, each)) for label, each in configs
    )
