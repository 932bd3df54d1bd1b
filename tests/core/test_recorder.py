"""The run folder: complete, strict, repaired on resume, owned by one process; no reason to stop."""

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run import console as progress
from genrl_core.run import files, pictures
from genrl_core.run import folder as recorder
from genrl_core.run.console import short, summary_lines
from genrl_core.run.environment import VARIABLES, command_line
from genrl_core.run.files import dumps, json_safe, one_line, read_jsonl
from genrl_core.run.folder import RunFolder
from genrl_core.run.glossary import GLOSSARY
from genrl_core.run.pictures import ImageColumn, image_grid

ROOT = Path(recorder.__file__).parents[2]
PROMPTS = [Prompt(f"p{i}", f"a handwritten {i}") for i in range(3)]
METRICS = {"reward": 0.5, "loss": -0.01, "drift": 1.2e-7, "grad_norm": 1.5, "seconds": 1.26}


def create(runs: Path, name: str | None = None, **kwargs) -> RunFolder:
    kwargs = {"total": 12, "quiet": True, "info": {"seed": 3}} | kwargs
    return RunFolder.create(
        runs, name, "digits/mask", "extends: x  # as given\n", "a: 1\n", **kwargs
    )  # fmt: skip


def read(path: Path) -> list[dict]:
    """Strictly: NaN and Infinity are no JSON."""

    def no(constant):
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=no) for line in path.read_text().splitlines()]


def images(samples: int = 2, size: int = 8) -> tuple[Media, list[Prompt]]:
    prompts = [prompt for prompt in PROMPTS for _ in range(samples)]
    pixels = torch.arange(len(prompts) * 3 * size * size) * 7 % 251
    return Media("image", pixels.reshape(-1, 3, size, size).to(torch.uint8)), prompts


# Creating.


def test_a_run_folder_holds_what_the_design_says(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["genrl", "run", "digits", "reward.api_key=abc", "--token", "t"]
    )
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with create(tmp_path, "mine", info={"seed": 3, "plugins": {"masked": "0.1"}}) as run:
        assert run.folder == tmp_path / "mine"
        assert json.loads((run.folder / "run.json").read_text())["status"] == "running"
        run.iteration({"iteration": 1.0} | METRICS)
        run.event("save", "step_000001", seconds=0.5)
        results = {"before": {"judge": 0.5, "odd": math.inf}, "after": {"judge": 0.9}}
        run.finish("done", None, results)
    folder = tmp_path / "mine"
    assert (folder / "recipe.yaml").read_text() == "extends: x  # as given\n"
    assert (folder / "recipe.resolved.yaml").read_text() == "a: 1\n"
    state = json.loads((folder / "run.json").read_text())
    assert (state["status"], state["reason"], state["iteration"]) == ("done", None, 1)
    assert (state["seed"], state["plugins"], state["iterations"]) == (3, {"masked": "0.1"}, 12)
    assert state["results"] == {"before": {"judge": 0.5, "odd": None}, "after": {"judge": 0.9}}
    assert {"genrl-core", "torch", "numpy", "safetensors"} <= state["versions"].keys()
    assert state["commit"] is None or re.match(r"[0-9a-f]{7,40}", state["commit"])
    assert state["command"][3:] == ["reward.api_key=***", "--token", "***"]
    machine = json.loads((folder / "environment.json").read_text())
    assert {"python", "os", "cpu", "cores", "torch"} <= machine.keys()
    assert machine["variables"]["OMP_NUM_THREADS"] == "1"
    assert machine["variables"].keys() <= set(VARIABLES)
    assert read(folder / "metrics.jsonl") == [{"iteration": 1} | METRICS]
    event = read(folder / "events.jsonl")[0]
    assert (event["kind"], event["message"], event["iteration"]) == ("save", "step_000001", 1)
    assert event["data"] == {"seconds": 0.5}
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"verysecret" not in written
    assert b"abc" not in written


def test_command_lines_lose_only_their_secrets():
    kept = [
        "genrl", "run", "policy.num_tokens=3", "policy.max_text_tokens=9",
        "policy.image_tokenizer=showlab/magvitv2", "monkey=1", "--seed", "4", "token",
    ]  # fmt: skip
    assert command_line(kept) == kept
    assert command_line(["reward.judge.token=x", "a.tokens=y"]) == [
        "reward.judge.token=***", "a.tokens=***",
    ]  # fmt: skip
    assert command_line(["--api-key=x", "--password", "y", "z"]) == [
        "--api-key=***", "--password", "***", "z",
    ]  # fmt: skip


