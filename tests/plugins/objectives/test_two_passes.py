"""Two passes equal one for every objective, and those that call themselves separable are.

The settings and both checks are the core's (``tests/core/test_two_pass.py``), on this plugin's
objectives: weights have moved since the rollout, chunks split samples and groups.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrl_core import GenRLError, Objective, ObjectiveConfig
from genrl_objectives import OBJECTIVES

Make = Callable[..., ObjectiveConfig]
SEQUENCE, CANVAS, GAUSSIAN = range(3)

# name -> (toy, preset, fields); what differs from preset to preset in code, on every view.
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "gspo": (CANVAS, "gspo", {"epsilon": 0.05}),
    "gspo_bound": (CANVAS, "gspo", {"epsilon": 0.05, "view": "elbo"}),
    "gmpo": (CANVAS, "gmpo", {}),
    "rloo": (CANVAS, "rloo", {"epsilon": 0.2}),
    "cispo_sequence": (CANVAS, "cispo", {"level": "sequence", "epsilon_high": 1.2}),
    "sapo_sequence": (GAUSSIAN, "sapo", {"level": "sequence"}),
    "dpo": (CANVAS, "dpo", {}),
    "dpo_ipo": (SEQUENCE, "dpo", {"loss_type": "ipo", "over": "mean"}),
    "dpo_exo": (GAUSSIAN, "dpo", {"loss_type": "exo_pair", "label_smoothing": 0.1}),
    "dpo_term": (GAUSSIAN, "dpo", {"level": "term", "loss_type": "sppo_hard"}),
    "dpo_clipped": (CANVAS, "dpo", {"level": "term", "ratio_clip": 0.3}),
    "dpo_bound": (CANVAS, "dpo", {"view": "elbo"}),
    "dpo_bound_term": (CANVAS, "dpo", {"view": "elbo", "level": "term"}),
    "dgpo": (CANVAS, "dgpo", {"epsilon": 0.3}),
    "dgpo_steps": (GAUSSIAN, "dgpo", {"view": "steps", "beta": 5.0}),
    "reinforce": (CANVAS, "reinforce", {}),
    "grpo_delta": (CANVAS, "grpo", {"epsilon": 0.1, "delta": 1.15}),
    "dr_grpo": (SEQUENCE, "dr_grpo", {"epsilon": 0.1}),
    "bnpo": (CANVAS, "bnpo", {"epsilon": 0.1}),
    "dapo": (GAUSSIAN, "dapo", {"epsilon": 0.1, "epsilon_high": 0.2}),
    "reinforce_pp": (CANVAS, "reinforce_pp", {"epsilon": 0.1}),
    "cispo": (CANVAS, "cispo", {"epsilon_high": 1.2}),
    "sapo": (CANVAS, "sapo", {}),
    "awm": (CANVAS, "awm", {"epsilon": 0.1}),
    "grpo_guard": (GAUSSIAN, "grpo_guard", {"epsilon": 0.1}),
    "grpo_guard_canvas": (CANVAS, "grpo_guard", {"epsilon": 0.1, "over": "sum"}),
    "flow_dppo": (GAUSSIAN, "flow_dppo", {"threshold": 1e-2}),
    "ppo": (GAUSSIAN, "ppo", {"epsilon": 0.1, "gamma": 0.9}),
    "ppo_sequence": (SEQUENCE, "ppo", {"epsilon": 0.1, "cliprange_value": None}),
    "ppo_canvas": (CANVAS, "ppo", {"epsilon": 0.1, "whiten": False, "vf_coef": 1.0}),
    "rwr": (CANVAS, "rwr", {}),
    "rwr_steps": (CANVAS, "rwr", {"view": "steps"}),
    "best_of_n": (CANVAS, "best_of_n", {"keep": 2}),
    "wd1": (CANVAS, "wd1", {}),
    "sft": (CANVAS, "sft", {}),
    "nft": (CANVAS, "nft", {"beta": 0.5}),
    "nft_normalized": (GAUSSIAN, "nft", {"beta": 0.5, "normalize": True}),
    "nft_reference": (GAUSSIAN, "nft", {"partner": "reference", "pull": 0.0}),
    "nft_pull": (CANVAS, "nft", {"pull": 0.5}),
    "nft_pull_gaussian": (GAUSSIAN, "nft", {"pull": 0.5, "partner": "reference"}),
    "kl": (CANVAS, "kl", {}),
    "entropy": (CANVAS, "entropy", {}),
}
COUPLED = {"gspo", "gmpo", "rloo", "dpo", "dgpo"}


@pytest.fixture(scope="module")
def core() -> Any:
    """The core's module; its settings also hold the weights that drew, as the slot ``old``."""
    path = Path(__file__).parents[2] / "core" / "test_two_pass.py"
    spec = importlib.util.spec_from_file_location("core_two_pass", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setting = module.setting

    def with_old(name: str, **train: object) -> Any:
        learner, rollout = setting(name, **train)
        weight_sets = learner.learner.context.weight_sets
        weight_sets.snapshot("lagging")  # no step was taken in between
        weight_sets.load_state_dict(weight_sets.state_dict("reference"), "lagging")
        return learner, rollout

    module.setting = with_old
    return module


def enter(core: Any, proposed: Make, name: str) -> Objective:
    toy, preset, fields = CASES[name]
    config = proposed(preset, **fields)
    objective = config.build()
    core.CASES[name] = (toy, [objective], False)
    core.VIEWS[name] = [config.view_wanted() or "steps"]
    return objective


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_two_passes_equal_one(core: Any, proposed: Make, name: str, rows: int) -> None:
    enter(core, proposed, name)
    core.test_two_passes_equal_one(name, rows)


@pytest.mark.parametrize("name", CASES)
def test_who_says_separable_is(core: Any, proposed: Make, name: str) -> None:
    objective = enter(core, proposed, name)
    coupled = CASES[name][1] in COUPLED or CASES[name][2].get("level") == "sequence"
    assert objective.separable != coupled
    if objective.separable:
        core.test_separable_objectives_are_separable(name)


@pytest.mark.parametrize("name", ["gspo", "gmpo", "rloo", "dpo", "dgpo"])
def test_a_coupled_objective_called_separable_is_caught(
    core: Any, proposed: Make, name: str
) -> None:
    """They depend on numbers outside their chunk, and the run says so before it takes a step."""
    enter(core, proposed, name).separable = True
    with pytest.raises(GenRLError, match="chunks add up to"):
        core.test_separable_objectives_are_separable(name)


def test_every_preset_has_a_case() -> None:
    """The reward's own gradient has its two passes in ``test_reward_gradient``."""
    elsewhere = {"grpo", "reward_gradient"}
    assert {preset for _, preset, _ in CASES.values()} | elsewhere == set(OBJECTIVES)
