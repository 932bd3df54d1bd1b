"""Every objective with every view, policy and sampler, generated from the registry.

A combination either trains (two iterations: finite, and the weights move) or is refused with a
sentence. New plugins are covered by being registered.
"""

import math
import time
from pathlib import Path

import pytest
import torch

from genrl_core import toys
from genrl_core.matrix import Cell, cells, recipe_tree
from genrl_core.plugins import Registry
from genrl_core.recipe import load_recipe
from genrl_core.trainer import Trainer

REGISTRY = Registry.discover(modules=[toys])
CELLS = cells(REGISTRY)
TRAINS = [cell for cell in CELLS if cell.verdict == "trains"]
LOADED_ONLY = {"causal_lm"}
"""Policies that are nothing without weights from elsewhere."""


def one_sampler_each(found: list[Cell]) -> list[Cell]:
    """Of the larger policies the first sampler that trains each objective and view."""
    kept: dict[tuple[str, ...], Cell] = {}
    for cell in found:
        key = (cell.policy, cell.objective, cell.view)
        if cell.policy not in LOADED_ONLY:
            kept.setdefault(key, cell)
    return list(kept.values())


def name(cell: Cell) -> str:
    return f"{cell.policy}-{cell.sampler}-{cell.objective}-{cell.view}"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "prompts.jsonl"
    digits = ['{"text": "a handwritten three", "digit": 3}', '{"text": "a drawn one", "digit": 1}']
    path.write_text("\n".join(digits) + "\n")
    (path.parent / "sums.jsonl").write_text('{"text": "1+2="}\n{"text": "3+4="}\n')
    return path


@pytest.mark.parametrize("cell", one_sampler_each(TRAINS), ids=name)
def test_what_is_said_to_train_trains(cell: Cell, prompts: Path) -> None:
    file = prompts.parent / "sums.jsonl" if "arithmetic" in cell.policy else prompts
    tree = recipe_tree(REGISTRY, cell, prompts={"file": str(file)})
    assert tree is not None
    if cell.policy.startswith("toy"):
        tree["reward"] = {"toy_reward": {}}
    more = ["train.iterations=2", "train.num_prompts=2", "train.learning_rate=0.01"]
    if "num_inference_steps" in tree["sampler"]:
        more.append("sampler.num_inference_steps=3")
    if "arithmetic" in cell.policy:
        more.append("sampler.max_new_tokens=4")
    trainer = Trainer(load_recipe(tree, more, REGISTRY))
    before = {n: p.detach().clone() for n, p in trainer.slots.trainable.items()}
    start = time.perf_counter()
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert math.isfinite(record.metrics["loss"])
    assert time.perf_counter() - start < 20
    learned = record.metrics["advantage_std"] > 0 or cell.objective in ("sft", "entropy")
    moved = any(not torch.equal(p, before[n]) for n, p in trainer.slots.trainable.items())
    assert moved or not learned


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if cell.verdict == "refused"], ids=name
)  # fmt: skip
def test_what_is_refused_says_why(cell: Cell) -> None:
    assert len(cell.reason.split()) >= 5
    assert cell.reason[0].islower() or cell.reason[0].isupper()


def test_at_least_a_hundred_combinations_train() -> None:
    assert len({(c.paradigm, c.sampler, c.objective, c.view) for c in TRAINS}) >= 100
    assert {cell.paradigm for cell in TRAINS} >= {"masked", "toy_sequence", "toy_canvas"}