def test_a_wrong_recipe_leaves_no_folder_behind(tmp_path, capsys):
    """Else the corrected one would be refused: the name is taken, with nothing to resume."""

    def fail(run: RunFolder, *records: dict[str, float]) -> None:
        with run:
            run.event("note", "loading")
            for record in records:
                run.iteration(record)
            raise RecipeError("no such weights")

    with pytest.raises(RecipeError):
        fail(create(tmp_path, "mine", quiet=False))
    assert list(tmp_path.iterdir()) == []
    assert f"nothing was trained: {tmp_path / 'mine'} is taken back" in capsys.readouterr().out
    with pytest.raises(RecipeError):
        fail(create(tmp_path, "mine"), {"iteration": 1.0} | METRICS)
    assert json.loads((tmp_path / "mine/run.json").read_text())["status"] == "failed"
    with pytest.raises(RecipeError):
        fail(RunFolder.resume(tmp_path / "mine", 0, {}, 12, quiet=True))
    assert (tmp_path / "mine/run.json").exists()


def test_an_existing_folder_is_refused_with_the_way_out(tmp_path):
    create(tmp_path, "mine").close()
    before = (tmp_path / "mine" / "run.json").read_bytes()
    with pytest.raises(RecipeError, match=r"exists: choose another run\.name=.*--resume"):
        create(tmp_path, "mine")
    assert (tmp_path / "mine" / "run.json").read_bytes() == before


def test_without_a_name_the_first_free_number_is_taken(tmp_path):
    runs = [create(tmp_path) for _ in range(3)]
    assert [run.folder.name for run in runs] == ["digits-mask", "digits-mask-2", "digits-mask-3"]
    for run in runs:
        run.close()


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/b", "..", ".", "", ".hidden", "-rf", "a\n", "a b", "ü", "a" * 129,
     "a\\b", "a\x00b", "C:x"],
)  # fmt: skip
def test_path_tricks_are_refused(tmp_path, name):
    runs = tmp_path / "runs"
    with pytest.raises(RecipeError, match="no name for a run folder"):
        create(runs, name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["runs"]


def test_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "out").symlink_to(outside)
    (runs / "nowhere").symlink_to(tmp_path / "absent")
    (runs / "digits-mask").symlink_to(outside)
    for name in ("out", "nowhere"):
        with pytest.raises(RecipeError, match="exists"):
            create(runs, name)
    with create(runs) as run:
        assert run.folder.name == "digits-mask-2"
        run.finish("done")
    victim = outside / "victim"
    victim.write_text("precious\n")
    metrics = run.folder / "metrics.jsonl"
    metrics.unlink()
    metrics.symlink_to(victim)
    with pytest.raises(RecipeError, match="is a link"):
        RunFolder.resume(run.folder, 0, {}, 12, quiet=True)
    assert victim.read_text() == "precious\n"
    assert list(outside.iterdir()) == [victim]


def test_a_runs_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(GenRLError, match="cannot be written"):
        create(tmp_path / "runs")


# The lock.


def test_one_writer_at_a_time(tmp_path):
    run = create(tmp_path, "mine")
    with pytest.raises(RecipeError, match=rf"being written by process {os.getpid()} on"):
        RunFolder.resume(run.folder, 0, {}, 12, quiet=True)
    run.finish("stopped", "for the test")
    run.close()
    run.close()
    again = RunFolder.resume(run.folder, 0, {}, 12, quiet=True)
    assert [event["kind"] for event in read(run.folder / "events.jsonl")] == ["resume"]
    again.close()


