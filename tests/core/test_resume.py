"""A run goes on: what a resume may change, what it refuses, and what every end leaves behind."""

import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl_core.cli.app import main
from genrl_core.recipe.sections import SECTIONS
from genrl_core.registration import KINDS
from genrl_core.registry import Registry
from genrl_core.run import checkpoint, runner

PLUGIN = """
from pathlib import Path
from genrl_arithmetic import ArithmeticMaskedConfig
from genrl_core import Capability, RewardConfig, hookimpl


class FragileConfig(ArithmeticMaskedConfig):
    def build(self):
        import torch

        def measure(module, args, kwargs):
            held = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if Path("scarce").exists() and len(held[0]) > 8:
                raise torch.OutOfMemoryError("out of memory")

        policy = super().build()
        policy.network.register_forward_pre_hook(measure, with_kwargs=True)
        return policy


class OnesConfig(RewardConfig):
    media = frozenset({Capability.TEXT})

    def build(self):
        from genrl_core import Reward

        class Ones(Reward):
            def __call__(self, media, prompts):
                # No two texts alike, so that every iteration takes a step.
                return [sum(place * ord(c) for place, c in enumerate(t, 1)) for t in media.texts]

        return Ones()


@hookimpl
def register_policies(register):
    register("fragile", FragileConfig)


@hookimpl
def register_rewards(register):
    register("ones", OnesConfig)
"""
SMALL = (
    "arithmetic/mask_grpo", "policy.use=fragile", "policy.weights=null", "reward={ones: {}}",
    "train.num_prompts=2", "train.num_generations=4", "evaluate.metrics=null",
    "prompts.evaluate=null", "run.device=cpu", "train.adam_epsilon=0.01",
    "train.learning_rate=0.003",
    "--plugin", "plugin.py",
)  # fmt: skip
"""With a large epsilon a step of AdamW is proportional to the gradient: rounding stays small."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(PLUGIN)


def run(name: str, *words: str) -> int:
    return main(["run", *SMALL, f"run.name={name}", "--quiet", *words])


def resume(name: str, *words: str) -> int:
    words = ("--resume", f"runs/{name}", "--plugin", "plugin.py", "--quiet", *words)
    return main(["run", *words])


def weights(name: str, iteration: int) -> dict[str, torch.Tensor]:
    return load_file(f"runs/{name}/checkpoints/step_{iteration:06d}/policy.safetensors")


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name] - tensor).abs().max()) for name, tensor in theirs.items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events(name: str) -> list[dict[str, Any]]:
    lines = Path(f"runs/{name}/events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def status(name: str) -> str:
    return str(json.loads(Path(f"runs/{name}/run.json").read_text())["status"])


# What may change


def test_a_finished_run_goes_on_with_more_iterations() -> None:
    assert run("whole", "train.iterations=4") == 0
    assert run("short", "train.iterations=2") == 0
    assert resume("short", "train.iterations=3") == 0
    assert resume("short", "train.iterations=4") == 0
    ours = weights("short", 4)
    assert distance(ours, weights("whole", 4)) == 0
    assert distance(ours, weights("short", 3)) > 1e-4, "and it learns"
    resolved = yaml.safe_load(Path("runs/short/recipe.resolved.yaml").read_text())
    assert resolved["train"]["iterations"] == 4, "the folder's recipe is the run's"


CHANGES = {
    "train.micro_batch_size": 3, "train.rollout_batch_size": 3, "train.drift_tolerance": 0.5,
    "evaluate.every": 1, "evaluate.num_generations": 2, "save.every": 1, "save.keep": 9,
    "run.device": "auto", "run.threads": 2, "prompts.evaluate": "more.txt",
}  # fmt: skip


def test_what_cannot_change_the_mathematics_may_change_and_is_noted() -> None:
    Path("sums.txt").write_text("1+2=\n3+4=\n")
    Path("more.txt").write_text("2+2=\n")
    held_out = ("prompts.evaluate=sums.txt", "evaluate.num_generations=1")
    assert run("alone", "train.iterations=2", *held_out, "--stop-after", "1") == 75
    shutil.copytree("runs/alone", "runs/one")
    assert resume("alone") == 0
    assert resume("one", *(f"{key}={value}" for key, value in CHANGES.items())) == 0
    ours = weights("one", 2)
    assert distance(ours, weights("alone", 2)) < 1e-6
    assert distance(ours, weights("alone", 1)) > 1e-4, "and it learns"
    (noted,) = [e["data"]["changed"] for e in events("one") if "changed" in e.get("data", ())]
    assert noted.keys() == CHANGES.keys()
    assert noted["train.micro_batch_size"] == [512, 3]


def test_the_fields_that_cannot_change_the_mathematics_are_these() -> None:
    registry = Registry.discover()
    schemas = dict(SECTIONS)
    for kind in KINDS:
        schemas |= {name: registry.get(kind, name) for name in registry.names(kind)}
    found = {
        f"{name}.{key}"
        for name, schema in schemas.items()
        for key, field in schema.model_fields.items()
        if (field.json_schema_extra or {}).get("changes_results") is False  # type: ignore[union-attr]
    }
    judged = ("base_url", "api_key_env", "timeout", "retries", "outage", "concurrency")
    networks = ("clip_score", "pick_score", "hps_v2", "image_reward", "aesthetic", "geneval")
    wanted = {f"evaluate.{key}" for key in SECTIONS["evaluate"].model_fields}
    wanted |= {f"save.{key}" for key in SECTIONS["save"].model_fields}
    wanted |= {f"train.{key}" for key in ("micro_batch_size", "rollout_batch_size")}
    wanted |= {"train.drift_tolerance", "prompts.evaluate"}
    wanted |= {"run.name", "run.device", "run.threads", "run.trackers"}
    wanted |= {f"vlm_judge.{key}" for key in judged} | {f"{name}.batch_size" for name in networks}
    wanted |= {f"{name}.{key}" for name in ("showo", "amused")
               for key in ("attention", "gradient_checkpointing")}  # fmt: skip
    wanted |= {"showo.images_per_decode"}
    assert found == wanted


def test_after_an_out_of_memory_error_a_run_goes_on_with_half_the_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights are those of the run that always had enough, to rounding."""
    words = ["train.iterations=3", "save.every=1"]
    words += ["train.micro_batch_size=16", "train.rollout_batch_size=4"]
    assert run("enough", *words) == 0
    step = runner.Trainer.step

    def scarcer(trainer: runner.Trainer) -> Any:
        if trainer.iteration == 1:
            Path("scarce").touch()
        return step(trainer)

    monkeypatch.setattr(runner.Trainer, "step", scarcer)
    with pytest.raises(torch.OutOfMemoryError):
        run("scarce", *words)
    assert status("scarce") == "failed" and Path("scarce").exists()
    assert resume("scarce", "train.micro_batch_size=8") == 0
    ours = weights("scarce", 3)
    assert distance(ours, weights("enough", 3)) < 1e-6
    assert distance(ours, weights("enough", 2)) > 1e-4, "and it learns"


