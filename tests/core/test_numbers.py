"""Reductions, surrogates, KL values, advantages, filters and chosen steps, against plain loops."""

import math

import numpy as np
import pytest
import torch

from genrl_core.errors import RecipeError
from genrl_core.functional import clipped_surrogate, is_clipped, kl_estimate, reduce
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.advantage import advantages, group_statistics, normalised_then_summed
from genrl_core.loop.filters import GroupFilter
from genrl_core.loop.plan import plan_of
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, StepsConfig
from genrl_core.loop.steps import choose_evals

HOWS = ["token_mean", "sample_mean", "constant", "sum", "group_mean"]


def ragged(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, 7, generator=g) < 0.6
    mask[:, 2] = False
    return {
        "mask": mask,
        "weight": torch.rand(5, 7, generator=g).double() + 0.5,
        "denominator_mask": mask,
        "valid": torch.tensor([1, 1, 1, 0, 1, 1, 1]).bool(),
        "group": torch.tensor([0, 0, 1, 1, 2, 2, 2]),
    }


def looped(x: torch.Tensor, how: str, f: dict[str, torch.Tensor]) -> float:
    """The reductions as their docstring says them, one number at a time."""
    total = {b: 0.0 for b in range(7) if f["valid"][b]}
    count = dict.fromkeys(total, 0)
    for b in total:
        for t in range(5):
            if f["mask"][t, b]:
                total[b] += float(x[t, b] * f["weight"][t, b])
                count[b] += 1
    if how == "token_mean":
        return sum(total.values()) / sum(count.values())
    if how == "sample_mean":
        return sum(total[b] / max(count[b], 1) for b in total) / len(total)
    if how == "constant":
        return sum(total.values()) / (len(total) * 5)
    if how == "sum":
        return sum(total.values()) / len(total)
    means = []
    for group in range(3):
        inside = [b for b in total if f["group"][b] == group]
        if sum(count[b] for b in inside):
            means.append(sum(total[b] for b in inside) / sum(count[b] for b in inside))
    return sum(means) / len(means)


@pytest.mark.parametrize("how", HOWS)
def test_reductions_match_loops(how: str) -> None:
    fields = ragged()
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).double()
    assert float(reduce(x, how, **fields)) == pytest.approx(looped(x, how, fields), abs=1e-14)


@pytest.mark.parametrize("how", HOWS)
def test_parts_of_a_batch_add_up(how: str) -> None:
    """Chunks never change a denominator."""
    fields = ragged()
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).double()
    half = torch.zeros(5, 7, dtype=torch.bool)
    half[:2, ::2] = True
    parts = [fields | {"mask": fields["mask"] & part} for part in (half, ~half)]
    total = sum(float(reduce(x, how, **part)) for part in parts)
    assert total == pytest.approx(float(reduce(x, how, **fields)), abs=1e-14)


def test_masked_entries_do_not_leak() -> None:
    fields = ragged()
    x = torch.zeros(5, 7).double().masked_fill(~fields["mask"], math.nan).requires_grad_()
    loss = reduce(x, "sample_mean", **fields)
    loss.backward()
    assert float(loss.detach()) == 0 and x.grad is not None and x.grad.isfinite().all()


