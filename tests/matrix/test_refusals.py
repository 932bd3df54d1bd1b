"""What is refused is refused by ``genrl check`` too, in the same words, with a way out.

``python -m tests.matrix.test_refusals`` writes one expected sentence per kind of refusal anew.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml

from genrl_core.cli import app as cli
from genrl_core.cli.matrix import Cell

from .conftest import REFUSED, REGISTRY, tree_of

GOLDEN = Path(__file__).parents[1] / "golden" / "refusals.json"
EXAMPLES: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
NEEDS = r"\S+ needs \w+, which \S+ does not provide: [^.]+\. "
KINDS = {
    "another part": NEEDS + r"Choose (?!.*, or view: )[\w, :]+",
    "another part or view": NEEDS + r"Choose [\w, :]+, or view: \w+",
    "another view": NEEDS + r"View: \w+",
    "another paradigm": NEEDS + r"Of other paradigms, .+ do(es)?\. Choose an objective that .+",
    "another objective": NEEDS + r"No registered component .+\. Choose an objective that .+",
    "another neighbour": r"\S+ has its numbers in the view .+, and its neighbours have \w+\. "
    r"Choose a neighbour with view: .+, or leave \S+ out",
}
"""Kind of way out -> what its sentences look like."""


def place_of(cell: Cell) -> str:
    return f"{cell.policy}/{cell.sampler}/{cell.objective}/{cell.view}"


def kind_of(message: str) -> str:
    found = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, message)]
    assert len(found) == 1, f"of no kind, or of several ({found}): {message}"
    return found[0]


def examples(refused: list[Cell]) -> dict[str, dict[str, str]]:
    """The first sentence of every kind, and the cell that it belongs to."""
    found: dict[str, dict[str, str]] = {}
    for cell in refused:
        for message in re.split(r"; (?=\S+ needs |\S+ has its )", cell.reason):
            found.setdefault(kind_of(message), {"cell": place_of(cell), "sentence": message})
    return found


def checked(cell: Cell, prompts: Path, capsys: Any) -> list[str]:
    """The messages of ``genrl check --json`` for the recipe of a cell."""
    tree = tree_of(cell, prompts)
    path = prompts.parent / "cell.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(typer.Exit) as stopped:
        cli.check(SimpleNamespace(obj=REGISTRY), [str(path)], json=True)  # type: ignore[arg-type]
    assert stopped.value.exit_code == 2
    (result,) = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    return [problem["message"] for problem in result["problems"]]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_check_refuses_in_the_words_of_the_matrix(
    kind: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = (cell for cell in REFUSED if place_of(cell) == EXAMPLES[kind]["cell"])
    messages = checked(cell, prompts, capsys)
    assert "; ".join(messages) == cell.reason
    assert EXAMPLES[kind]["sentence"] in messages


def test_one_expected_sentence_per_kind() -> None:
    """Every refusal is of a kind, and so every one has a way out."""
    hint = "run python -m tests.matrix.test_refusals and look at the difference"
    assert examples(REFUSED) == EXAMPLES, hint


@pytest.mark.parametrize("message", ["grpo is no good", "x needs y, which z does not provide: w"])
def test_a_refusal_without_a_way_out_is_noticed(message: str) -> None:
    with pytest.raises(AssertionError, match="of no kind"):
        kind_of(message)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(examples(REFUSED), indent=1) + "\n")
