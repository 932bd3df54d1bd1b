"""Six recipes train as they were recorded: refactors must not move a bit."""

import importlib.util
import json
from pathlib import Path
from typing import Any

_PATH = Path(__file__).parents[1] / "golden_runs.py"
_SPEC = importlib.util.spec_from_file_location("golden_runs", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

RECORD: dict[str, Any] = json.loads(golden.RECORDED.read_text())


SAME_MACHINE = golden.fingerprint() == RECORD["fingerprint"]


def test_every_recipe_trains_as_recorded(base_cache: Path) -> None:
    """All iterations bit for bit on a machine of the recorded kind; else the first to 1e-5."""
    assert sorted(RECORD["metrics"]) == sorted(golden.RECIPES)
    print("compared bit for bit" if SAME_MACHINE else "another machine: compared to 1e-5")
    counts = {name: len(rows) if SAME_MACHINE else 1 for name, rows in RECORD["metrics"].items()}
    found = golden.metrics_of(golden.ROOT, list(counts.items()), base_cache)
    if SAME_MACHINE:
        assert golden.differences(RECORD["metrics"], found) == []
    else:
        gaps = {n: golden.relative_gap(rows[:1], found[n]) for n, rows in RECORD["metrics"].items()}
        assert max(gaps.values()) < 1e-5, gaps


def test_a_difference_of_one_bit_is_found() -> None:
    row = {"loss": (0.5).hex(), "reward": (1.0).hex()}
    moved = row | {"loss": (0.5 + 2**-53).hex()}
    assert golden.differences({"r": [row, row]}, {"r": [row, row]}) == []
    assert golden.differences({"r": [row, row]}, {"r": [row, moved]})[0].startswith(
        "r: iteration 2, loss"
    )
    assert golden.relative_gap([row], [{"loss": row["loss"]}]) == float("inf")
