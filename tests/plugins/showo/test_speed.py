"""The speed measurement: its figures, and its replay of other people's trajectories."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks"
RESULTS = json.loads((HERE / "showo_speed.json").read_text())


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    found, threads = importlib.import_module("showo_speed"), torch.get_num_threads()
    monkeypatch.setattr(found, "THREADS", 1)
    yield found
    torch.set_num_threads(threads)
    for name in ("showo_speed", "showo_reference", "common"):
        sys.modules.pop(name, None)


def test_the_tables_of_the_readme_are_those_of_the_results(speed):
    text = (HERE / "README.md").read_text()
    assert speed.shown(RESULTS) in text and speed.equal(RESULTS) in text
    assert RESULTS["cases"].keys() == speed.CASES.keys()


def test_an_iteration_with_64_tokens_is_twice_as_fast_as_the_released_one():
    cases = {name: row for name, row in RESULTS["cases"].items() if name.startswith("64 tokens")}
    assert len(cases) >= 5
    for name, row in cases.items():
        assert row["theirs"]["total"] >= 2 * row["ours"]["total"], name
        assert row["case"]["group_size"] >= 8 and len(row["ours"]["all"]) >= 5


def test_both_sides_gave_the_same_numbers():
    for found in RESULTS["equality"].values():
        assert found["log_density_gap"] < 1e-5 + 3e-7 * found["log_density_size"]
        # The gap of the densities is a share of the gradient too, by way of the ratio.
        assert found["gradient_gap"] < 1e-5 + 2 * found["log_density_gap"]
        assert found["gradient_norm"] > 1


def test_a_replayed_trajectory_is_scored_as_it_was_when_drawn(speed, tmp_path):
    """Our own, in the lists of the released script, one position left over."""
    case = replace(
        speed.CASES["64 tokens"], text=20, codes=16, num_tokens=16, max_text=10, width=32, heads=2,
        layers=2, steps=3, words=4,
    )  # fmt: skip
    speed.write_model(case, tmp_path)
    trainer = speed.ours(case, tmp_path)
    inputs = speed.replay_inputs(trainer, case, tmp_path)
    with torch.no_grad():
        drawn = trainer.parts.sampler.rollout(trainer.parts.policy, *inputs)
    commit, tokens = drawn.trace["commit_step"], drawn.final["tokens"]
    assert (commit == case.steps).sum(1).tolist() == [1] * case.group_size
    indices = [[(row == step).nonzero().flatten() for step in range(case.steps)] for row in commit]
    records = speed.Records(tokens, indices, [], [], [])
    replayed = speed.ours(case, tmp_path, speed.Replayed(case, records))
    with torch.no_grad():
        again = replayed.parts.sampler.rollout(replayed.parts.policy, *inputs)
    assert torch.equal(again.trace["commit_step"], commit)
    assert torch.equal(again.final["tokens"], tokens)
    assert torch.equal(again.terms.log_probs, drawn.terms.log_probs)
    gradient, drift = speed.gradient_of_a_step(replayed)
    assert drift < 1e-5
    assert sum(float(one.square().sum()) for one in gradient.values()) > 0
