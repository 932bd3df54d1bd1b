"""Schemas, defaults and small numbers by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from genrl_core import Batch, ObjectiveConfig, RecipeError, load_recipe
from genrl_core.functional import clipped_surrogate, whiten
from genrl_core.loop.objectives import build_objective
from genrl_core.loop.settings import AdvantageConfig, FilterConfig
from genrl_core.registry import Registry
from genrl_objectives import OBJECTIVES
from genrl_objectives.dpo import group_extremes
from genrl_objectives.ppo import generalized_advantage
from genrl_objectives.rwr import group_softmax
from genrl_objectives.sapo import sapo_surrogate

Make = Callable[..., ObjectiveConfig]


def batch(**fields: Any) -> Batch:
    """Two terms of four samples in two groups."""
    ones = torch.ones(2, 4, dtype=torch.float64)
    reward = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64)
    known: dict[str, Any] = {
        "log_probs": -ones, "old_log_probs": -ones, "reference": -ones, "events": ones.long(),
        "step": torch.arange(2).unsqueeze(1).expand(2, 4), "mask": ones.bool(),
        "denominator_mask": ones.bool(), "weight": ones, "scale": ones, "advantage": ones * reward,
        "reward": reward, "group": torch.tensor([0, 0, 1, 1]), "valid": torch.ones(4).bool(),
    }  # fmt: skip
    return Batch(**(known | fields))


def gradient(objective: Any, found: Batch) -> Tensor:
    leaf = found.log_probs.clone().requires_grad_()
    loss, _ = objective.loss(replace(found, log_probs=leaf))
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_defaults_fit_their_sections(proposed: Make, name: str) -> None:
    config = proposed(name)
    AdvantageConfig.model_validate(config.advantage_defaults)
    FilterConfig.model_validate(config.filter_defaults)
    assert config.paper and config.summary().endswith(".") and len(config.summary()) < 100
    objective = build_objective(name, config)
    assert not hasattr(objective, "view") and not hasattr(objective, "draw_with")


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "gmpo", "rloo", "ppo", "awm", "cispo"])
def test_what_a_ratio_means_is_not_guessed(name: str) -> None:
    with pytest.raises(ValidationError, match="epsilon"):
        OBJECTIVES[name].model_validate({})


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("cispo", {"epsilon_high": 0.28}, "0.28 above 1 is written 1.28"),
        ("grpo", {"epsilon": 0.1, "delta": 0.9}, "greater than 1"),
        ("dpo", {"loss_type": "exo_pair"}, "needs label_smoothing"),
        ("dpo", {"label_smoothing": 0.1}, "means nothing to loss_type: sigmoid"),
        ("gmpo", {"epsilon": 0.4, "level": "sequence"}, "Input should be 'term'"),
        ("flow_dppo", {"threshold": 0.1, "view": "elbo"}, "Input should be 'steps'"),
        ("dgpo", {"clip": 0.1}, "Extra inputs"),
    ],
)
def test_bad_values_are_refused(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OBJECTIVES[name].model_validate(fields)


def test_a_recipe_hears_what_the_cap_is() -> None:
    tree = {
        "extends": "digits/mask_grpo",
        "objective": {"grpo": None, "cispo": {"epsilon_high": 0.2}},
    }
    with pytest.raises(RecipeError, match=r"cispo\.epsilon_high: should be above 1, not 0\.2"):
        load_recipe(tree, [], Registry.discover())


def test_a_recipe_takes_the_preset_s_advantage_and_filter() -> None:
    registry = Registry.discover()
    tree: dict[str, Any] = {"extends": "digits/mask_grpo", "advantage": None, "filter": None}
    dapo = load_recipe(tree | {"objective": {"grpo": None, "dapo": {"epsilon": 0.2}}}, [], registry)
    assert (dapo.filter.min_std, dapo.filter.then) == (0.0, "resample")
    rloo = load_recipe(tree | {"objective": {"grpo": None, "rloo": {"epsilon": 0.2}}}, [], registry)
    assert (rloo.advantage.baseline, rloo.advantage.scale) == ("leave_one_out", "none")


def test_two_sided_clip_by_hand() -> None:
    ratio = torch.tensor([0.5, 1.0, 3.0, 3.0], dtype=torch.float64).log()
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    assert clipped_surrogate(ratio, advantage, 0.2).tolist() == pytest.approx([0.8, 1, 3, -1.2])
    found = clipped_surrogate(ratio, advantage, 0.2, 0.3, 2.0)
    assert found.tolist() == pytest.approx([0.8, 1, 2, -1.3])


def test_cispo_never_loses_a_gradient_where_grpo_does(proposed: Make) -> None:
    moved = batch(old_log_probs=torch.full((2, 4), -3.0, dtype=torch.float64))
    assert gradient(proposed("grpo", epsilon=0.2).build(), moved).abs().max() == 0
    found = gradient(proposed("cispo", epsilon_high=1.5).build(), moved)
    torch.testing.assert_close(found, -1.5 * moved.advantage / 8)


def test_sapo_gate_halves_with_distance() -> None:
    ratio = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(
        sapo_surrogate(ratio, torch.ones(2, dtype=torch.float64), 1.0, 1.05).sum(), ratio
    )
    gate = torch.sigmoid(ratio.exp() - 1)
    torch.testing.assert_close(found, -4 * gate * (1 - gate) * ratio.exp())


def test_gmpo_clips_before_the_mean(proposed: Make) -> None:
    """d = (1, -1): the clip at .4 takes the first for A > 0, so that the mean is -.3."""
    old = torch.tensor([[-2.0] * 4, [0.0] * 4], dtype=torch.float64)
    found, _ = proposed("gmpo", epsilon=0.4).build().loss(batch(old_log_probs=old))
    assert float(found) == pytest.approx(-2.0 * float(torch.tensor(-0.3).exp()))


def test_guard_centres_and_scales(proposed: Make) -> None:
    """d = -.1, KL .3 and scale .5 give exp(.1); steps of a quarter and a half weigh 4 and 2."""
    kl, scale = torch.full((2, 4), 0.3).double(), torch.full((2, 4), 0.5).double()
    duration = torch.tensor([[0.25] * 4, [0.5] * 4], dtype=torch.float64)
    moved = batch(
        old_log_probs=torch.full((2, 4), -0.9).double(),
        kl_behavior=kl,
        scale=scale,
        duration=duration,
    )
    ratio = float(torch.tensor(0.1, dtype=torch.float64).exp())
    found, _ = proposed("grpo_guard", epsilon=0.9).build().loss(moved)
    assert float(found) == pytest.approx(-2.0 * ratio * (4 + 2) / 2)
    found, _ = proposed("grpo_guard", epsilon=0.9, weight_by_duration=False).build().loss(moved)
    assert float(found) == pytest.approx(-2.0 * ratio)


def test_guard_is_finite_where_padding_has_no_duration(proposed: Make) -> None:
    """Terms outside the mask carry no clock; the second term is one of them."""
    ones = torch.ones(2, 4, dtype=torch.float64)
    mask, duration = ones.bool(), ones.clone()
    mask[1], duration[1] = False, 0.0
    moved = batch(
        mask=mask,
        denominator_mask=mask,
        kl_behavior=0 * ones,
        duration=duration,
        old_log_probs=-ones,
        log_probs=-ones,
    )
    found = gradient(proposed("grpo_guard", epsilon=0.9).build(), moved)
    torch.testing.assert_close(found[0], -moved.advantage[0] / 4)
    assert (found[1] == 0).all()


def test_flow_dppo_stops_only_what_leaves(proposed: Make) -> None:
    kl = torch.tensor([[0.0, 1.0, 1.0, 1.0]] * 2, dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]] * 2, dtype=torch.float64)
    old = torch.tensor([[-1.5, -1.5, -1.5, -0.5]] * 2, dtype=torch.float64)
    moved = batch(kl_behavior=kl, advantage=advantage, old_log_probs=old)
    found = gradient(proposed("flow_dppo", threshold=0.5).build(), moved)
    assert (found != 0).tolist() == [[True, False, True, False]] * 2


def test_ppo_loss_by_hand(proposed: Make) -> None:
    """Two terms of one sample, lam 1: both targets are the reward, 2; ratios e^0.5 and 1.

    Values 1 and 3 moved from 0.5 and 2.5, clipped to 0.7 and 2.7. The errors (1 - 2)^2 and (3 -
    2)^2 stand against (0.7 - 2)^2 and (2.7 - 2)^2: the larger ones are 1.69 and 1.
    """
    column = {"mask": torch.ones(2, 1).bool(), "denominator_mask": torch.ones(2, 1).bool()}
    moved = batch(
        **column, log_probs=torch.tensor([[-1.0], [-1.0]]).double(), reward=torch.tensor([2.0]),
        old_log_probs=torch.tensor([[-1.5], [-1.0]]).double(), events=torch.ones(2, 1).long(),
        old_value=torch.tensor([[0.5], [2.5]]).double(), step=torch.tensor([[0], [1]]),
        value=torch.tensor([[1.0], [3.0]]).double(), weight=torch.ones(2, 1).double(),
        group=torch.tensor([0]), valid=torch.tensor([True]), advantage=torch.zeros(2, 1).double(),
    )  # fmt: skip
    fields = {"epsilon": 0.2, "lam": 1.0, "vf_coef": 0.3, "whiten": False}
    found, metrics = proposed("ppo", **fields).build().loss(moved)
    surrogate = -(1.2 * 1.5 + 1.0 * -0.5) / 2  # the first ratio, e^0.5, is clipped to 1.2
    assert float(found) == pytest.approx(surrogate + 0.3 / 2 * (1.69 + 1.0) / 2)
    assert metrics["value_error"].flatten().tolist() == pytest.approx([1.0, 1.0])
    assert metrics["clip_fraction"].flatten().tolist() == [1, 0]
    free, _ = proposed("ppo", **fields, cliprange_value=None).build().loss(moved)
    assert float(free) == pytest.approx(surrogate + 0.3 / 2 * (1.0 + 1.0) / 2)
    whitened, _ = proposed("ppo", **fields | {"whiten": True}).build().loss(moved)
    assert float(whitened) == pytest.approx(-(1.2 - 1.0) / 2 + 0.3 / 2 * 2.69 / 2)


def test_groups_by_hand() -> None:
    group, valid = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1, 1, 1, 1, 0]).bool()
    x = torch.tensor([[0.0, 1.0, 0.0, 3.0, 9.0]], dtype=torch.float64)
    e = float(torch.tensor(2.0, dtype=torch.float64).exp())
    expected = [1, 2 / (1 + e), 1, 2 * e / (1 + e), 0]
    assert group_softmax(x, group, valid)[0].tolist() == pytest.approx(expected)
    best, worst = group_extremes(x[0], group, valid)
    assert (best.tolist(), worst.tolist()) == ([3], [1])


def test_pairs_of_equal_rewards_teach_nothing(proposed: Make) -> None:
    """The second group's rewards are equal: its samples get no gradient, alone or with others."""
    found = gradient(proposed("dpo").build(), batch())
    torch.testing.assert_close(found[0], torch.tensor([0.05, -0.05, 0, 0]).double())
    nothing = gradient(proposed("dpo").build(), batch(reward=torch.ones(4).double()))
    assert nothing.abs().max() == 0