def test_unknown_reduction_and_shape() -> None:
    fields = ragged()
    with pytest.raises(ValueError, match="unknown reduction"):
        reduce(torch.zeros(5, 7), "median", **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[T, B\] or \[B\]"):
        reduce(torch.zeros(3, 7), "sum", **fields)


def test_clipped_surrogate_by_hand() -> None:
    ratio = torch.tensor([0.5, 0.95, 1.1, 1.5]).double()
    up = clipped_surrogate(ratio.log(), torch.ones(4).double(), 0.1, 0.2)
    down = clipped_surrogate(ratio.log(), -torch.ones(4).double(), 0.1, 0.2)
    assert up.tolist() == pytest.approx([-0.5, -0.95, -1.1, -1.2])
    assert down.tolist() == pytest.approx([0.9, 0.95, 1.1, 1.5])
    assert is_clipped(ratio.log(), torch.ones(4), 0.1, 0.2).tolist() == [False, False, False, True]
    assert is_clipped(ratio.log(), -torch.ones(4), 0.1, 0.2).tolist() == [True, False, False, False]


def test_minimum_comes_before_the_mean() -> None:
    """The minimum of the means (a fault of the paper's released code) is another number."""
    log_ratio = torch.tensor([0.5, -0.5]).double()
    advantage = torch.tensor([1.0, 1.0]).double()
    ours = clipped_surrogate(log_ratio, advantage, 0.1, 0.2).mean()
    ratio = log_ratio.exp()
    released = -torch.minimum(
        (ratio * advantage).mean(), (ratio.clamp(0.9, 1.2) * advantage).mean()
    )
    assert abs(float(ours - released)) > 0.05


def test_kl_estimators_have_the_right_mean() -> None:
    p, q = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    exact = float((p * (p / q).log()).sum())
    for estimator in ("k1", "k3"):
        assert float((p * kl_estimate(p.log(), q.log(), None, estimator)).sum()) == pytest.approx(
            exact, abs=1e-12
        )  # type: ignore[arg-type]
    old = torch.tensor([0.3, 0.3, 0.4]).double()
    unbiased = kl_estimate(p.log(), q.log(), old.log(), "unbiased")
    assert float((old * unbiased).sum()) == pytest.approx(exact, abs=1e-12)
    with pytest.raises(ValueError, match="drawing weights"):
        kl_estimate(p.log(), q.log(), None, "unbiased")


REWARD = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 9.0, 4.0]).double()
GROUP = torch.tensor([0, 0, 1, 1, 2, 2, 2])
VALID = torch.tensor([1, 1, 1, 1, 1, 0, 1]).bool()


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean", "none"])
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_advantages_match_numpy(baseline: str, scale: str) -> None:
    config = AdvantageConfig.model_validate({"baseline": baseline, "scale": scale})
    found = advantages(config, REWARD, VALID, GROUP)
    every = REWARD[VALID].numpy()
    for b in range(7):
        if not VALID[b]:
            assert found[b] == 0
            continue
        mine = REWARD[(group := GROUP[b] == GROUP) & VALID].numpy()
        others = REWARD[group & VALID & (torch.arange(7) != b)].numpy()
        base = {
            "group_mean": mine.mean(), "leave_one_out": others.mean(),
            "batch_mean": every.mean(), "none": 0.0,
        }[baseline]  # fmt: skip
        divisor = {"group_std": mine, "batch_std": every}.get(scale)
        spread = 1.0 if divisor is None else float(np.std(divisor, ddof=1))
        if spread == 0:  # the rewards of this group are equal: there is no unit
            assert found[b] == 0
            continue
        size = spread if divisor is None else spread + 1e-4
        assert float(found[b]) == pytest.approx((float(REWARD[b]) - base) / size, abs=1e-12)


def test_equal_rewards_give_exactly_zero() -> None:
    reward = torch.full((4,), 0.1).double() * 3
    found = advantages(
        AdvantageConfig(epsilon=0.0), reward, torch.ones(4).bool(), torch.zeros(4).long()
    )
    assert found.tolist() == [0, 0, 0, 0]


