"""The cells of the matrix, and the clock that they are held to.

Every list comes from the registry, so that a new plugin is covered by being registered.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from genrl_core import ObjectiveConfig
from genrl_core.cli.matrix import Cell, cells, recipe_tree
from genrl_core.registry import Registry
from genrl_core.testing import conformance as testing
from genrl_core.testing import enumerable as toys
from genrl_core.testing.directions import mean_update

REGISTRY = Registry.discover(modules=[toys])
CELLS = cells(REGISTRY)
TRAINS = [cell for cell in CELLS if cell.verdict == "trains"]
REFUSED = [cell for cell in CELLS if cell.verdict == "refused"]
TOYS = [cell for cell in TRAINS if cell.policy in ("toy_sequence", "toy_canvas", "toy_gaussian")]
LOADED_ONLY = {"amused", "causal_lm", "showo"}
"""Policies that are nothing without weights from elsewhere."""
SECONDS: dict[str, float] = {}
"""Processor time that the tests of a cell took; a cell of a toy is in three tests."""


def name(cell: Cell) -> str:
    return f"{cell.policy}-{cell.sampler}-{cell.objective}-{cell.view}"


def objective_of(cell: Cell) -> ObjectiveConfig:
    """The cell's objective in the cell's view, required fields as proposed."""
    schema = REGISTRY.objectives[cell.objective]
    fields = schema.suggested_values()
    assert fields is not None
    view = {"view": cell.view} if "view" in schema.model_fields else {}
    return schema.model_validate(fields | view)


def tree_of(cell: Cell, prompts: Path) -> dict[str, Any]:
    """The cell's recipe over prompts that its policy understands."""
    worlds = {"arithmetic": "sums.jsonl", "shapes": "shapes.jsonl"}
    other = next((file for world, file in worlds.items() if world in cell.policy), prompts.name)
    file = prompts.parent / other
    tree = recipe_tree(REGISTRY, cell, prompts={"file": str(file)})
    assert tree is not None
    return tree


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "prompts.jsonl"
    digits = ['{"text": "a handwritten three", "digit": 3}', '{"text": "a drawn one", "digit": 1}']
    path.write_text("\n".join(digits) + "\n")
    (path.parent / "sums.jsonl").write_text('{"text": "1+2="}\n{"text": "3+4="}\n')
    shapes = '{"text": "a red circle"}\n{"text": "two squares"}\n'
    (path.parent / "shapes.jsonl").write_text(shapes)
    return path


@contextmanager
def timed(cell: Cell) -> Iterator[None]:
    """Counts what is inside as time of the cell."""
    start = time.process_time()
    yield
    SECONDS[name(cell)] = SECONDS.get(name(cell), 0.0) + time.process_time() - start


@pytest.fixture(scope="session", autouse=True)
def _within_the_limit() -> Iterator[None]:
    """A cell of a toy takes at most 0.3 s: the median, since a busy machine slows some of them."""
    first = objective_of(TOYS[0])  # what torch loads on first use is no cell's time
    mean_update(first, *testing.toys()[0], view="steps", groups=2)
    yield
    toys_only = [seconds for cell, seconds in SECONDS.items() if cell.startswith("toy")]
    if toys_only:
        assert statistics.median(toys_only) <= 0.3


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if SECONDS:
        slowest = max(SECONDS, key=lambda cell: SECONDS[cell])
        middle = statistics.median(SECONDS.values())
        terminalreporter.write_line(
            f"matrix: {len(SECONDS)} cells, the median took {middle:.3f} s of processor time, the "
            f"slowest {SECONDS[slowest]:.2f} s: {slowest}; "
            f"{sum(seconds > 0.3 for seconds in SECONDS.values())} took more than 0.3 s"
        )
