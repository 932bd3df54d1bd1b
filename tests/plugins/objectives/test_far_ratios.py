"""Presets on ratios far from 1: no sample is arbitrarily heavy, and what is bounded is counted."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genrl_core
from genrl_core import Batch, Objective, ObjectiveConfig, load_recipe
from genrl_core.registry import Registry
from genrl_objectives import OBJECTIVES

Make = Callable[..., ObjectiveConfig]
RECIPES = Path(genrl_core.__file__).parents[1] / "recipes"
CLIPPED = ["grpo", "dr_grpo", "bnpo", "dapo", "gspo", "rloo", "reinforce_pp", "awm", "grpo_guard"]
RATIOS = [*CLIPPED, "gmpo", "flow_dppo", "cispo", "sapo", "ppo"]


def batch(gap: float, advantage: float, dtype: torch.dtype = torch.float32) -> Batch:
    """One term of two samples: one whose log-ratio is ``gap``, one on policy."""
    one = torch.ones(1, 2, dtype=dtype)
    new = torch.tensor([[gap, 0.0]], dtype=dtype)
    return Batch(
        log_probs=new, old_log_probs=0 * one, reference=0 * one, kl_behavior=one, value=0 * one,
        old_value=0 * one,
        events=one.long(), step=0 * one.long(), mask=one.bool(), denominator_mask=one.bool(),
        weight=one,
        scale=one, duration=one, advantage=torch.tensor([[advantage, 1.0]], dtype=dtype),
        reward=torch.tensor([advantage, 1.0], dtype=dtype), group=torch.zeros(2).long(),
        valid=torch.ones(2).bool(),
    )  # fmt: skip


def learned(objective: Objective, found: Batch) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    leaf = found.log_probs.clone().requires_grad_()
    loss, _ = objective.loss(replace(found, log_probs=leaf))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def with_defaults(proposed: Make, name: str) -> Objective:
    return proposed(name, **({"whiten": False} if name == "ppo" else {})).build()


@pytest.mark.parametrize("gap", [15.0, 25.0, 95.0, 1e4])
@pytest.mark.parametrize("name", RATIOS)
def test_by_default_no_bad_sample_is_arbitrarily_heavy(
    proposed: Make, name: str, gap: float
) -> None:
    """Of a mean over two samples the one of advantage -1 has the ratio 10 at most (dual clip)."""
    loss, slope = learned(with_defaults(proposed, name), batch(gap, -1.0))
    heaviest = 10 * gap if name == "cispo" else 10  # its loss multiplies the log-density
    assert abs(float(loss)) <= heaviest / 2 + 1, name
    assert slope.isfinite().all() and slope[0, 0].abs() <= (5 if name == "cispo" else 0)


@pytest.mark.parametrize("advantage", [1.0, 0.0])
@pytest.mark.parametrize("gap", [95.0, -95.0])
@pytest.mark.parametrize("name", [*RATIOS, "dpo", "dgpo"])
def test_every_gradient_is_finite(proposed: Make, name: str, gap: float, advantage: float) -> None:
    made = {"level": "term", "ratio_clip": 0.1} if name == "dpo" else {}
    made |= {"epsilon": 0.1} if name == "dgpo" else {}
    objective = proposed(name, **made).build() if made else with_defaults(proposed, name)
    loss, slope = learned(objective, batch(gap, advantage))
    assert loss.isfinite() and slope.isfinite().all()
    if advantage == 0 and name not in ("ppo", "dpo"):  # whose own advantage is not this one
        assert slope[0, 0] == 0


@pytest.mark.parametrize("estimator", ["k3", "unbiased"])
def test_the_bounded_share_is_a_metric(proposed: Make, estimator: str) -> None:
    near, far = batch(3.0, -1.0), batch(21.0, -1.0)
    for name, label in [*((n, "ratio_bounded") for n in RATIOS), ("kl", "kl_bounded")]:
        objective = proposed(name, **({"estimator": estimator} if name == "kl" else {})).build()
        for found, share in ((near, 0.0), (far, 0.5)):
            metric = objective.loss(found)[1].get(label, torch.tensor(torch.nan))
            assert float(metric.mean()) == share, name


def test_delta_caps_what_negative_advantages_weigh(proposed: Make) -> None:
    """GMPO, Flow-DPPO and PPO like GRPO: within it nothing changes, beyond it there is no slope."""
    for name in ("grpo", "gmpo", "flow_dppo", "ppo"):
        objective = with_defaults(proposed, name)
        for gap, heavy in ((2.2, True), (2.4, False)):
            _, slope = learned(objective, batch(gap, -1.0, torch.float64))
            expected = torch.tensor(gap, dtype=torch.float64).exp() / 2 if heavy else 0
            assert float(slope[0, 0]) == pytest.approx(float(expected), rel=1e-12), name


def header(path: Path) -> str:
    return path.read_text().partition("\n")[0]


def test_recipes_named_after_a_paper_have_no_dual_clip_and_the_others_have() -> None:
    """By the first line of the file: `NAME (arXiv ...)`; "ours" are named after nobody."""
    registry, deltas = Registry.discover(), {}
    for path in sorted(RECIPES.glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        configs = load_recipe(name, [], registry).objective.values()
        found = {config.delta for config in configs if hasattr(config, "delta")}
        if found:
            (deltas[name],) = found
    ours = {name for name in deltas if re.search("Our|we would", header(RECIPES / f"{name}.yaml"))}
    papers = {
        name for name in deltas
        if "arXiv" in header(RECIPES / f"{name}.yaml") and name not in {*ours, "masked/showo"}
    }  # fmt: skip
    shared = {"masked/showo", *(f"digits/{n}" for n in ("masked", "diffusion", "autoregressive"))}
    assert len(papers) > 25 and len(ours) == 4
    assert {name: deltas[name] for name in papers} == dict.fromkeys(papers)
    assert {name: deltas[name] for name in ours | shared} == dict.fromkeys(ours | shared, 10.0)


def test_every_preset_that_exponentiates_is_here() -> None:
    read = {name for name, schema in OBJECTIVES.items() if "epsilon" in schema.model_fields}
    assert read <= {*RATIOS, "dgpo"}
