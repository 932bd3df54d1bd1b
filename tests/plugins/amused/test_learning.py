"""aMUSEd learns: a tiny random ``UVit2DModel`` comes to draw the code that is rewarded."""

from pathlib import Path

import pytest

from ..rewarded_code import shares  # noqa: TID252  # shared with Show-o


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rewarded_code_is_drawn_more_often(published: Path, tmp_path: Path, seed: int) -> None:
    """From less than a third to most of the positions, in 25 iterations of 16 samples."""
    policy = {"use": "amused", "weights": str(published)}
    found = shares(tmp_path, policy, "a red dog\ntwo cats\n", iterations=25, seed=seed)
    assert sum(found[:3]) / 3 < 0.33
    assert sum(found[-5:]) / 5 > 0.6
