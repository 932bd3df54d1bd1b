"""Trackers: what they are given, where it lies, and that none of them ends a run."""

import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genrl_core.__main__ import main
from genrl_core.errors import RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run import trackers
from genrl_core.run.folder import RunFolder
from genrl_core.run.trackers import Trackers

CONFIG = {"train": {"num_prompts": 2, "betas": [0.9, 0.99]}, "policy": None, "long": "x" * 9000}
PROMPTS = [Prompt(f"p{i}", f"a handwritten {i}") for i in range(3)]


def create(runs: Path, **kwargs: Any) -> RunFolder:
    return RunFolder.create(runs, "mine", "x", "", "", {}, 12, **{"quiet": True} | kwargs)


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_tensorboard_has_metrics_settings_grids_and_results(tmp_path: Path) -> None:
    pixels = torch.arange(3 * 3 * 64).reshape(3, 3, 8, 8).to(torch.uint8)
    with create(tmp_path) as run:
        run.track(["tensorboard"], CONFIG)
        for number in (1, 2):
            odd = {"loss": math.nan, "kl": None, "reward/<a>[b]": 2.0}
            run.iteration({"iteration": number, "reward": 0.5 * number} | odd)
        run.samples(2, Media("image", pixels), PROMPTS)
        run.finish("done", None, {"after": {"title": "tuned", "judge": 0.9}, "seconds": 3.0})
    found = EventAccumulator(str(tmp_path / "mine" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward")] == [(1, 0.5), (2, 1.0)]
    assert math.isnan(found.Scalars("loss")[0].value)
    assert found.Scalars("reward/_a__b_")[0].value == 2.0
    assert "kl" not in found.Tags()["scalars"]
    assert found.Scalars("after/judge")[0].step == 2
    (grid,) = found.Images("samples")
    assert (grid.step, grid.width > 200) == (2, True)
    (settings,) = (tmp_path / "mine" / "tensorboard").glob("*/hparams.yml")
    assert "train.num_prompts: 2" in settings.read_text()
    assert events(tmp_path / "mine") == []


class Fake:
    """A tracker that fails at one of its methods."""

    def __init__(self, fails: str = ""):
        self.fails, self.calls = fails, list[str]()

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            print("* a word on standard output")
            self.calls.append(method)
            if method == self.fails:
                raise ConnectionError("no network")

        return call


@pytest.mark.parametrize("fails", ["store_init_configuration", "log", "log_images", "finish"])
def test_one_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    fakes = {"tensorboard": Fake(fails), "wandb": Fake()}
    monkeypatch.setattr(trackers, "missing", lambda names: [])
    monkeypatch.setattr(trackers, "_started", lambda name, *_: fakes[name])
    pixels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with create(tmp_path, json_lines=True) as run:
        run.track(list(fakes), CONFIG)
        for number in (1, 2, 3):
            run.iteration({"iteration": number})
            run.samples(number, Media("image", pixels), PROMPTS)
        run.finish("done")
    assert fakes["tensorboard"].calls.count(fails) == 1
    assert fakes["wandb"].calls == [
        "store_init_configuration", *["log", "log_images"] * 3, "log", "finish",
    ]  # fmt: skip
    (warning,) = events(tmp_path / "mine")
    assert warning["kind"] == "warning"
    assert warning["message"] == (
        "the tracker tensorboard failed (ConnectionError: no network); the run goes on without it"
    )
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["status"] == "done"
    for line in capsys.readouterr().out.splitlines():
        json.loads(line)


def test_one_that_cannot_start_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("log in first")

    monkeypatch.setattr(trackers, "_started", refuse)
    told: list[str] = []
    found = Trackers(["tensorboard"], tmp_path, "x", {}, told.append)
    found.log({"a": 1.0}, 1)
    found.close()
    assert told == [
        "the tracker tensorboard failed (ValueError: log in first); the run goes on without it"
    ]


def stub(monkeypatch: pytest.MonkeyPatch, name: str) -> MagicMock:
    """A module in place of a tracker's package."""
    module = MagicMock(__spec__=MagicMock())
    monkeypatch.setitem(sys.modules, name, module)
    return module


IMAGE = np.zeros((4, 5, 3), dtype=np.uint8)


def test_wandb_stays_offline_in_the_run_folder_and_sees_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = stub(monkeypatch, "wandb")
    found = Trackers(["wandb"], tmp_path, "mine-1", CONFIG, pytest.fail)
    found.log({"reward": 1.0, "problem": "text"}, 3)
    found.image("samples", IMAGE, 3)
    found.close()
    options = wandb.init.call_args.kwargs
    assert (options["mode"], options["dir"], options["id"]) == ("offline", tmp_path, "mine-1")
    assert wandb.Settings.call_args.kwargs["x_disable_meta"] is True
    settings = wandb.config.update.call_args.args[0]
    assert settings["train.betas"] == "[0.9, 0.99]" and len(settings["long"]) == 500
    run = wandb.init.return_value
    assert run.log.call_args_list[0].args == ({"reward": 1.0},)
    assert run.log.call_args_list[0].kwargs == {"step": 3}
    assert run.log.call_args_list[1].args == ({"samples": [wandb.Image.return_value]},)
    run.finish.assert_called_once()
    monkeypatch.setenv("WANDB_MODE", "online")
    Trackers(["wandb"], tmp_path, "mine-1", CONFIG, pytest.fail)
    assert wandb.init.call_args.kwargs["mode"] == "online"


def test_trackio_takes_grids_by_its_own_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = stub(monkeypatch, "trackio")
    found = Trackers(["trackio"], tmp_path, "mine-1", CONFIG, pytest.fail)
    found.image("samples", IMAGE, 3)
    found.close()
    trackio.finish.assert_called_once()
    assert trackio.init.call_args.kwargs["name"] == "mine-1"
    logged = trackio.init.return_value.log.call_args
    assert logged.args == ({"samples": trackio.Image.return_value},)


def test_mlflow_keeps_a_database_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = stub(monkeypatch, "mlflow")
    mlflow.search_experiments.return_value = []
    mlflow.utils.validation.MAX_PARAM_VAL_LENGTH = 6000
    mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = Trackers(["mlflow"], tmp_path, "mine-1", CONFIG, pytest.fail)
    found.log({"reward/<a>": 1.0}, 3)
    found.image("samples", IMAGE, 3)
    mlflow.set_tracking_uri.assert_called_once_with(f"sqlite:///{tmp_path}/mlflow.db")
    assert mlflow.create_experiment.call_args.kwargs["artifact_location"].startswith("file:///")
    assert "long" in mlflow.log_params.call_args.args[0]
    mlflow.log_metrics.assert_called_once_with({"reward/_a_": 1.0}, step=3)
    assert mlflow.log_image.call_args.kwargs == {"key": "samples", "step": 3}


def test_one_that_is_not_installed_is_refused_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    recipe = Path("mine.yaml")
    recipe.write_text("extends: arithmetic/mask_grpo\nrun:\n  trackers: [tensorboard, wandb]\n")
    assert main(["check", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "mine.yaml:3" in said and "pip install wandb" in said and "tensorboard" not in said
    assert main(["run", "mine.yaml", "--runs", "runs"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not Path("runs").exists()
    with pytest.raises(RecipeError, match="pip install wandb"):
        Trackers(["wandb"], tmp_path, "x", {}, print)
    assert main(["check", "arithmetic/mask_grpo", "run.trackers=[tensorborad]"]) == 2
    assert "did you mean `tensorboard`" in capsys.readouterr().err