HOLDER = """
    import sys, time
    from pathlib import Path
    from genrl_core.run.lock import RunLock
    lock = RunLock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_taken_over_with_a_warning(tmp_path):
    create(tmp_path, "mine").close()
    folder = tmp_path / "mine"
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout.readline() == b"held\n"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RecipeError, match=rf"process {holder.pid} on"):
        RunFolder.resume(folder, 0, {}, 12, quiet=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with RunFolder.resume(folder, 0, {}, 12, quiet=True) as run:
        run.finish("done")
    warnings = [e["message"] for e in read(folder / "events.jsonl") if e["kind"] == "warning"]
    assert warnings == [f"took over the lock of process {holder.pid}, which is dead"]


def test_the_lock_of_another_machine_is_respected(tmp_path):
    create(tmp_path, "mine").close()
    lock = tmp_path / "mine" / ".lock.json"
    lock.write_text(json.dumps({"pid": 1, "host": "node-17"}))
    with pytest.raises(RecipeError, match=rf"process 1 on node-17 .* delete {lock}"):
        RunFolder.resume(tmp_path / "mine", 0, {}, 12, quiet=True)
    lock.write_text("garbage")
    RunFolder.resume(tmp_path / "mine", 0, {}, 12, quiet=True).close()
    assert not lock.exists()


@pytest.mark.parametrize("name", [".lock", ".lock.json"])
def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path, name):
    create(tmp_path, "mine").close()
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    link = tmp_path / "mine" / name
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with suppress(GenRLError):
        RunFolder.resume(tmp_path / "mine", 0, {}, 12, quiet=True).close()
    assert victim.read_text() == "precious\n"


# Resuming.


def test_resuming_repairs_the_logs(tmp_path):
    with create(tmp_path, "mine") as run:
        for iteration in range(1, 8):
            run.iteration({"iteration": iteration} | METRICS)
            run.event("save", f"at {iteration}")
        run.finish("stopped", "SIGTERM")
    folder = tmp_path / "mine"
    for name in ("metrics.jsonl", "events.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"iteration": 8, "rew')
    with (folder / "metrics.jsonl").open("rb+") as file:
        file.write(b"\xff\x00")  # the first line is damaged
    with RunFolder.resume(folder, 5, {"seed": 3}, 12, quiet=True) as run:
        lines = read(folder / "metrics.jsonl")
        assert [line["iteration"] for line in lines] == [2, 3, 4, 5]
        run.iteration({"iteration": 6} | METRICS)
        run.finish("done")
    assert [line["iteration"] for line in read(folder / "metrics.jsonl")] == [2, 3, 4, 5, 6]
    events = read(folder / "events.jsonl")
    assert [e["message"] for e in events if e["kind"] == "save"] == [f"at {i}" for i in range(1, 6)]
    assert events[-1]["data"] == {"later": 4, "broken": 3}
    state = json.loads((folder / "run.json").read_text())
    assert (state["status"], state["reason"], state["seed"]) == ("done", None, 3)
    assert [resumed["iteration"] for resumed in state["resumed"]] == [5]
    assert state["started"] <= state["finished"]


def test_resuming_survives_a_broken_run_json(tmp_path):
    create(tmp_path, "mine").close()
    for broken in ("", "[1]", '{"status": "run'):
        (tmp_path / "mine" / "run.json").write_text(broken)
        with RunFolder.resume(tmp_path / "mine", 0, {}, 12, quiet=True) as run:
            run.finish("done")
        assert json.loads((tmp_path / "mine" / "run.json").read_text())["status"] == "done"
    events = read(tmp_path / "mine" / "events.jsonl")
    assert sum("run.json was unreadable" in event["message"] for event in events) == 3


def test_only_run_folders_are_resumed(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RecipeError, match="is no run folder"):
            RunFolder.resume(folder, 0, {}, 12, quiet=True)
    assert list(tmp_path.iterdir()) == []


# Metrics and events.


def test_metrics_are_strict_json(tmp_path):
    odd = {"loss": math.nan, "grad_norm": math.inf, "reward": -math.inf, "kl": None}
    with create(tmp_path) as run:
        run.iteration({"iteration": 1, "samples": 8} | odd)
        run.iteration({"iteration": torch.tensor(2), "loss": torch.tensor(0.5)})
        run.event("odd", "numbers", worst=math.nan, shape=(1, 2), path=Path("x"))
        run.finish("failed", "loss is not finite")
    first, second = read(run.folder / "metrics.jsonl")
    assert first == {"iteration": 1, "samples": 8} | dict.fromkeys(odd) | {
        "non_finite": ["loss", "grad_norm", "reward"]
    }
    assert second == {"iteration": 2, "loss": 0.5}
    data = {"worst": None, "shape": [1, 2], "path": "x"}
    assert read(run.folder / "events.jsonl")[0]["data"] == data


def test_every_float_comes_back_exactly():
    values = [0.1, 1e-300, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3]
    assert [v.hex() for v in json.loads(dumps(values))] == [v.hex() for v in values]
    assert json_safe({1: {float("nan")}}) == {"1": [None]}
    assert json_safe(True) is True


@pytest.fixture
def full_disk(monkeypatch):
    """Writes through ``JsonlWriter`` fail half-way while the returned list is not empty."""
    real, broken = io.FileIO.write, []

    class File(io.FileIO):
        def write(self, data):
            if not broken:
                return real(self, data)
            if broken[0] == "raise":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(
        files.JsonlWriter, "__init__", lambda s, p: setattr(s, "_file", File(p, "ab"))
    )
    return broken


@pytest.mark.parametrize("how", ["raise", "half"])
def test_a_full_disk_is_one_warning_and_no_half_line(tmp_path, full_disk, capsys, how):
    with create(tmp_path, quiet=False) as run:
        run.iteration({"iteration": 1} | METRICS)
        full_disk.append(how)
        for iteration in (2, 3, 4):
            run.iteration({"iteration": iteration} | METRICS)
            run.event("save", "lost too")
        full_disk.clear()
        run.iteration({"iteration": 5} | METRICS)
        run.finish("done")
    assert [line["iteration"] for line in read(run.folder / "metrics.jsonl")] == [1, 5]
    shown = capsys.readouterr().out
    assert shown.count("warning: metrics cannot be written") == 1
    assert shown.count("warning: events cannot be written") == 1
    assert "No space left on device" in shown
    assert shown.count("\niteration ") == 4


def test_a_folder_that_vanishes_does_not_stop_the_run(tmp_path):
    with create(tmp_path) as run:
        for path in sorted(run.folder.rglob("*"), reverse=True):
            path.unlink()
        run.folder.rmdir()
        run.iteration({"iteration": 1} | METRICS)
        run.plots()
        run.samples(0, *images())
        run.finish("done")


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (GenRLError("drift is too large"), "failed", "drift is too large"),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_an_exception_is_noted_as_the_end(tmp_path, error, status, reason):
    run = create(tmp_path)

    def fail():
        with run:
            run.iteration({"iteration": 4} | METRICS)
            raise error

    with pytest.raises(type(error)):
        fail()
    state = json.loads((run.folder / "run.json").read_text())
    assert (state["status"], state["reason"], state["iteration"]) == (status, reason, 4)


def test_run_json_is_replaced_in_one_step(tmp_path, monkeypatch):
    run = create(tmp_path)
    before = (run.folder / "run.json").read_bytes()
    with (run.folder / "run.json").open("rb") as reader:
        run.finish("stopped")
        assert reader.read() == before, "who reads while we write sees the old file, whole"
    before = (run.folder / "run.json").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    run.finish("done")
    monkeypatch.undo()
    assert (run.folder / "run.json").read_bytes() == before
    assert not list(run.folder.glob(".tmp-*"))
    run.close()


# What is shown.


RESULTS = {
    "before": {"judge": 0.487, "frechet": 18.31},
    "best_base": {"title": "base at temperature .6", "judge": 0.7014, "frechet": 25.9},
    "after": {"judge": 0.953, "diversity": 0.8},
    "note": "not a row",
}


def test_plain_progress(tmp_path, capsys):
    with create(tmp_path, quiet=False) as run:
        run.iteration({"iteration": 11.0} | METRICS)
        run.iteration({"iteration": 12.0} | METRICS | {"evaluate/judge": 0.9, "drift": None})
        run.event("save", "not shown")
        run.event("note", "shown")
        run.event("warning", "careful\x1b[31m")
        run.finish("done", None, RESULTS)
    assert capsys.readouterr().out.splitlines() == [
        "iteration 11/12  reward .500  loss -.010  grad_norm 1.50  drift 1.2e-7  1.3 s",
        "iteration 12/12  reward .500  loss -.010  grad_norm 1.50  drift -  judge .900  1.3 s",
        "shown",
        "warning: careful[31m",
        "                        judge  frechet  diversity",
        "base                     .487    18.31          -",
        "base at temperature .6   .701    25.90          -",
        "tuned                    .953        -       .800",
        "done after iteration 12",
        f"run folder: {run.folder}",
    ]


def test_json_progress(tmp_path, capsys):
    with create(tmp_path, json_lines=True) as run:
        run.iteration({"iteration": 1, "loss": math.nan})
        run.event("save", "step", path="x")
        run.finish("done", None, RESULTS)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"kind": "iteration", "iteration": 1, "loss": None, "non_finite": ["loss"]}
    assert lines[1] == {"kind": "save", "message": "step", "path": "x"}
    assert (lines[2]["kind"], lines[2]["status"]) == ("finish", "done")
    assert lines[2]["results"] == RESULTS
    assert lines[2]["folder"] == str(run.folder)


def test_quiet_is_quiet(tmp_path, capsys):
    with create(tmp_path, quiet=True) as run:
        run.iteration({"iteration": 1} | METRICS)
        run.event("warning", "careful")
        run.finish("done", None, RESULTS)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_the_same_lines(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    with create(tmp_path, quiet=False) as run:
        for iteration in range(1, 13):
            run.iteration({"iteration": iteration} | METRICS)
        run.event("warning", "[bold]not markup[/bold]")
        run.finish("done", None, RESULTS)
    shown = terminal.getvalue()
    assert "━" in shown
    assert "12/12" in shown
    line = "iteration 12/12  reward .500  loss -.010  grad_norm 1.50  drift 1.2e-7  1.3 s"
    assert line in shown
    assert "warning: [bold]not markup[/bold]" in shown
    assert shown.rstrip().endswith(f"run folder: {run.folder}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, ".500"), (-0.5, "-.500"), (0.0, "0"), (1, "1"), (1.0, "1.00"), (12.345, "12.35"),
        (99.999, "100.00"), (1234.5, "1234"), (123456.0, "1.2e5"), (1.2e-7, "1.2e-7"),
        (0.9999, "1.000"), (10.04, "10.04"), (None, "-"), (math.nan, "-"), (-3.0e-5, "-3.0e-5"),
    ],
)  # fmt: skip
def test_short_numbers(value, text):
    assert short(value) == text


def test_a_wide_table_stands_upright():
    names = [f"geneval/category_{i}" for i in range(8)]
    rows = {key: dict.fromkeys(names, 0.25) | {"more": 1.5} for key in ("before", "after")}
    lines = summary_lines(rows)
    assert lines[0].split() == ["base", "tuned"]
    assert [line.split() for line in lines[1:]] == [
        *([name, ".250", ".250"] for name in names), ["more", "1.50", "1.50"],
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


def test_no_results_no_table():
    assert summary_lines({}) == []
    assert summary_lines({"before": {}}) == []


def test_control_characters_are_stripped():
    assert one_line("a\x1b]0;evil\x07 b\nc\u202ed\u200b\x9be\ud800") == "a]0;evil b cde"
    assert one_line("naïve Δ 三 e\u0301") == "naïve Δ 三 e\u0301"


def test_every_shown_metric_is_explained():
    assert set(progress.SHOWN) <= GLOSSARY.keys()
    wanted = {name for panels in pictures._PANELS.values() for names, _ in panels for name in names}
    assert wanted - {"reward/"} <= GLOSSARY.keys()


# Pictures.


def test_samples(tmp_path):
    media, prompts = images(samples=2)
    prompts[0] = Prompt("p0", "evil \x1b[2J" + "long " * 80)
    with create(tmp_path) as run:
        run.samples(20, media, prompts)
        run.finish("done")
    folder = run.folder / "samples" / "iter_000020"
    index = read(folder / "index.jsonl")
    assert [line["index"] for line in index] == list(range(6))
    assert index[0]["prompt"].startswith("evil [2Jlong")
    assert index[5] == {"index": 5, "prompt_id": "p2", "prompt": "a handwritten 2"}
    with Image.open(folder / "grid.png") as image:
        assert image.mode == "RGB"
        assert image.width < 1000, "a long prompt is wrapped and cut"
    assert read(run.folder / "events.jsonl") == []


def test_texts_have_an_index_and_no_picture(tmp_path):
    with create(tmp_path) as run:
        media = Media("text", texts=("one\x07", "two", "three"))
        run.samples(0, media, PROMPTS)
        run.before_after([ImageColumn("start", media, PROMPTS, {})], "t")
        run.finish("done")
    folder = run.folder / "samples" / "iter_000000"
    assert [line["text"] for line in read(folder / "index.jsonl")] == ["one", "two", "three"]
    assert sorted(path.name for path in folder.iterdir()) == ["index.jsonl"]
    assert not (run.folder / "before_after.png").exists()
    assert read(run.folder / "events.jsonl") == []


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def enlarged(sample: torch.Tensor, factor: int) -> np.ndarray:
    return sample.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)


def places(page: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where ``tile`` stands in the page, pixel for pixel: row and column of the first pixel."""
    high, wide, _ = tile.shape
    corner = (page[: len(page) - high + 1, : page.shape[1] - wide + 1] == tile[0, 0]).all(-1)
    found = zip(*corner.nonzero(), strict=True)
    return [(y, x) for y, x in found if (page[y : y + high, x : x + wide] == tile).all()]


