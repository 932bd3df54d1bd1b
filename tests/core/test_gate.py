"""The gate's own rules: what excuses a skipped test, and when a long result is older than code."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from programs import TESTS, load


@pytest.fixture(scope="module")
def long() -> ModuleType:
    return load("long")


@pytest.mark.parametrize(
    ("reason", "excused"),
    [
        ("torch sees no GPU here", True), ("needs the network", True),
        ("the Debian package chromium is not installed", True), ("only root may mount", True),
        ("trl is not installed", False), ("unconditional skip", False), ("the rooted tree", False),
    ],
)  # fmt: skip
def test_few_reasons_excuse_a_skipped_test(reason: str, excused: bool) -> None:
    no_excuse = load("conftest").no_excuse
    place = ("test_x.py", 1, f"Skipped: {reason}")
    report = pytest.TestReport("x", ("x", 1, "x"), {}, "skipped", place, "setup")
    assert (no_excuse(report, None) == "") is excused
    report.outcome = "passed"
    assert no_excuse(report, None) == ""


def test_a_module_that_is_skipped_whole_is_no_exception() -> None:
    place = ("test_x.py", 1, "Skipped: could not import 'trl'")
    report = pytest.CollectReport("x", "skipped", place, [])
    assert "trl" in load("conftest").no_excuse(report, None)


def test_results_grow_old_with_their_files(long: ModuleType, tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "c.txt"):
        (tmp_path / name).write_text(name)
    files = long.hashes(["*.py", "a*"], tmp_path)
    assert list(files) == ["a.py", "b.py"]
    result = {"commit": "c0ffee", "date": "2026-01-02T03:04:05+00:00", "files": files}
    assert long.age(None, files) == "never run"
    assert long.age(result, files) == ""
    (tmp_path / "a.py").write_text("other")
    (tmp_path / "b.py").rename(tmp_path / "d.py")
    said = long.age(result, long.hashes(["*.py"], tmp_path))
    assert said.startswith("older than its code: 3 of 2 files differ from c0ffee of 2026-01-02")
    assert "(a.py, b.py, d.py)" in said


def test_every_program_speaks_of_files_that_are_there(long: ModuleType) -> None:
    for name, program in long.PROGRAMS.items():
        assert all(long.hashes([pattern]) for pattern in program.files), name
        scripts = [word for word in program.command if word.startswith("tests/")]
        assert scripts and all((long.ROOT / script).exists() for script in scripts), name


def test_a_result_is_written_by_what_passes_alone(
    long: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long, "RESULTS", tmp_path)
    program = long.Long("adds", ("-c", "print('found 3')"), ("pyproject.toml",))
    broken = long.Long("fails", ("-c", "print('found 2'); exit(1)"), ("pyproject.toml",))
    monkeypatch.setattr(long, "PROGRAMS", {"sum": program})
    assert long.run("sum") == ""
    result = json.loads((tmp_path / "sum.json").read_text())
    assert (result["said"], list(result["files"])) == ("found 3", ["pyproject.toml"])
    assert {"commit", "date", "seconds"} <= result.keys() and "torch" in result["versions"]
    monkeypatch.setattr(long, "PROGRAMS", {"sum": broken})
    assert long.run("sum") == "failed with 1: found 2"
    assert json.loads((tmp_path / "sum.json").read_text()) == result


def test_committed_results_are_of_programs(long: ModuleType) -> None:
    for path in (TESTS / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert result["name"] == path.stem
        assert path.stem in long.PROGRAMS
