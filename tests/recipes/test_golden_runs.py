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


SAME_MACHINE = golden.fingerprint() == RECORD["fingerprint"]


@pytest.fixture(scope="module")
def found(base_cache: Path) -> Any:
    """The metrics of all recipes, trained one after the other in one process."""
    print("compared bit for bit" if SAME_MACHINE else "another machine: compared to 1e-5")
    counts = {name: len(rows) if SAME_MACHINE else 1 for name, rows in RECORD["metrics"].items()}
    return golden.metrics_of(golden.ROOT, list(counts.items()), base_cache)


@pytest.mark.parametrize("name", golden.RECIPES)
def test_a_recipe_trains_as_recorded(name: str, found: Any) -> None:
    """All iterations bit for bit on a machine of the recorded kind; else the first to 1e-5."""
    wanted = RECORD["metrics"][name]
    if SAME_MACHINE:
        assert golden.differences({name: wanted}, {name: found[name]}) == []
    else:
        assert golden.relative_gap(wanted[:1], found[name]) < 1e-5


def test_a_difference_of_one_bit_is_found() -> None:
    row = {"loss": (0.5).hex(), "reward": (1.0).hex()}
    moved = row | {"loss": (0.5 + 2**-53).hex()}
    assert golden.differences({"r": [row, row]}, {"r": [row, row]}) == []
    assert golden.differences({"r": [row, row]}, {"r": [row, moved]})[0].startswith(
        "r: iteration 2, loss"
    )
    assert golden.relative_gap([row], [{"loss": row["loss"]}]) == float("inf")