NUMBERS = [0.1, 1 / 3, 0.7, 1 / 7, 1e6 / 3, 1e-9 / 3, 0.3 * 0.1 + 0.7 / 3, -0.1, 0.0]


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 8, 12])
def test_equal_rewards_have_a_spread_of_exactly_0(size: int) -> None:
    """Whatever the number: the mean of k times 0.1 is not always 0.1."""
    reward = torch.tensor(NUMBERS, dtype=torch.float64).repeat_interleave(size)
    group = torch.arange(len(NUMBERS)).repeat_interleave(size)
    mean, spread, _ = group_statistics(reward, torch.ones_like(group).bool(), group)
    assert spread.tolist() == [0.0] * len(NUMBERS)
    assert mean.tolist() == NUMBERS
    assert not any(GroupFilter(FilterConfig(min_std=0.0)).keep(spread))


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean", "none"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_equal_rewards_have_advantages_of_exactly_0(
    baseline: str, scale: str, epsilon: float
) -> None:
    """Of a group and of the whole batch; only what is compared with nothing is its reward."""
    config = AdvantageConfig.model_validate(
        {"baseline": baseline, "scale": scale, "epsilon": epsilon}
    )
    for number in NUMBERS:
        for size in (3, 6, 7):
            reward = torch.full((2 * size,), number, dtype=torch.float64)
            group, valid = torch.arange(2 * size) // size, torch.ones(2 * size).bool()
            found = advantages(config, reward, valid, group)
            alone = (baseline, scale) == ("none", "none")
            assert found.tolist() == (reward if alone else torch.zeros_like(reward)).tolist()
            reward[size:] = torch.arange(size).double()  # the other group differs
            found = advantages(config, reward, valid, group)[:size]
            across = baseline in ("batch_mean", "none") and scale != "group_std"
            assert across or found.tolist() == [0.0] * size
            assert len(set(found.tolist())) == 1


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean", "none"])
def test_advantages_do_not_depend_on_the_unit_of_rewards(baseline: str, scale: str) -> None:
    """Up to 1e308 and down to 1e-300, where squares overflow and vanish."""
    config = AdvantageConfig.model_validate({"baseline": baseline, "scale": scale, "epsilon": 0.0})
    expected = advantages(config, REWARD, VALID, GROUP)
    assert expected[VALID].abs().max() > 0.5
    for exponent in (-1000, -600, 600, 1018):
        found = advantages(config, REWARD * 2.0**exponent, VALID, GROUP)
        assert found.tolist() == expected.tolist()