def test_best_of_n_keeps_the_best(proposed: Make) -> None:
    objective = proposed("best_of_n", view="steps").build()
    found = gradient(objective, batch(valid=torch.tensor([1, 1, 0, 1]).bool()))
    torch.testing.assert_close(found[0], torch.tensor([0, -2.0, 0, -1.0]).double() / 6)


def test_generalized_advantage_by_loops() -> None:
    """Ragged samples, two terms in the first step, against the definition as a sum."""
    rng = torch.Generator().manual_seed(2)
    value = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    reward = torch.randn(3, generator=rng, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 0]]).bool()
    step = torch.tensor([0, 1, 2, 3, 4]).unsqueeze(1).expand(5, 3)
    found = generalized_advantage(value, reward, step, mask, 0.9, 0.8)
    for b in range(3):
        terms = [t for t in range(5) if mask[t, b]]
        ahead = [float(value[t, b]) for t in terms]
        nexts = [0.9 * v for v in ahead[1:]] + [float(reward[b])]
        deltas = [n - v for n, v in zip(nexts, ahead, strict=True)]
        for place, t in enumerate(terms):
            total = sum((0.9 * 0.8) ** i * delta for i, delta in enumerate(deltas[place:]))
            assert float(found[t, b]) == pytest.approx(total)
    assert (found[~mask] == 0).all()


