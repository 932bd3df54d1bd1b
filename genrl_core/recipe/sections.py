"""The other sections of a recipe (prompts, evaluate, save, run), and all of them by name."""

from typing import Annotated, Any, Literal

from pydantic import Field

from genrl_core.interfaces.configs import NEUTRAL, Count, NonNegative, Schema
from genrl_core.loop.settings import AdvantageConfig, FilterConfig, TrainConfig, WeightsConfig


class PromptsConfig(Schema):
    """Where prompts come from: text (one per line), JSON lines or CSV with a column `text`."""

    file: str | None = Field(None, description="prompts to train on; relative to the recipe")
    evaluate: str | None = Field(
        None, description="held-out prompts to evaluate on", json_schema_extra=NEUTRAL
    )


class EvaluateConfig(Schema):
    """What is measured on the held-out prompts, always with the same random streams."""

    every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="iterations between evaluations; 0 for before and after alone",
        json_schema_extra=NEUTRAL,
    )
    num_generations: Count = Field(
        1, description="samples per held-out prompt", json_schema_extra=NEUTRAL
    )
    sampler: dict[str, Any] = Field(
        {}, description="sampler fields that differ in evaluation", json_schema_extra=NEUTRAL
    )
    metrics: dict[str, Any] = Field(
        {}, description="label -> reward used as a measure alone", json_schema_extra=NEUTRAL
    )
    baseline_sweep: dict[str, list[Any]] = Field(
        {},
        description="sampler field -> values at which the untrained policy is measured too",
        json_schema_extra=NEUTRAL,
    )
    primary_metric: str | None = Field(
        None,
        description="the metric by which baseline_sweep picks its best; the first one if silent",
        json_schema_extra=NEUTRAL,
    )


class SaveConfig(Schema):
    """Checkpoints."""

    every: Annotated[int, Field(ge=0)] = Field(
        0,
        description="iterations between checkpoints; 0 for those by time and the last",
        json_schema_extra=NEUTRAL,
    )
    minutes: NonNegative = Field(
        10.0,
        description="minutes after which an iteration is saved as well, counted from the last "
        "checkpoint by the clock of the first process; 0 for never",
        json_schema_extra=NEUTRAL,
    )
    keep: Annotated[int, Field(ge=1)] = Field(
        2, description="how many checkpoints are kept", json_schema_extra=NEUTRAL
    )


class RunConfig(Schema):
    """The run itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = Field(
        None,
        description="name of the run folder; silent: the recipe's name, numbered",
        json_schema_extra=NEUTRAL,
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="the seed of every random stream")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs", json_schema_extra=NEUTRAL
    )
    threads: Count | None = Field(
        None, description="CPU threads of torch; silent: torch's choice", json_schema_extra=NEUTRAL
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        [],
        description="where metrics and sample grids are logged too, offline unless the tracker's "
        "own variables say otherwise",
        json_schema_extra=NEUTRAL,
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
