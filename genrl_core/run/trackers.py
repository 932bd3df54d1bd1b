"""``run.trackers``: the numbers of a run in TensorBoard, W&B, Trackio or MLflow, by accelerate."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genrl_core.errors import RecipeError
from genrl_core.recipe.recipe import flat
from genrl_core.run.files import json_safe


def missing(names: Sequence[str]) -> list[str]:
    """One sentence for every tracker that is not installed, with the way to get it."""
    return [
        f"{name} is not installed: pip install {name}, or leave it out of run.trackers"
        for name in names
        if find_spec(name) is None
    ]


class Trackers:
    """The trackers of one run, offline unless their own environment variables say otherwise.

    A tracker that fails is left out from then on, with one warning: it never ends a run.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, run_id: str, config: Mapping[str, Any],
        warn: Callable[[str], None],
    ):  # fmt: skip
        """Start them.

        Args:
            names: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``.
            folder: the run folder; trackio alone writes where all of its runs lie.
            run_id: the same when a run is resumed.
            config: the settings of the run.
            warn: is told which tracker failed.

        Raises:
            RecipeError: one of them is not installed.
        """
        if absent := missing(names):
            raise RecipeError("; ".join(absent))
        self._warn = warn
        self._live: dict[str, Any] = dict.fromkeys(names)
        # TensorBoard refuses lists, and MLflow drops long values.
        settings = {
            key: value if isinstance(value, int | float) else str(value)[:500]
            for key, value in flat(json_safe(config)).items()
        }

        def start(name: str) -> None:
            self._live[name] = tracker = _started(name, folder, run_id)
            tracker.store_init_configuration(settings)

        self._each(start)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log the numbers among ``metrics``."""
        # MLflow refuses names with brackets and the like.
        values = {
            re.sub(r"[^\w\-. /:]", "_", name): value
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        self._each(lambda name: self._live[name].log(values, step=step))

    def image(self, label: str, image: Any, step: int) -> None:
        """Log one picture, ``[H, W, 3]`` uint8."""
        self._each(lambda name: _log_image(name, self._live[name], label, image, step))

    def close(self) -> None:
        self._each(lambda name: self._live[name].finish())
        self._live = {}

    def _each(self, action: Callable[[str], None]) -> None:
        for name in list(self._live):
            try:
                with redirect_stdout(sys.stderr):  # which JSON lines must have for themselves
                    action(name)
            except Exception as error:  # noqa: BLE001  # whatever it is, training is worth more
                del self._live[name]
                problem = f"{type(error).__name__}: {error}"
                self._warn(f"the tracker {name} failed ({problem}); the run goes on without it")


def _started(name: str, folder: Path, run_id: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # its logging wants one; where there are ranks it stands already
    options: dict[str, Any] = {"run_name": "genrl", "name": run_id, "resume": "allow"}
    if name == "tensorboard":
        options = {"run_name": name, "logging_dir": folder}
    elif name == "wandb":
        from wandb import Settings

        # Its metadata would hold the command line, secrets included.
        settings = Settings(x_disable_meta=True, console="off", silent=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        options |= {"id": run_id, "dir": folder, "mode": mode, "settings": settings}
    elif name == "mlflow":
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        place = (folder / "mlflow").as_uri()
        options = {"experiment_name": "genrl", "run_name": run_id, "logging_dir": place}
    tracker = LOGGER_TYPE_TO_CLASS[name](**options)
    tracker.start()
    if name == "trackio":
        import trackio

        tracker.finish = trackio.finish  # after the run's own it prints once more at the exit
    return tracker


def _log_image(name: str, tracker: Any, label: str, image: Any, step: int) -> None:
    """Where accelerate has no way for it, by the tracker's own."""
    if name == "tensorboard":
        tracker.log_images({label: image[None]}, step=step, dataformats="NHWC")
    elif name == "wandb":
        tracker.log_images({label: [image]}, step=step)
    elif name == "trackio":
        import trackio

        tracker.log({label: trackio.Image(image)}, step=step)
    else:
        import mlflow

        mlflow.log_image(image, key=label, step=step)