def test_terms_of_one_step_share_their_advantage() -> None:
    value = torch.tensor([[0.5], [0.5], [0.2]], dtype=torch.float64)
    step = torch.tensor([[0], [0], [1]])
    found = generalized_advantage(
        value, torch.ones(1).double(), step, torch.ones(3, 1).bool(), 0.9, 0.8
    )
    apart = 0.9 * 0.2 - 0.5 + 0.72 * 0.8
    assert found.flatten().tolist() == pytest.approx([apart, apart, 0.8])


def test_whitening_sees_the_mask_alone() -> None:
    x = torch.tensor([1.0, 3.0, 100.0], dtype=torch.float64)
    found = whiten(x, torch.tensor([1, 1, 0]).bool())
    assert found[:2].tolist() == pytest.approx([-1, 1], abs=1e-6)


@pytest.mark.parametrize("gaps", [(3.2, -1.6), (0.5, -0.25), (12.0, -0.5), (90.0, -90.0)])
@pytest.mark.parametrize(("over", "events"), [("mean", 64), ("sum", 1)])
def test_d3po_clips_the_ratio_that_it_compares(
    proposed: Make, over: str, events: int, gaps: tuple[float, float]
) -> None:
    """Arxiv 2311.13231 with log-densities that are means over a latent's 64 elements, or sums."""
    one = torch.ones(1, 2, dtype=torch.float64)
    gap = torch.tensor([gaps], dtype=torch.float64)
    pair = batch(
        log_probs=gap, old_log_probs=0 * one, reference=0 * one, events=64 * one.long(),
        step=0 * one.long(),
        mask=one.bool(), denominator_mask=one.bool(), weight=one, scale=one, advantage=one,
        reward=torch.tensor([1.0, 0.0]), group=torch.zeros(2).long(), valid=torch.ones(2).bool(),
    )  # fmt: skip
    objective = proposed("dpo", beta=0.5, level="term", over=over, ratio_clip=0.1).build()
    leaf = gap.clone().requires_grad_()
    chosen, rejected = (leaf[0] / events).clamp(max=20).exp().clamp(0.9, 1.1)
    right = (1 + (rejected / chosen).pow(0.5)).log()  # -log sigmoid(beta log(c / e))
    assert float(objective.loss(pair)[0]) == pytest.approx(float(right.detach()), abs=1e-12)
    torch.testing.assert_close(gradient(objective, pair), torch.autograd.grad(right, leaf)[0])


