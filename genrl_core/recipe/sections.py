"""The other sections of a recipe (prompts, evaluate, save, run), and all of them by name."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from genrl_core.interfaces.configs import NEUTRAL, Count, NonNegative, Schema
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, TrainConfig, WeightsConfig
from genrl_core.text import format_value

NonNegativeInt = Annotated[int, Field(ge=0)]


def _neutral(default: Any, description: str) -> Any:
    """A field that a resume may change, since it cannot change what is trained."""
    return Field(default, description=description, json_schema_extra=NEUTRAL)


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        what = "up to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
        raise ValueError(f"should be {what}; not {format_value(name)}")
    return name


class PromptsConfig(Schema):
    """Where prompts come from: text (one per line), JSON lines or CSV with a column `text`."""

    file: str | None = Field(None, description="prompts to train on; relative to the recipe")
    evaluate: str | None = _neutral(None, "held-out prompts to evaluate on")


class EvaluateConfig(Schema):
    """What is measured on the held-out prompts, always with the same random streams."""

    every: NonNegativeInt = _neutral(
        0, "iterations between evaluations; 0 for before and after alone"
    )
    num_generations: Count = _neutral(1, "samples per held-out prompt")
    sampler: dict[str, Any] = _neutral({}, "sampler fields that differ in evaluation")
    metrics: dict[str, Any] = _neutral({}, "label -> reward used as a measure alone")
    baseline_sweep: dict[str, list[Any]] = _neutral(
        {}, "sampler field -> values at which the untrained policy is measured too"
    )
    primary_metric: str | None = _neutral(
        None, "the metric by which baseline_sweep picks its best; the first one if silent"
    )


class SaveConfig(Schema):
    """Checkpoints."""

    every: NonNegativeInt = _neutral(
        0, "iterations between checkpoints; 0 for those by time and the last"
    )
    minutes: NonNegative = _neutral(
        10.0,
        "minutes after which an iteration is saved as well, counted from the last checkpoint by "
        "the clock of the first process; 0 for never",
    )
    keep: Count = _neutral(2, "how many checkpoints are kept")


class RunConfig(Schema):
    """The run itself."""

    name: Annotated[str, AfterValidator(_run_name)] | None = _neutral(
        None, "name of the run folder; silent: the recipe's name, numbered"
    )
    seed: NonNegativeInt = Field(0, description="the seed of every random stream")
    device: Literal["auto", "cpu", "cuda"] = _neutral("auto", "where the network runs")
    threads: Count | None = _neutral(None, "CPU threads of torch; silent: torch's choice")
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = _neutral(
        [],
        "where metrics and sample grids are logged too, offline unless the tracker's own variables "
        "say otherwise",
    )


SECTIONS: dict[str, type[Schema]] = {
    "advantage": AdvantageConfig,
    "filter": FilterConfig,
    "weights": WeightsConfig,
    "prompts": PromptsConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "save": SaveConfig,
    "run": RunConfig,
}
"""The sections with a fixed schema; policy, sampler, reward and objective hold components."""
