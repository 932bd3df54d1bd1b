"""Prompts that the network has no positions for: all named before anything is drawn."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genrl_autoregressive import CausalLmConfig, TokenConfig
from genrl_core import Prompt
from genrl_core.cli.app import main

RECIPE = """\
policy: {{use: causal_lm, weights: {model}}}
sampler: {{use: token, max_new_tokens: 12}}
reward: {{arithmetic_correct: {{}}}}
objective: {{grpo: {{epsilon: 0.2}}}}
prompts: {{file: train.jsonl, evaluate: test.jsonl}}
advantage: {{scale: none}}
train: {{iterations: 4, num_prompts: 1, num_generations: 2, learning_rate: 1e-4}}
evaluate: {{num_generations: 1, sampler: {sampler}}}
"""
POSITIONS = 24
FITS = POSITIONS - 11  # of twelve new tokens the last is never read


def sums(length: int) -> str:
    """A sum of so many characters."""
    return "1" * (length - 2 - length // 2) + "+" + "1" * (length // 2) + "="


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(
    published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """``run(train, test, sampler, *overrides)``: exit code, what was printed, iterations."""
    monkeypatch.chdir(tmp_path)
    config = json.loads((published["gpt2"] / "config.json").read_text())
    assert config["n_positions"] == POSITIONS, "the test counts on it"

    def go(
        train: Sequence[dict[str, str]], test: Sequence[dict[str, str]], sampler: str = "{}",
        *overrides: str,
    ) -> tuple[int, str, int]:  # fmt: skip
        write(tmp_path / "train.jsonl", train)
        write(tmp_path / "test.jsonl", test)
        recipe = RECIPE.format(model=published["gpt2"], sampler=sampler)
        (tmp_path / "mine.yaml").write_text(recipe)
        name = f"run{time.monotonic_ns()}"
        code = main(["run", "mine.yaml", f"run.name={name}", *overrides])
        metrics = tmp_path / "runs" / name / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return code, "".join(capsys.readouterr()), len(lines)

    return go


def test_all_prompts_that_are_too_long_are_named_before_the_first_iteration(run: Any) -> None:
    short = [{"text": f"{i}+1="} for i in range(8)]
    code, said, iterations = run(
        [*short, {"text": sums(FITS)}, {"text": sums(FITS + 1)}, {"text": sums(40)}],
        [*short, {"text": sums(30)}],
    )
    assert (code, iterations) == (2, 0), said
    for place, length in (("train.jsonl:10", 14), ("train.jsonl:11", 40), ("test.jsonl:9", 30)):
        told = f"{place}: text: has {length} tokens, and the policy takes {FITS} at the most"
        assert told in said, said
    assert said.count("at the most") == 3 and "max_new_tokens (12)" in said


def test_the_longest_that_fits_is_drawn(run: Any) -> None:
    code, said, iterations = run([{"text": sums(FITS)}], [{"text": sums(FITS)}])
    assert (code != 2, iterations) == (True, 4), said  # a random network may learn nothing


def test_an_evaluation_has_a_length_of_its_own(run: Any) -> None:
    code, said, iterations = run(
        [{"text": sums(FITS)}], [{"text": sums(FITS)}], "{max_new_tokens: 13}"
    )
    assert (code, iterations) == (2, 0), said
    assert "test.jsonl:1: text: has 13 tokens" in said and "train.jsonl" not in said
    assert f"takes {FITS - 1} at the most" in said and "max_new_tokens (13)" in said


def test_a_negative_prompt_counts_where_guidance_is_on(run: Any) -> None:
    rows = [{"text": "1+1=", "negative": sums(FITS + 3)}, {"text": "1+2="}]
    code, said, iterations = run(rows, rows)
    assert (code != 2, iterations) == (True, 4), said
    code, said, iterations = run(rows, rows, "{}", "sampler.guidance_scale=2.0")
    assert (code, iterations) == (2, 0), said
    assert said.count("jsonl:1: negative: has 16 tokens") == 2


def test_many_are_counted(run: Any) -> None:
    code, said, _ = run([{"text": sums(30 + i)} for i in range(50)], [{"text": "1+1="}])
    assert code == 2
    assert said.count("at the most") == 20 and "and 30 more prompts like these" in said


def test_reading_agrees_with_what_is_encoded(published: dict[str, Path]) -> None:
    policy = CausalLmConfig(weights=str(published["gpt2"])).build()
    prompts = [Prompt("a", "1+2="), Prompt("b", ""), Prompt("c", "0123", negative="11111")]
    text, negative = policy.reading(prompts)
    cond = policy.encode(prompts)
    assert text.lengths == cond["prompt_mask"].sum(1).tolist() == [4, 1, 4]
    assert negative.lengths == cond["negative_mask"].sum(1).tolist() == [1, 1, 5]
    sampler = TokenConfig(max_new_tokens=1).build()
    [alone] = sampler.reading(policy, prompts)
    assert (alone.lengths, alone.limit, alone.cut) == (text.lengths, POSITIONS, False)
