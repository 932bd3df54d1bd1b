"""Six recipes train as they were recorded: refactors must not move a bit."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[1] / "golden_runs.py"
_SPEC = importlib.util.spec_from_file_location("golden_runs", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

RECORD: dict[str, Any] = json.loads(golden.RECORDED.read_text())


@pytest.mark.parametrize("name", golden.RECIPES)
def test_a_recipe_trains_as_recorded(name: str, base_cache: Path) -> None:
    """All iterations bit for bit on a machine of the recorded kind; else the first to 1e-5."""
    wanted = RECORD["metrics"][name]
    same_machine = golden.fingerprint() == RECORD["fingerprint"]
    print("compared bit for bit" if same_machine else "another machine: compared to 1e-5")
    count = len(wanted) if same_machine else 1
    found = golden.metrics_of(golden.ROOT, [(name, count)], base_cache)[name]
    if same_machine:
        assert golden.differences({name: wanted}, {name: found}) == []
    else:
        assert golden.relative_gap(wanted[:1], found) < 1e-5


def test_a_difference_of_one_bit_is_found() -> None:
    row = {"loss": (0.5).hex(), "reward": (1.0).hex()}
    moved = row | {"loss": (0.5 + 2**-53).hex()}
    assert golden.differences({"r": [row, row]}, {"r": [row, row]}) == []
    assert golden.differences({"r": [row, row]}, {"r": [row, moved]})[0].startswith(
        "r: iteration 2, loss"
    )
    assert golden.relative_gap([row], [{"loss": row["loss"]}]) == float("inf")
