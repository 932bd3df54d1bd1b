"""Every objective with every view, policy and sampler, generated from the registry.

What is said to train trains: two iterations, finite, and the weights move. New plugins are covered
by being registered.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from genrl_core import Media, Prompt, Reward
from genrl_core.cli.matrix import Cell
from genrl_core.recipe.recipe import load_recipe
from genrl_core.run.assembly import build_trainer

from .conftest import LOADED_ONLY, REGISTRY, TRAINS, name, timed, tree_of


def chosen(found: list[Cell]) -> list[Cell]:
    """Of every paradigm all samplers with every objective and view, and so of every policy one.

    Where a paradigm has several policies they take turns: they differ in their network alone.
    """
    pool = [cell for cell in found if cell.policy not in LOADED_ONLY]
    kept: dict[tuple[str, ...], Cell] = {}
    policies = list(dict.fromkeys(cell.policy for cell in pool))
    for cell in pool:  # the n-th policy begins with its n-th sampler
        mates = [c for c in pool if alike(c, cell) and c.policy == cell.policy]
        first = mates[policies.index(cell.policy) % len(mates)]
        kept.setdefault((first.paradigm, first.sampler, cell.objective, cell.view), first)
        kept.setdefault((cell.policy, cell.objective, cell.view), first)
    for cell in pool:
        kept.setdefault((cell.paradigm, cell.sampler, cell.objective, cell.view), cell)
    return list(dict.fromkeys(kept.values()))


def alike(one: Cell, other: Cell) -> bool:
    return (one.objective, one.view) == (other.objective, other.view)


RUN = chosen(TRAINS)


class Alternating(Reward):
    """0 and 1 in turn, so that every group has something to learn from."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        return [float(place % 2) for place in range(len(prompts))]


def short(cell: Cell, tree: dict[str, Any]) -> list[str]:
    """Overrides that make a cell's run short."""
    more = ["train.iterations=2", "train.num_prompts=2"]
    if "num_inference_steps" in tree["sampler"]:
        more.append("sampler.num_inference_steps=3")
    if cell.policy == "arithmetic_lm":
        more.append("sampler.max_new_tokens=4")
    return more


@pytest.mark.parametrize("cell", RUN, ids=name)
def test_what_is_said_to_train_trains(cell: Cell, prompts: Path) -> None:
    tree = tree_of(cell, prompts)
    rewards = None if cell.view == "reward" else {"alternating": Alternating()}
    with timed(cell):
        trainer = build_trainer(load_recipe(tree, short(cell, tree), REGISTRY), rewards=rewards)
        before = {n: p.detach().clone() for n, p in trainer.weight_sets.trainable.items()}
        for _ in range(2):
            record = trainer.step()
            assert record.problem is None
            assert math.isfinite(record.metrics["loss"])
    assert any(not torch.equal(p, before[n]) for n, p in trainer.weight_sets.trainable.items())


def test_every_policy_and_every_sampler_is_run_with_every_objective() -> None:
    pool = [cell for cell in TRAINS if cell.policy not in LOADED_ONLY]
    for parts in (("policy",), ("paradigm", "sampler")):
        columns = (*parts, "objective", "view")
        places = [
            {tuple(getattr(c, part) for part in columns) for c in some} for some in (pool, RUN)
        ]
        assert places[0] == places[1]


def test_at_least_a_hundred_combinations_train() -> None:
    assert len({(c.paradigm, c.sampler, c.objective, c.view) for c in RUN}) >= 100
    assert {cell.paradigm for cell in RUN} >= {
        "masked", "diffusion", "autoregressive", "toy_sequence", "toy_canvas", "toy_gaussian",
    }  # fmt: skip