def test_before_after_shows_every_pixel_enlarged(tmp_path):
    media, prompts = images(samples=2)
    metrics = {"accuracy": 0.5, "Fréchet distance": 12.0, "lost": None}
    columns = [ImageColumn(t, media, prompts, metrics) for t in ("start", "best base", "end")]
    with create(tmp_path) as run:
        run.before_after(columns, "title")
        run.finish("done")
    with Image.open(run.folder / "before_after.png") as image:
        page = pixels_of(image)
    found = [places(page, enlarged(sample, 6)) for sample in media.pixels]
    assert [len(each) for each in found] == [3] * 6, "each of them once in every column"
    tops = [{y for y, _ in each} for each in found]
    assert all(len(rows) == 1 for rows in tops)
    assert tops[0] == tops[1] != tops[2] == tops[3] != tops[4] == tops[5], "a row per prompt"
    assert tops == sorted(tops, key=min)
    for left, right in zip(found[::2], found[1::2], strict=True):
        assert [x for _, x in left] == [x for _, x in found[0]], "one below the other"
        assert all(x + 48 < other < x + 60 for (_, x), (_, other) in zip(left, right, strict=True))


LONG = "a photo of a very large red apple on a wooden table in the style of nobody in particular"
MANY = {f"geneval/category_{i}": 0.1 * i for i in range(9)}


