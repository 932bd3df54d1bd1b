"""What several objectives share: fields with their descriptions, the choice of view, the table.

It imports no torch, and neither does any other file of this package when it is imported.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeAlias, TypeVar

from pydantic import Field

from genrl_core import Metric, Objective, ObjectiveConfig

if TYPE_CHECKING:
    import torch

Tensor: TypeAlias = "torch.Tensor"
"""For annotations: a name that can be imported without torch."""

Metrics: TypeAlias = "dict[str, torch.Tensor | Metric]"
"""What a loss reports beside its value."""

Positive = Annotated[float, Field(gt=0)]
AnyView = Annotated[
    Literal["steps", "elbo"],
    Field(description="steps: the sampled trajectory; elbo: the finished sample"),
]
Reduction = Annotated[
    Literal["token_mean", "sample_mean", "constant", "sum", "group_mean"],
    Field(description="how terms become one number; denominators span the whole batch"),
]
Level = Annotated[
    Literal["term", "sequence"],
    Field(description="one ratio per term, or one per sample that couples its terms (GSPO)"),
]
Over = Annotated[
    Literal["sum", "mean"],
    Field(description="the log-ratio sums over a term's events, or is their mean"),
]
Epsilon = Annotated[
    Positive,
    Field(
        description="clip of the ratio below 1; it has no default, because what a ratio means "
        "differs: a token (0.2), a sum over released tokens (0.1), a mean over latents (1e-4)",
        json_schema_extra={"propose": 0.1},
    ),
]
EpsilonHigh = Annotated[
    Positive | None, Field(description="clip of the ratio above 1; silent: the same as epsilon")
]
Delta = Annotated[
    Annotated[float, Field(gt=1)] | None,
    Field(
        description="largest ratio of a term with a negative advantage (two-sided or dual clip, "
        "arXiv 2505.07291); above 1 + epsilon_high, or it clips positive advantages; null: none, "
        "as most papers have it"
    ),
]
DeltaAlone = Annotated[
    Annotated[float, Field(gt=1)] | None,
    Field(
        description="largest ratio that multiplies a negative advantage; null: none, as the paper "
        "has it"
    ),
]

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {}
"""Name -> config, filled by ``register`` as the files are imported."""

Class = TypeVar("Class", bound=type[ObjectiveConfig])
Config = TypeVar("Config", bound=ObjectiveConfig)


def register(name: str) -> Callable[[Class], Class]:
    """A class decorator that enters a config into ``OBJECTIVES``, from where the hook takes it."""

    def enter(config: Class) -> Class:
        OBJECTIVES[name] = config
        return config

    return enter


class ConfiguredObjective(Objective, Generic[Config]):
    """An objective that keeps its config."""

    def __init__(self, config: Config):
        self.config = config


class EitherViewConfig(ObjectiveConfig):
    """An objective that reads the sampled trajectory, or the bound of the finished sample."""

    view: AnyView = "steps"

    def view_wanted(self) -> Literal["steps", "elbo"]:
        return self.view
