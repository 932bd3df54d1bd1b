"""Two passes equal one for every cell of a toy, whatever the chunks, and separable ones add up.

The reference is one backward through the graph of the whole batch (``tests/support/updates.py``),
under weights that have moved since the samples were drawn. The cells hold every objective, in every
view, at its own fields; ``VARIANTS`` are fields that lead through other code.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from updates import called_separable, moved, one_pass, update

from genrl_core import GenRLError, Objective
from genrl_core.cli.matrix import Cell, requested_fields
from genrl_core.loop.rollout import Rollout
from genrl_core.recipe.recipe import load_recipe
from genrl_core.recipe.views import resolve_views
from genrl_core.testing import SingleUpdates

from .conftest import REGISTRY, TOYS, name, objective_of, timed, tree_of

# name -> (toy, view, objective, fields)
VARIANTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "grpo_two_clips": ("toy_canvas", "steps", "grpo", {"delta": 1.15}),
    "grpo_of_sequences": ("toy_canvas", "steps", "grpo", {"level": "sequence", "over": "mean"}),
    "cispo_of_sequences": ("toy_canvas", "steps", "cispo", {"level": "sequence"}),
    "sapo_of_sequences": ("toy_gaussian", "steps", "sapo", {"level": "sequence"}),
    "gspo_close": ("toy_canvas", "elbo", "gspo", {"epsilon": 0.05}),
    "grpo_guard_summed": ("toy_canvas", "steps", "grpo_guard", {"over": "sum"}),
    "flow_dppo_close": ("toy_gaussian", "steps", "flow_dppo", {"threshold": 1e-2}),
    "ppo_discounted": ("toy_gaussian", "steps", "ppo", {"gamma": 0.9}),
    "ppo_free_values": ("toy_sequence", "steps", "ppo", {"cliprange_value": None}),
    "ppo_not_whitened": ("toy_canvas", "steps", "ppo", {"whiten": False, "vf_coef": 1.0}),
    "ipo": ("toy_sequence", "steps", "dpo", {"loss_type": "ipo", "over": "mean"}),
    "exo": ("toy_gaussian", "steps", "dpo", {"loss_type": "exo_pair", "label_smoothing": 0.1}),
    "sppo_of_terms": ("toy_gaussian", "steps", "dpo", {"level": "term", "loss_type": "sppo_hard"}),
    "dpo_clipped": ("toy_canvas", "steps", "dpo", {"level": "term", "ratio_clip": 0.3}),
    "dpo_of_bounds_of_terms": ("toy_canvas", "elbo", "dpo", {"level": "term"}),
    "dgpo_steep": ("toy_gaussian", "steps", "dgpo", {"beta": 5.0}),
    "best_of_two": ("toy_canvas", "elbo", "best_of_n", {"keep": 2}),
    "nft": ("toy_canvas", "denoising", "nft", {"beta": 0.5}),
    "nft_normalized": ("toy_gaussian", "denoising", "nft", {"normalize": True}),
    "nft_reference": ("toy_gaussian", "denoising", "nft", {"partner": "reference", "pull": 0.0}),
    "nft_pulled": ("toy_canvas", "denoising", "nft", {"pull": 0.5}),
    "nft_pulled_back": ("toy_gaussian", "denoising", "nft", {"pull": 0.5, "partner": "reference"}),
}
COUPLED = {"gspo", "gmpo", "rloo", "dpo", "dgpo"}
"""Objectives whose loss of a term depends on other terms or samples; of sequences, all do."""


def setting(
    cell: Cell, tree: dict[str, Any], separable: bool, rows: int
) -> tuple[SingleUpdates, Rollout]:
    """A learner of the cell's recipe, and a rollout under weights that have moved since."""
    recipe = load_recipe(tree, registry=REGISTRY)
    views, members = resolve_views(recipe), {}
    for label, config in recipe.objective.items():
        objective = config.build()
        objective.separable = objective.separable and separable
        members[label] = (config.weight, objective)
    policy = REGISTRY.policies[cell.policy](**requested_fields(REGISTRY, cell)).build()
    sampler = REGISTRY.samplers[cell.sampler]().build()
    return moved(
        policy, sampler, members, views=views, moves=cell.view != "reward", micro_batch_size=rows
    )


def compare(cell: Cell, tree: dict[str, Any]) -> None:
    """By the two-pass rule and, where that is claimed, as a sum over chunks."""
    exact = one_pass(*setting(cell, tree, separable=False, rows=1000))
    assert exact.abs().max() > 1e-6
    for separable, rows in ((False, 1000), (False, 5), (True, 5), (True, 3)):
        found = update(*setting(cell, tree, separable=separable, rows=rows))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def variant(place: str, prompts: Path) -> tuple[Cell, dict[str, Any]]:
    """A variant's cell and the recipe with its fields."""
    toy, view, objective, fields = VARIANTS[place]
    found = (c for c in TOYS if (c.policy, c.view, c.objective) == (toy, view, objective))
    tree = tree_of(cell := next(found), prompts)
    tree["objective"][objective] |= fields
    return cell, tree


def objective_with(cell: Cell, fields: dict[str, Any]) -> Objective:
    config = objective_of(cell)
    return type(config).model_validate(config.model_dump() | fields).build()


@pytest.mark.parametrize("cell", TOYS, ids=name)
def test_two_passes_equal_one(cell: Cell, prompts: Path) -> None:
    with timed(cell):
        compare(cell, tree_of(cell, prompts))


@pytest.mark.parametrize("place", VARIANTS)
def test_two_passes_equal_one_with_other_fields(place: str, prompts: Path) -> None:
    compare(*variant(place, prompts))


def test_who_couples_says_so() -> None:
    for cell in TOYS:
        assert objective_of(cell).build().separable != (cell.objective in COUPLED), name(cell)
    for _, _, objective, fields in VARIANTS.values():
        coupled = objective in COUPLED or fields.get("level") == "sequence"
        cell = next(c for c in TOYS if c.objective == objective)
        assert objective_with(cell, fields).separable != coupled, (objective, fields)


@pytest.mark.parametrize("coupled", sorted(COUPLED))
def test_who_couples_and_denies_it_is_caught(coupled: str, prompts: Path) -> None:
    """They depend on numbers outside their chunk, and the run says so before it takes a step."""
    cell = next(c for c in TOYS if (c.policy, c.objective) == ("toy_canvas", coupled))
    objective = objective_of(cell).build()
    policy, sampler = (
        kind[cell.policy]().build() for kind in (REGISTRY.policies, REGISTRY.samplers)
    )
    learner, rollout = moved(
        policy, sampler, {"it": (1.0, objective)}, views=cell.view, micro_batch_size=3
    )
    with called_separable([objective], True), pytest.raises(GenRLError, match="chunks add up to"):
        update(learner, rollout)


def test_every_objective_has_a_cell() -> None:
    assert {cell.objective for cell in TOYS} == set(REGISTRY.objectives)
