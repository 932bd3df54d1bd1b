"""Two passes equal one for every cell of a toy, whatever the chunks, and separable ones add up.

The reference is one backward through the graph of the whole batch (tests/core/test_two_pass.py),
under weights that have moved since the samples were drawn.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core.cli.matrix import Cell, requested_fields
from genrl_core.interfaces.media import Prompt
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.check import resolve_views
from genrl_core.recipe.recipe import load_recipe
from genrl_core.testing import SingleUpdates, ToyReward, learner_for, rollout_of

from .conftest import REGISTRY, TOYS, name, timed, tree_of

PROMPTS = tuple(Prompt(str(i), "toy") for i in range(3))
ADVANTAGE = AdvantageConfig(scale="batch_std")


def core_tests() -> Any:
    """The core's tests of two passes, for their update by a single backward."""
    path = Path(__file__).parents[1] / "core" / "test_two_pass.py"
    spec = importlib.util.spec_from_file_location("core_two_pass", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORE = core_tests()


def setting(
    cell: Cell, prompts: Path, *, separable: bool, rows: int
) -> tuple[SingleUpdates, Rollout]:
    """A learner of the cell's recipe, and a rollout under weights that have moved since."""
    recipe = load_recipe(tree_of(cell, prompts), registry=REGISTRY)
    views, members = resolve_views(recipe), {}
    for label, config in recipe.objective.items():
        objective = config.build()
        objective.separable = objective.separable and separable
        members[label] = (config.weight, objective)
    policy = REGISTRY.policies[cell.policy](**requested_fields(REGISTRY, cell)).build()
    sampler = REGISTRY.samplers[cell.sampler]().build()
    weight_sets = WeightSets(policy)
    for slot in ("reference", "lagging"):
        weight_sets.snapshot(slot)
    plan = plan_of(3, 0, 0, PROMPTS, 4)
    trajectory, media = generate(policy, sampler, plan, 99)
    if cell.view != "reward":  # there the samples are drawn again, by the weights of now
        with torch.no_grad():
            policy.network.table.mul_(1.3).add_(0.2 * policy.network.table.cos())
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    rollout = replace(rollout_of(trajectory, reward, plan.group), parts=(plan,), on_policy=False)
    learner = learner_for(
        policy, sampler, members, weight_sets, ADVANTAGE, draws=2, micro_batch_size=rows,
        drift_tolerance=1e-9, views=views,
    )  # fmt: skip
    return learner, rollout


def update(cell: Cell, prompts: Path, **how: Any) -> Tensor:
    return CORE.update(*setting(cell, prompts, **how))


@pytest.mark.parametrize("cell", TOYS, ids=name)
def test_two_passes_equal_one(cell: Cell, prompts: Path) -> None:
    with timed(cell):
        exact = CORE.one_pass(*setting(cell, prompts, separable=False, rows=1000))
        assert exact.abs().max() > 1e-6
        for separable, rows in ((False, 1000), (False, 5), (True, 5), (True, 3)):
            found = update(cell, prompts, separable=separable, rows=rows)
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