@pytest.mark.parametrize(
    ("columns", "text", "metrics"),
    [
        (1, "short", {}), (2, LONG, {"judge": 0.5}), (3, LONG, MANY | {"m" * 60: 1.2e-7}),
        (2, "W" * 300, MANY), (1, "一只红色的大苹果放在木桌上" * 9, {"judge": None}),
        (3, "$x_1 and \\alpha$", {"$y$": 1.0}),
    ],
)  # fmt: skip
def test_nothing_is_cut_off_or_overlaps(columns, text, metrics):
    media, prompts = images(samples=1)
    prompts = [Prompt(prompt.id, f"{text} {prompt.id}") for prompt in prompts]
    titles = ["base", LONG, "tuned"][:columns]
    grid = [ImageColumn(title, media, prompts, metrics) for title in titles]
    for heading in (text, "heading"):
        page = pixels_of(image_grid(grid, heading))
        ink = (page != 255).any(-1)
        for border in (ink[:12], ink[-12:], ink[:, :12], ink[:, -12:]):
            assert not border.any(), "all that is written stands inside the page"
    found = [places(page, enlarged(sample, 6)) for sample in media.pixels]
    assert [len(each) for each in found] == [columns] * 3
    top = found[0][0][0]
    first = int(ink.any(1).argmax())
    below = first + int(ink[first:].any(1).argmin())
    assert below < top
    for number, (_, x) in enumerate(found[0]):
        assert ink[below:top, x : x + 100].any(), "its title stands over every column"
        assert not ink[below:, x - 8 : x - 3].any(), f"nothing reaches into column {number}"
    for y in {y for each in found for y, _ in each}:
        assert ink[y : y + 48, : found[0][0][1] - 8].any(), "its prompt stands beside every row"