def test_one_huge_reward_leaves_its_group_a_direction() -> None:
    reward = torch.tensor([1e308, 0.0, 1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    group, valid = torch.tensor([0, 0, 0, 0, 1, 1]), torch.ones(6).bool()
    found = advantages(AdvantageConfig(epsilon=0.0), reward, valid, group)
    exact = [1.5, -0.5, -0.5, -0.5, -(0.5**0.5), 0.5**0.5]
    assert found.tolist() == pytest.approx(exact, abs=1e-12)


def test_rewards_too_far_apart_are_not_called_equal() -> None:
    """A deviation above the largest number: not finite, which the loop names."""
    reward = torch.tensor([1.7e308, -1.7e308], dtype=torch.float64)
    found = advantages(AdvantageConfig(), reward, torch.ones(2).bool(), torch.zeros(2).long())
    assert not found.isfinite().any()


def test_normalised_then_summed_leaves_equal_groups_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    reward = torch.rand(24, generator=generator, dtype=torch.float64)
    reward[:8] = 1 / 3
    other = torch.rand(24, generator=generator, dtype=torch.float64)
    other[:8] = 0.1
    group, valid = torch.arange(24) // 8, torch.ones(24).bool()
    parts = [(0.3, reward), (0.7, other)]
    found = normalised_then_summed(AdvantageConfig(), parts, valid, group)
    assert found[:8].tolist() == [0.0] * 8
    assert found[8:].abs().min() > 0


def test_normalised_then_summed_matches_numpy() -> None:
    """Two rewards of different scale weigh alike; one that is missing is left out."""
    small = REWARD / 1000
    large = torch.tensor([10.0, -5.0, 3.0, 40.0, 7.0, 1.0, math.nan]).double()
    found = normalised_then_summed(AdvantageConfig(), [(1.0, small), (2.0, large)], VALID, GROUP)
    total = np.zeros(7)
    for weight, reward in ((1.0, small.numpy()), (2.0, large.numpy())):
        for group in range(3):
            inside = (group == GROUP).numpy() & VALID.numpy() & ~np.isnan(reward)
            if inside.sum() > 1:
                part = reward[inside]
                total[inside] += weight * (part - part.mean()) / (part.std(ddof=1) + 1e-4)
    kept = total[VALID.numpy()]
    exact = (total - kept.mean()) / (kept.std(ddof=1) + 1e-4) * VALID.numpy()
    assert found.numpy() == pytest.approx(exact, abs=1e-12)


def test_single_sample_groups_and_clip() -> None:
    reward, group = torch.tensor([1.0, 5.0]).double(), torch.tensor([0, 1])
    found = advantages(AdvantageConfig(), reward, torch.ones(2).bool(), group)
    assert found.tolist() == [0, 0]
    clipped = AdvantageConfig(baseline="none", scale="none", clip=2.0)
    assert advantages(clipped, reward, torch.ones(2).bool(), group).tolist() == [1, 2]


def test_filter_rejects_zero_spread_and_low_percentiles() -> None:
    plain = GroupFilter(FilterConfig(min_std=0.0))
    assert plain.keep(torch.tensor([0.0, 0.5])) == [False, True]
    percentile = GroupFilter(FilterConfig(std_percentile=25.0, warmup=4, history=8))
    assert percentile.keep(torch.tensor([1.0, 2.0, 3.0, 4.0])) == [True] * 4
    assert percentile.threshold == pytest.approx(np.percentile([1, 2, 3, 4], 25))
    assert percentile.keep(torch.tensor([1.0, 2.0])) == [False, True]
    other = GroupFilter(FilterConfig(std_percentile=25.0, warmup=4, history=8))
    other.load_state_dict(percentile.state_dict())
    assert other.threshold == percentile.threshold


def test_percentile_filter_rejects_its_share_in_the_long_run() -> None:
    """With rejected spreads in the history the rate stays near the percentile."""
    spread = torch.rand(4000, generator=torch.Generator().manual_seed(0)).double()
    group_filter = GroupFilter(FilterConfig(std_percentile=10.0))
    kept = [flag for part in spread.split(10) for flag in group_filter.keep(part)]
    assert 1 - sum(kept) / len(kept) == pytest.approx(0.1, abs=0.02)


def streams(samples: int) -> Streams:
    return plan_of(1, 2, 0, [Prompt("p", "p")], samples).streams("steps")


@pytest.mark.parametrize("choose", ["random", "stratified"])
def test_importance_makes_chosen_calls_unbiased(choose: str) -> None:
    config = StepsConfig.model_validate({"choose": choose, "count": 3, "importance": True})
    chosen, weight = choose_evals(config, 7, streams(6000))
    assert (chosen.sum(0) == 3).all()
    torch.testing.assert_close((chosen * weight).mean(1), torch.ones(7), atol=0.08, rtol=0)


def test_contiguous_calls_and_their_errors() -> None:
    first, weight = choose_evals(StepsConfig(choose="first", count=2), 5, streams(3))
    last, _ = choose_evals(StepsConfig(choose="last", count=2), 5, streams(3))
    assert first[:, 0].tolist() == [True, True, False, False, False]
    assert last[:, 2].tolist() == [False, False, False, True, True]
    assert (weight == 1).all()
    with pytest.raises(RecipeError, match="has 5 network evaluations"):
        choose_evals(StepsConfig(choose="last", count=6), 5, streams(3))
    with pytest.raises(ValueError, match="importance needs"):
        StepsConfig(choose="first", count=2, importance=True)


def test_stratified_takes_one_call_of_each_stratum() -> None:
    chosen, _ = choose_evals(StepsConfig(choose="stratified", count=2), 6, streams(50))
    assert (chosen[:3].sum(0) == 1).all() and (chosen[3:].sum(0) == 1).all()


def test_streams_belong_to_samples_not_to_batches() -> None:
    prompts = [Prompt("a", "a"), Prompt("b", "b")]
    plan = plan_of(5, 0, 0, prompts, 3)
    whole = plan.streams("x").normal(2, 2)
    alone = plan.select(torch.tensor([4])).streams("x").normal(2, 2)
    assert torch.equal(whole[4], alone[0])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6
    shared = plan.streams("x").shared.uniform(4)
    assert torch.equal(shared[0], shared[2]) and not torch.equal(shared[0], shared[3])
    again = plan_of(6, 0, 0, prompts, 3).streams("x").normal(2, 2)
    assert not torch.equal(whole, again)
    assert not torch.equal(whole, plan.streams("y").normal(2, 2))


def test_draws_continue_and_have_their_distribution() -> None:
    stream = plan_of(5, 0, 0, [Prompt("a", "a")], 2).streams("x")
    first, second = stream.uniform(4), stream.uniform(4)
    assert not torch.equal(first, second)
    gumbel = stream.gumbel(20000)
    assert float(gumbel.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(gumbel.var()) == pytest.approx(math.pi**2 / 6, abs=0.06)
    assert gumbel.dtype == torch.float32
