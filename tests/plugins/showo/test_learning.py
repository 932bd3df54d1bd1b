"""Show-o learns: a tiny random one, with its tokenizer, comes to draw the code that is rewarded."""

from pathlib import Path

import pytest

from ..rewarded_code import shares  # noqa: TID252  # shared with aMUSEd
from .conftest import LENGTH, NUM_TOKENS, TINY


@pytest.mark.parametrize(("transition", "seed"), [("p1", 0), ("p1", 1), ("p1", 2), ("p2", 0)])
def test_a_rewarded_code_is_drawn_more_often(
    published: dict[str, Path], tmp_path: Path, transition: str, seed: int
) -> None:
    """From a sixteenth or so to most positions, in 18 iterations of 16 samples."""
    policy = {
        "use": "showo", "weights": str(published["showo"]), "max_text_tokens": LENGTH,
        "image_tokenizer": str(published["image"]),
    }  # fmt: skip
    found = shares(
        tmp_path, policy, "a red cube\ntwo small cat\n", iterations=18, seed=seed,
        transition=transition,
    )  # fmt: skip
    assert sum(found[:3]) / 3 < 0.3 and NUM_TOKENS == TINY.codes == 16
    assert sum(found[-5:]) / 5 > 0.6
