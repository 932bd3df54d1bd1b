"""Released counts and noise temperatures against the golden numbers of Show-o's schedule."""

import itertools
import math

import pytest

from genrl_masked import gumbel_temperatures, masked_fraction, release_chances, released_counts

COSINE_KEEP_ONE = {
    (
        1024,
        50,
    ): "1 2 2 4 4 6 6 8 8 10 10 11 13 13 14 15 16 17 18 18 19 20 21 22 22 24 23 25 25 26 26 "
    "27 27 28 29 29 29 30 30 30 31 31 31 32 31 32 32 32 32 31",
    (1024, 20): "4 9 16 22 27 34 39 45 50 54 59 64 66 71 73 75 77 79 80 79",
    (1024, 18): "4 12 19 27 34 42 48 54 60 66 71 76 79 82 85 88 88 88",
    (1024, 16): "5 15 25 33 43 52 60 67 75 81 86 91 94 98 99 99",
    (256, 18): "1 3 5 7 8 11 12 13 15 17 18 19 19 21 21 22 22 21",
    (256, 12): "3 6 11 15 18 22 26 28 30 31 33 32",
    (16, 20): "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0 0 0 0",
}
EVERY = list(
    itertools.product(
        ("cosine", "linear", "power", "sigmoid"), ("release_all", "keep_one"), (1, 2, 7, 16, 40),
        (1, 3, 16, 64),
    )
)  # fmt: skip


@pytest.mark.parametrize(("tokens", "steps"), COSINE_KEEP_ONE)
def test_cosine_counts_are_the_golden_ones(tokens, steps):
    golden = [int(word) for word in COSINE_KEEP_ONE[tokens, steps].split()]
    assert list(released_counts(tokens, steps, final_step="keep_one")) == golden
    golden[-1] += 1
    assert list(released_counts(tokens, steps, final_step="release_all")) == golden


def test_many_steps_start_with_single_tokens():
    counts = released_counts(256, 50, final_step="keep_one")
    assert counts[:7] == (1,) * 7
    assert counts[7] > 1
    assert sum(counts) == 255


def test_counts_release_every_position_once():
    for schedule, final_step, steps, tokens in EVERY:
        power = 2.0 if schedule == "power" else None
        counts = released_counts(tokens, steps, schedule, final_step, power)
        case = f"{schedule}, {final_step}, {tokens} tokens in {steps} steps: {counts}"
        assert len(counts) == steps, case
        assert min(counts) >= 0, case
        assert sum(counts) == (tokens if final_step == "release_all" else tokens - 1), case


def test_masked_fractions_fall_from_one_to_zero():
    for schedule in ("cosine", "linear", "power", "sigmoid"):
        values = [masked_fraction(step / 20, schedule, 2.0) for step in range(21)]
        assert values[0] == pytest.approx(1)
        assert values[-1] == pytest.approx(0, abs=1e-12)
        assert all(late < early for early, late in itertools.pairwise(values))
    assert masked_fraction(0.5, "linear") == 0.5
    assert masked_fraction(0.5, "power", 3.0) == 0.875
    assert masked_fraction(0.5, "sigmoid") == pytest.approx(0.5)
    assert masked_fraction(0.5, "cosine") == pytest.approx(math.sqrt(0.5))


def test_schedules_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="exponent"):
        masked_fraction(0.5, "power")
    with pytest.raises(ValueError, match="0 tokens"):
        released_counts(0, 4)


def test_cumulative_temperatures_are_the_golden_ones():
    found = gumbel_temperatures(1.0, 50, "cumulative")
    golden = {1: 0.98, 5: 0.7322, 10: 0.3054, 15: 0.0675, 20: 0.00721, 24: 0.000658, 25: 0.000329,
              30: 5.4e-6}  # fmt: skip
    for step, value in golden.items():
        assert found[step - 1] == pytest.approx(value, rel=6e-3)


def test_linear_temperatures_are_the_golden_ones():
    found = gumbel_temperatures(1.0, 50, "linear")
    golden = {1: 0.98, 5: 0.9, 10: 0.8, 15: 0.7, 20: 0.6, 24: 0.52, 25: 0.5, 30: 0.4, 50: 0.0}
    for step, value in golden.items():
        assert found[step - 1] == pytest.approx(value, abs=1e-12)
    assert gumbel_temperatures(4.5, 50)[0] == pytest.approx(4.5 * 0.98)


def test_a_schedule_too_steep_for_floats_releases_everything_at_once():
    assert 0.5**1e-18 == 1.0  # so that nothing is left to be released after the first step
    assert release_chances(4, "power", 1e-18) == (1.0, 1.0, 1.0, 1.0)
    assert release_chances(3, "linear") == pytest.approx((1 / 3, 1 / 2, 1.0))
