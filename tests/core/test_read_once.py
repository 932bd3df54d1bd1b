"""A run reads, checks and digests its recipe once, and each of its prompt files once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrl_core.cli.app import main
from genrl_core.recipe import check, recipe, sources
from genrl_core.recipe.recipe import Recipe
from genrl_core.testing import enumerable

BASE = """\
policy: {use: toy_canvas}
sampler: {use: toy_canvas}
reward: {toy_reward: {}}
objective: {grpo: {epsilon: 0.2}}
prompts: {file: base.txt}
train: {iterations: 1, num_prompts: 2, num_generations: 4, learning_rate: 0.05}
"""

MINE = """\
extends: base.yaml
policy: {weights: recipe:base.yaml}
prompts: {file: mine.txt, evaluate: held.txt}
evaluate: {metrics: {toy_reward: {}}}
save: {every: 1}
"""


def counted(
    counts: Counter[str], patch: pytest.MonkeyPatch, owner: Any, name: str, key: Callable[..., str]
) -> None:
    real = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        counts[f"{name} {key(*args)}"] += 1
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)


def test_a_run_does_everything_to_its_recipe_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it was handed on as it was checked, there were 2 checks and 3 digests of it, 5
    readings of each prompt file, and 10 of the recipe that gives the weights.
    """
    for name, text in {"base.yaml": BASE, "mine.yaml": MINE}.items():
        (tmp_path / name).write_text(text)
    for name in ("base", "mine", "held"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 1\n{name} 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENRL_CACHE", str(tmp_path / "cache"))
    counts: Counter[str] = Counter()
    count = lambda *where: counted(counts, monkeypatch, *where)
    count(sources, "read_file", lambda path: path.name)
    count(recipe, "_build", lambda name, *_: name)
    count(check, "find_problems", lambda read, *_: read.name)
    count(Recipe, "_by_content", lambda read, _: read.name)
    count(Path, "read_bytes", lambda path: path.name)
    assert main(["run", "mine.yaml", "--plugin", str(enumerable.__file__), "--quiet"]) == 0
    for what in ("read_file mine.yaml", "_build mine", "find_problems mine", "_by_content mine"):
        assert counts[what] == 1, counts
    assert counts["read_bytes mine.txt"] == counts["read_bytes held.txt"] == 1, counts
    assert counts["find_problems base"] == 1, "when it is trained"
    assert counts["read_file base.yaml"] <= 3, "as parent, as what gives the weights, as trained"