def test_trackers_follow_a_run_over_a_resume_and_change_nothing() -> None:
    assert run("plain", "train.iterations=2") == 0
    assert run("one", "train.iterations=2", "run.trackers=[tensorboard]", "--stop-after", "1") == 75
    assert resume("one") == 0
    assert distance(weights("one", 2), weights("plain", 2)) == 0
    found = EventAccumulator("runs/one/tensorboard").Reload()
    assert [event.step for event in found.Scalars("reward")] == [1, 2]
    assert not Path("runs/plain/tensorboard").exists()


# What is refused


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of two iterations, under a constant and a falling learning rate."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "sums.txt").write_text("1+2=\n3+4=\n")
    (folder / "plugin.py").write_text(PLUGIN)
    for name in ("constant", "cosine"):
        words = [f"train.lr_scheduler={name}", "train.iterations=2", f"run.name={name}", "--quiet"]
        words += [f"prompts.file={folder / 'sums.txt'}", "--runs", str(folder)]
        assert main(["run", *SMALL[:-1], str(folder / "plugin.py"), *words]) == 0
    return {"constant": folder / "constant", "cosine": folder / "cosine"}


REFUSED = {
    "another reward": ("constant", "reward.ones.weight=2", "weight was 1.0 and is 2"),
    "another rate": ("constant", "train.learning_rate=0.5", "learning_rate was .* and is 0.5"),
    "another seed": ("constant", "run.seed=7", "run.seed was 0 and is 7"),
    "fewer iterations": ("constant", "train.iterations=1", "2 iterations are done"),
    "a longer cosine": ("cosine", "train.iterations=4", "cosine ends at the last iteration"),
    "another schedule": ("cosine", "train.lr_scheduler=linear", "lr_scheduler was"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_resume_leaves_the_folder_as_it_was(
    done: dict[str, Path], case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, message = REFUSED[case]
    shutil.copytree(done[name], "runs/one")
    before = files(Path("runs/one"))
    assert resume("one", change) == 2
    assert files(Path("runs/one")) == before
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert len(said.splitlines()) == 1 and "policy.weights=runs/one" in said


def test_other_prompts_under_the_same_name_are_noticed(
    done: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = done["constant"].parent / "sums.txt"
    before, text = files(done["constant"]), prompts.read_text()
    try:
        prompts.write_text("5+5=\n6+1=\n")
        words = ["train.iterations=3", "--plugin", "plugin.py", "--quiet"]
        code = main(["run", "--resume", str(done["constant"]), *words])
    finally:
        prompts.write_text(text)
    assert code == 2 and "prompts.file was" in capsys.readouterr().err
    assert files(done["constant"]) == before


def test_a_run_without_a_checkpoint_is_refused_and_left_alone(
    done: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done["constant"], "runs/one")
    shutil.rmtree("runs/one/checkpoints")
    before = files(Path("runs/one"))
    assert resume("one") == 2
    assert files(Path("runs/one")) == before and "there is no checkpoint" in capsys.readouterr().err


# What every end leaves behind


def test_a_run_saves_by_time_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the run is put forward by six minutes at every iteration: two make a save."""
    minutes, clock, step = [0], time.monotonic, runner.Trainer.step

    def later(trainer: runner.Trainer) -> Any:
        minutes[0] += 6
        return step(trainer)

    monkeypatch.setattr(runner.Trainer, "step", later)
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock() + 60 * minutes[0])
    assert run("one", "train.iterations=7") == 0
    saved = [event["iteration"] for event in events("one") if event["kind"] == "save"]
    assert saved == [2, 4, 6, 7]
    assert run("never", "train.iterations=5", "save.minutes=0") == 0
    assert [e["iteration"] for e in events("never") if e["kind"] == "save"] == [5]


def signalled(monkeypatch: pytest.MonkeyPatch, after: int, *kinds: int) -> None:
    """Signals that reach the process while it learns, after so many iterations."""
    step = runner.Trainer.step

    def struck(trainer: runner.Trainer) -> Any:
        for kind in kinds if trainer.iteration == after else ():
            os.kill(os.getpid(), kind)
        return step(trainer)

    monkeypatch.setattr(runner.Trainer, "step", struck)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_stops_like_a_termination_unless_it_is_ignored(
    monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    """Under nohup the process ignores it, and so must the run."""
    signalled(monkeypatch, 1, signal.SIGHUP)
    handler = signal.SIG_IGN if ignored else lambda *_: None
    before = signal.signal(signal.SIGHUP, handler)
    try:
        code = run("one", "train.iterations=4")
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (code, status("one")) == ((0, "done") if ignored else (75, "stopped"))
    newest, _ = checkpoint.latest(Path("runs/one"))
    assert newest is not None and newest.path.name == ("step_000004" if ignored else "step_000002")


def test_a_closed_terminal_leaves_a_checkpoint() -> None:
    """Its hangup comes with a screen that is gone, which must not end the run first."""
    command = [sys.executable, "-m", "genrl_core", "run", *SMALL, "run.name=one"]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [*command, "train.iterations=100000"])
    try:
        metrics, deadline = Path("runs/one/metrics.jsonl"), time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    assert (code, status("one")) == (75, "stopped")
    assert checkpoint.latest(Path("runs/one"))[0] is not None


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_signal_says_what_it_leaves(
    monkeypatch: pytest.MonkeyPatch, saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stopped` means that there is a checkpoint to go on from; without one the run failed."""
    step = runner.Trainer.step
    signalled(monkeypatch, 2, signal.SIGINT, signal.SIGINT)
    code = run("one", "train.iterations=4", *(["save.every=1"] if saved else []))
    found = json.loads(Path("runs/one/run.json").read_text())
    newest, _ = checkpoint.latest(Path("runs/one"))
    assert (newest is not None) == saved
    assert (code, found["status"]) == ((75, "stopped") if saved else (1, "failed"))
    if saved:
        assert "step_000002" in found["reason"] and "--resume" in found["reason"]
        monkeypatch.setattr(runner.Trainer, "step", step)
        assert found["reason"].endswith(f"genrl run --resume {Path('runs/one').resolve()}")
        assert resume("one") == 0
    else:
        assert "before there was a checkpoint" in capsys.readouterr().err


def test_a_save_that_has_begun_survives_the_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint.save

    def interrupted(*args: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*args)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    try:
        code = run("one", "train.iterations=9", "save.every=2")
    except KeyboardInterrupt:
        code = -1
    assert (code, status("one")) == (75, "stopped")
    assert [path.name for path in Path("runs/one/checkpoints").glob("step_*")] == ["step_000002"]


def test_a_dry_run_for_programs_is_json_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *SMALL, "--dry-run", "--json"]) == 0
    text = capfd.readouterr().out
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    assert found.get("recipe") == "arithmetic/mask_grpo", text
    assert found["trained"] > 0 and found["metrics"]["iteration"] == 1
    assert main(["run", *SMALL, "--dry-run"]) == 0
    assert "arithmetic/mask_grpo: it runs" in capfd.readouterr().out
