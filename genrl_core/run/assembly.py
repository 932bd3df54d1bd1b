"""From a recipe to a trainer: every part is built here, and may be handed in instead."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.evaluate import Evaluator
from genrl_core.loop.objectives import RequiredWeights, build_objectives, required_weights
from genrl_core.loop.rollout import LocalRollouts, RolloutEngine
from genrl_core.loop.trainer import Parts, Record, Trainer
from genrl_core.loop.weights import WeightSets, fingerprint
from genrl_core.recipe.check import CheckedRecipe, check_recipe
from genrl_core.recipe.problems import raise_if
from genrl_core.recipe.prompts import Reader, unread
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.run.bases import Notify
from genrl_core.run.optim import build_optimizer, build_scheduler
from genrl_core.run.policies import build_policy

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
T = TypeVar("T")


def build_trainer(
    recipe: Recipe | CheckedRecipe, *, policy: Policy | None = None,
    sampler: Sampler | None = None, rewards: Mapping[str, Reward] | None = None,
    optimizer: OptimizerFactory | None = None, rollouts: RolloutEngine | None = None,
    runtime: Runtime | None = None, notify: Notify = lambda _: None,
    warn: Notify = warnings.warn,
) -> Trainer:  # fmt: skip
    """The trainer of a recipe; what is handed in takes the place of what the recipe names.

    Args:
        recipe: a valid recipe; one that was checked before is not checked again.
        policy, sampler, rewards, optimizer: parts of one's own; rewards by label.
        rollouts: where samples come from, in place of drawing them here.
        runtime: this process among its peers.
        notify, warn: told what goes on, and what the user should look at.

    Raises:
        RecipeError: the recipe's parts do not fit together, or the policy cannot take a prompt.
    """
    checked = check_recipe(
        recipe, policy_injected=policy is not None, sampler_injected=sampler is not None,
        rewards_injected=rewards is not None,
    )  # fmt: skip
    recipe = checked.recipe
    runtime = runtime or Runtime(recipe.run.device)
    if recipe.run.threads is not None:
        torch.set_num_threads(recipe.run.threads)
    policy = policy or build_policy(recipe, runtime, partial(train_base, notify=notify), notify)
    evaluation_sampler = _evaluation_sampler(recipe, sampler)
    sampler = sampler or _required(recipe.sampler, "sampler").build()
    weighted = _rewards(recipe, rewards)
    metrics = {label: config.build() for label, config in recipe.metrics.items()}
    built = [] if rewards is not None else [reward for _, reward in weighted.values()]
    for reward in (*built, *metrics.values()):
        reward.to(runtime.device)
    evaluator = Evaluator(
        sampler=evaluation_sampler, prompts=checked.eval_prompts, metrics=metrics, rewards=weighted,
        seed=recipe.run.seed, num_generations=recipe.evaluate.num_generations,
        rollout_batch_size=recipe.train.rollout_batch_size, runtime=runtime, report=notify,
    )  # fmt: skip
    _check_prompts(checked, policy, sampler, evaluator, warn)
    parts = _learning_parts(checked, policy, sampler, weighted, runtime, optimizer)
    if rollouts is not None:
        parts["rollouts"] = rollouts
    return Trainer(Parts(**parts, evaluator=evaluator, warn=warn))


def _learning_parts(
    checked: CheckedRecipe, policy: Policy, sampler: Sampler,
    rewards: Mapping[str, tuple[float, Reward]], runtime: Runtime,
    optimizer: OptimizerFactory | None,
) -> dict[str, Any]:  # fmt: skip
    """Objectives, weight sets, optimizer, and where samples come from: fields of ``Parts``."""
    recipe = checked.recipe
    train, seed = recipe.train, recipe.run.seed
    objectives = build_objectives(recipe.objective, checked.views)
    began_with = fingerprint(policy.network)
    weight_sets = WeightSets(policy, recipe.weights.lora, seed)
    runtime.broadcast_(p.data for p in weight_sets.trainable.values())
    draws_with = [config.draws_with() for config in recipe.objective.values()]
    required = _required_weights(recipe, objectives, draws_with)
    trained = weight_sets.trainable
    stepping = (
        build_optimizer(trained.items(), train)
        if optimizer is None
        else optimizer(list(trained.values()))
    )
    rollouts = LocalRollouts(
        sampler, rewards, weight_sets, runtime, prompts=checked.prompts, seed=seed, train=train,
        filter_config=recipe.filter, advantage=recipe.advantage, drawing=required.drawing,
    )  # fmt: skip
    return {
        "policy": policy, "sampler": sampler, "rewards": rewards, "objectives": objectives,
        "weight_sets": weight_sets, "required": required, "rollouts": rollouts,
        "optimizer": stepping, "scheduler": build_scheduler(stepping, train), "train": train,
        "baseline": recipe.registry.baselines.get(recipe.advantage.baseline),
        "advantage": recipe.advantage, "runtime": runtime, "seed": seed, "began_with": began_with,
    }  # fmt: skip


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
    trainer = build_trainer(
        known, policy=policy, sampler=sampler, rewards=rewards, optimizer=optimizer
    )
    while trainer.iteration < known.train.iterations:
        yield trainer.step()


def train_base(recipe: Recipe, notify: Notify) -> dict[str, Tensor]:
    """The weights that a recipe ends with, trained by this process alone.

    Raises:
        GenRLError: nothing was learned, or the loss is not finite at the end.
    """
    trainer = build_trainer(recipe, runtime=Runtime(recipe.run.device, alone=True), notify=notify)
    metrics = [trainer.step().metrics for _ in range(recipe.train.iterations)]
    trainer.check_learned()
    losses = [each["loss"] for each in metrics if "loss" in each]
    if losses and not math.isfinite(losses[-1]):
        raise GenRLError(f"{recipe.name} ended with loss {losses[-1]}")
    return trainer.weight_sets.merged(trainer.evaluated_weights)


def _required(value: T | None, name: str) -> T:
    if value is None:
        raise RecipeError(f"the recipe has no {name}")
    return value


def _rewards(recipe: Recipe, given: Mapping[str, Reward] | None) -> dict[str, tuple[float, Reward]]:
    if given is not None:
        weights = {label: config.weight for label, config in recipe.reward.items()}
        return {label: (weights.get(label, 1.0), reward) for label, reward in given.items()}
    return {label: (config.weight, config.build()) for label, config in recipe.reward.items()}


def _evaluation_sampler(recipe: Recipe, given: Sampler | None) -> Callable[..., Sampler]:
    """Makes the sampler of an evaluation, with fields overridden; one handed in has no fields."""

    def make(**overrides: Any) -> Sampler:
        if given is None:
            return recipe.sampler_for(**overrides).build()
        if overrides:
            raise RecipeError("an injected sampler has no fields to override in an evaluation")
        return given

    return make


def _required_weights(
    recipe: Recipe, objectives: Sequence[Any], draws_with: Sequence[str]
) -> RequiredWeights:
    try:
        return required_weights(objectives, draws_with, recipe.weights)
    except GenRLError as error:
        raise RecipeError(f"{recipe.place('weights', 'lagging')}: {error}") from None


def _check_prompts(
    checked: CheckedRecipe, policy: Policy, sampler: Sampler, evaluator: Evaluator, warn: Notify
) -> None:  # fmt: skip
    """Look at every prompt before any is drawn; a prompt that is read in part is a warning.

    Raises:
        RecipeError: the policy cannot take a prompt; all of them.
    """
    rewards = {name: reward for name, (_, reward) in evaluator.rewards.items()}
    readers: dict[str, Reader] = {"the policy": partial(sampler.reading, policy)}
    readers |= _readings("reward", rewards)
    files = checked.recipe.prompt_files
    problems, cuts = unread(checked.prompts, readers, files["file"].place)
    if evaluator.prompts:
        readers["the policy"] = partial(evaluator.sampler().reading, policy)
        readers |= _readings("measure", evaluator.metrics)
        refused, cut = unread(evaluator.prompts, readers, files["evaluate"].place)
        problems, cuts = problems + refused, cuts + cut
    for text in dict.fromkeys(cuts):
        warn(text)
    raise_if(problems)


def _readings(kind: str, judges: Mapping[str, Reward]) -> dict[str, Reader]:
    """How each of them reads prompts; one handed in may be a function, which says nothing."""
    return {
        f"{kind} {name!r}": judge.reading
        for name, judge in judges.items()
        if hasattr(judge, "reading")
    }