def test_a_clip_that_does_not_act_changes_no_score(proposed: Make) -> None:
    noise = torch.Generator().manual_seed(0)
    drawn = batch(
        log_probs=0.1 * torch.randn(2, 4, generator=noise).double(), events=torch.tensor(
            [[3, 1, 2, 5], [1, 4, 2, 2]]), reference=torch.zeros(2, 4, dtype=torch.float64),
    )  # fmt: skip
    for level in ("term", "sequence"):
        for over in ("sum", "mean"):
            plain = proposed("dpo", level=level, over=over).build().loss(drawn)[0]
            fields = {"level": level, "over": over, "ratio_clip": 0.9}
            clipped = proposed("dpo", **fields).build().loss(drawn)[0]
            assert float(clipped) == pytest.approx(float(plain), abs=1e-14)


@pytest.mark.parametrize("combined", [False, True])
def test_a_bound_in_pieces_is_preferred_like_one_in_one(proposed: Make, combined: bool) -> None:
    """Two draws whose bound has three terms, some of them absent, or one term: the same pairs.

    A term counts an event each, so that dividing by events would be a mean over terms, and draws
    with more terms would weigh more.
    """
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(2, 3, 4, generator=generator) < 0.6
    parts = torch.randn(2, 3, 4, generator=generator).double() * present
    other = torch.randn(2, 3, 4, generator=generator).double() * present
    whole = {"view": "elbo", "beta": 0.7, "level": "sequence"}
    one = torch.ones(2, 4, dtype=torch.float64)
    in_one = batch(
        view="elbo", log_probs=parts.sum(1), reference=other.sum(1),
        step=torch.arange(2)[:, None] * one,
    )  # fmt: skip
    expected, _ = proposed("dpo", **whole).build().loss(in_one)
    step = torch.arange(2).view(2, 1, 1).expand(2, 3, 4).flatten(0, 1)
    log_probs, reference, there = parts.flatten(0, 1), other.flatten(0, 1), present.flatten(0, 1)
    if combined:
        log_probs, reference = parts.mean(0), other.mean(0)
        step, there = torch.zeros(3, 4, dtype=torch.int64), present.any(0)
    pieces = batch(
        view="elbo", log_probs=log_probs, reference=reference, step=step, mask=there,
        denominator_mask=there, events=there.long(), weight=torch.ones_like(log_probs),
    )  # fmt: skip
    found, _ = proposed("dpo", **whole).build().loss(pieces)
    assert float(found) == pytest.approx(float(expected), abs=1e-12)
