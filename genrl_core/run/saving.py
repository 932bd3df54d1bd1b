"""A trainer in a checkpoint: what is written of it, what refuses it, and how it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from genrl_core.errors import CheckpointError
from genrl_core.loop.advantage import Advantages
from genrl_core.loop.filters import GroupFilter
from genrl_core.loop.rollout import LocalRollouts
from genrl_core.loop.trainer import Trainer
from genrl_core.loop.weights import REFERENCE
from genrl_core.recipe.identity import refusal
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.optimizer import (
    check_optimizer_state,
    load_optimizer_state,
    optimizer_state,
)


def save(trainer: Trainer, recipe: Recipe, folder: Path) -> None:
    """Write a checkpoint on rank 0; every rank may call it.

    Raises:
        CheckpointError: it could not be written; what stood before still stands.
    """
    if not trainer.parts.runtime.main:
        return
    tensors, optimizer = optimizer_state(trainer.parts.policy.network, trainer.parts.optimizer)
    state = {"recipe": recipe.essence(), "base": _base(trainer, recipe), "optimizer": optimizer}
    state |= trainer.state_dict()
    sets = trainer.weight_sets
    groups = {"policy": sets.state_dict(), "optimizer": tensors}
    groups |= {f"slot_{name}": sets.state_dict(name) for name in trainer.averages}
    checkpoint.save(folder, trainer.iteration, groups, state, recipe.save.keep)


def check(
    trainer: Trainer, recipe: Recipe, snapshot: checkpoint.Snapshot, *, to_learn: bool = True
) -> None:
    """Whether ``restore`` would take a checkpoint; nothing changes.

    Args:
        trainer, recipe: what is to go on.
        snapshot: the checkpoint.
        to_learn: whether all of it is wanted, or the weights alone.

    Raises:
        CheckpointError: it belongs to another recipe, network or reference, or it is damaged.
    """
    state, tensors, path = snapshot.state, snapshot.tensors, snapshot.path
    with checkpoint.as_checkpoint_error(path):
        if why := refusal(state["recipe"], recipe, snapshot.iteration):
            raise CheckpointError(
                f"{path} was written by another recipe ({why}): resume with the run's own "
                "recipe.resolved.yaml, or start a new run with policy.weights set to this folder"
            )
        if state["base"] != _base(trainer, recipe):
            raise CheckpointError(
                f"the reference weights of {path} cannot be rebuilt: policy.weights gives other "
                "weights than when the run began"
            )
        try:
            trainer.weight_sets.check(tensors["policy"])
            for name in trainer.averages:
                trainer.weight_sets.check(tensors[f"slot_{name}"], name)
        except ValueError as error:
            raise CheckpointError(f"{path} holds another network: {error}") from error
        if to_learn:
            _check_learning(trainer, recipe, state, tensors["optimizer"])


def restore(
    trainer: Trainer, recipe: Recipe, snapshot: checkpoint.Snapshot, *, to_learn: bool = True
) -> None:
    """Continue exactly where ``save`` was called; unless ``to_learn``, the weights alone.

    Raises:
        CheckpointError: as for ``check``; nothing has changed then.
    """
    check(trainer, recipe, snapshot, to_learn=to_learn)
    state, tensors = snapshot.state, snapshot.tensors
    trainer.weight_sets.load_state_dict(tensors["policy"])
    for name in trainer.averages:
        trainer.weight_sets.load_state_dict(tensors[f"slot_{name}"], name)
    if to_learn:
        network, moments = trainer.parts.policy.network, tensors["optimizer"]
        load_optimizer_state(network, trainer.parts.optimizer, moments, state["optimizer"])
        trainer.load_state_dict(state, snapshot.iteration)


def _base(trainer: Trainer, recipe: Recipe) -> str:
    """What a checkpoint does not hold must be the same when a run is resumed."""
    needed = REFERENCE in trainer.weight_sets or recipe.weights.lora is not None
    return trainer.parts.began_with if needed else ""


def _check_learning(
    trainer: Trainer, recipe: Recipe, state: Mapping[str, Any], moments: Mapping[str, Tensor]
) -> None:
    parts = trainer.parts
    check_optimizer_state(parts.policy.network, parts.optimizer, moments, state["optimizer"])
    if isinstance(trainer.rollouts, LocalRollouts):  # another engine's state is its own affair
        GroupFilter(recipe.filter).load_state_dict(state["filter"])
    Advantages(recipe.advantage).load_state_dict(state["statistics"])
    for name in ("scheduler_step", "skipped"):
        if type(state[name]) is not int or state[name] < 0:
            raise CheckpointError(f"{name} is {state[name]!r}, which is no count")