def grey(count: int, samples: int = 1) -> ImageColumn:
    """A column whose prompts have one shade each, by which they are known in the picture."""
    prompts = [Prompt(f"p{i}", str(i)) for i in range(count) for _ in range(samples)]
    shades = torch.tensor([int(prompt.text) for prompt in prompts], dtype=torch.uint8)
    return ImageColumn(
        "x", Media("image", shades[:, None, None, None].expand(-1, 3, 8, 8)), prompts, {}
    )


def shown(column: ImageColumn) -> dict[int, int]:
    """Prompt -> samples in the grid of a column, from top to bottom."""
    page = pixels_of(image_grid([column], "t"))
    counts: dict[int, int] = {}
    x = places(page, enlarged(column.media.pixels[0], 6))[0][1]
    for y in np.flatnonzero(page[:, x, 0] == page[:, x, 1]):
        run = page[y, x:, 0]
        if (page[y : y + 48, x : x + 48] == page[y, x]).all() and page[y, x, 0] != 255:
            shade = int(page[y, x, 0])
            counts.setdefault(shade, int((run == shade).sum() // 48))
    return counts


def test_grids_spread_over_many_prompts_and_cut_many_samples():
    found = shown(grey(40, 9))
    assert list(found.values()) == [6] * 10
    assert [shade // 4 for shade in found] == list(range(10)), "one of each tenth, in order"


@pytest.mark.parametrize(("count", "period"), [(120, 6), (120, 4), (40, 5), (20, 2)])
def test_categories_that_take_turns_are_all_shown(count, period):
    """As in the prompts of GenEval: evenly spread, 10 of 120 were 10 of one category."""
    found = list(shown(grey(count)))
    assert len(set(found)) == 10 and found == sorted(found)
    assert {place % period for place in found} == set(range(period))


@pytest.mark.parametrize("size", [(300, 200), (48, 48), (17, 90), (1, 1)])
def test_samples_keep_their_own_size_where_asked(size):
    pixels = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    column = ImageColumn("x", Media("image", pixels), [PROMPTS[0]] * 4, {})
    page = pixels_of(image_grid([column], "t", largest=None))
    factor = max(1, math.ceil(48 / size[0]))
    assert all(len(places(page, enlarged(sample, factor))) == 1 for sample in pixels)


@pytest.mark.parametrize("shape", [(3, 3, 512, 512), (3, 16, 3, 64, 64), (3, 3, 20, 30)])
def test_large_pictures_and_videos_fit(shape):
    media = Media("video" if len(shape) == 5 else "image", torch.zeros(shape, dtype=torch.uint8))
    page = pixels_of(image_grid([ImageColumn("x", media, PROMPTS, {})], "t"))
    high, wide = {512: (160, 160), 64: (64, 256), 30: (60, 90)}[shape[-1]]
    assert len(places(page, np.zeros((high, wide, 3), dtype=np.uint8))) == 3
    assert page.shape[1] < 700
    assert page.shape[0] < 800


def test_plots_hold_what_was_logged(tmp_path):
    with create(tmp_path) as run:
        run.plots()
        assert not (run.folder / "plots").exists()
        for iteration in range(1, 6):
            odd = {"drift": 0.0, "loss": math.nan, "ratio_mean": 1.0, "clip_fraction": 0.0}
            more = {"evaluate/judge": 0.5} if iteration in (1, 5) else {}
            run.iteration({"iteration": iteration, "reward_std": 0.1} | METRICS | odd | more)
        run.plots()
        run.finish("done")
    drawn = {path.name for path in (run.folder / "plots").iterdir()}
    assert drawn == {
        f"{n}.png" for n in ["reward", "drift", "ratio", "grad_norm", "evaluation", "seconds"]
    }
    for path in (run.folder / "plots").iterdir():
        with Image.open(path) as image:
            assert image.width == 800
            assert image.convert("L").getextrema() == (0, 255)
    assert read(run.folder / "events.jsonl") == []


def test_a_picture_that_fails_is_a_warning(tmp_path, monkeypatch):
    def broken(*args):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr(recorder, "image_grid", broken)
    monkeypatch.setattr(recorder, "plots", broken)
    media, prompts = images()
    with create(tmp_path) as run:
        run.samples(0, media, prompts)
        run.before_after([ImageColumn("x", media, prompts, {})], "t")
        run.plots()
        run.samples(1, media, prompts[:-1])
        run.finish("done")
    events = read(run.folder / "events.jsonl")
    assert [event["kind"] for event in events] == ["warning"] * 4
    assert all("could not be drawn" in event["message"] for event in events)
    assert "no room for a picture" in events[0]["message"]


def test_lines_are_read_back(tmp_path):
    assert read_jsonl(tmp_path / "absent") == ([], 0)
