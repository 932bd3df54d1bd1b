"""Every objective with every view, policy and sampler, generated from the registry.

What is said to train trains: two iterations, finite, and the weights move. New plugins are covered
by being registered. An objective sees numbers alone, never a policy or a sampler, so the gate runs
a sum in place of the product: every policy, every sampler, and of every paradigm every objective,
in every view. ``python tests/long.py matrix`` runs the rest of the product.
"""

import hashlib
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

from .conftest import LOADED_ONLY, REGISTRY, TOYS, TRAINS, name, timed, tree_of


def chosen(pool: Sequence[Cell]) -> list[Cell]:
    """Cells that hold every part of the sum, and few of them: first those that add most.

    The cells are taken in an order that lets policies and samplers take turns with objectives.
    """
    turns = sorted(pool, key=lambda cell: hashlib.sha256(name(cell).encode()).digest())
    missing = {part for cell in pool for part in parts_of(cell)}
    kept = []
    for gain in (3, 2, 1):
        for cell in turns:
            if len(missing & parts_of(cell)) >= gain:
                missing -= parts_of(cell)
                kept.append(cell)
    return sorted(kept, key=pool.index)


def parts_of(cell: Cell) -> set[tuple[str, ...]]:
    """What a cell stands for. A toy trains with every objective in ``test_two_passes``."""
    found = {
        ("policy", cell.policy, cell.view),
        ("sampler", cell.paradigm, cell.sampler, cell.view),
    }
    if cell not in TOYS:
        found.add(("objective", cell.paradigm, cell.objective, cell.view))
    return found


POOL = [cell for cell in TRAINS if cell.policy not in LOADED_ONLY]
RUN = chosen(POOL)
REST = [cell for cell in POOL if cell not in RUN]


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


def train(cell: Cell, prompts: Path) -> None:
    tree = tree_of(cell, prompts)
    rewards = None if cell.view == "reward" else {"alternating": Alternating()}
    trainer = build_trainer(load_recipe(tree, short(cell, tree), REGISTRY), rewards=rewards)
    before = {n: p.detach().clone() for n, p in trainer.weight_sets.trainable.items()}
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert math.isfinite(record.metrics["loss"])
    assert any(not torch.equal(p, before[n]) for n, p in trainer.weight_sets.trainable.items())


@pytest.mark.parametrize("cell", RUN, ids=name)
def test_what_is_said_to_train_trains(cell: Cell, prompts: Path) -> None:
    with timed(cell):
        train(cell, prompts)


@pytest.mark.long
@pytest.mark.parametrize("cell", REST, ids=name)
def test_the_rest_of_the_product_trains(cell: Cell, prompts: Path) -> None:
    train(cell, prompts)


def test_the_sum_is_whole_and_no_product() -> None:
    """Each in every view: policies, samplers of a paradigm, objectives of a paradigm."""
    for columns, pool in (
        (("policy", "view"), POOL),
        (("paradigm", "sampler", "view"), POOL),
        (("paradigm", "objective", "view"), [cell for cell in POOL if cell not in TOYS]),
    ):
        every, run = (
            {tuple(getattr(cell, column) for column in columns) for cell in cells}
            for cells in (pool, RUN)
        )
        assert every <= run
    assert len(RUN) < len(POOL) / 5
    assert not set(REST) & set(RUN) and len(REST) + len(RUN) == len(POOL)


def test_at_least_a_hundred_combinations_train() -> None:
    assert len({(c.paradigm, c.sampler, c.objective, c.view) for c in RUN}) >= 100
    assert {cell.paradigm for cell in RUN} >= {
        "masked", "diffusion", "autoregressive", "toy_sequence", "toy_canvas", "toy_gaussian",
    }  # fmt: skip
