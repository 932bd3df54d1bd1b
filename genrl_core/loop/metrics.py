"""From matrices to the numbers of ``metrics.jsonl``: reduced over entries, then over steps."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from genrl_core.loop.gradient import Outcome


class Scalar(NamedTuple):
    """A number of one optimizer step, and how those of an iteration become one."""

    value: float
    reduce: Literal["mean", "max"] = "mean"


def scalars(outcomes: Iterable[Outcome]) -> dict[str, Scalar]:
    """What the objectives report of a step, over the trained entries.

    A metric goes by its name; where an earlier one has that name, by ``label/name``.
    """
    found: dict[str, Scalar] = {}
    for outcome in outcomes:
        batch = outcome.batch
        trained = batch.mask & batch.valid
        for full, metric in outcome.metrics.items():
            name = full.partition("/")[2]
            kept = metric.values[batch.valid if metric.values.dim() == 1 else trained]
            if len(kept):
                value = kept.max() if metric.reduce == "max" else kept.double().mean()
                found[full if name in found else name] = Scalar(float(value), metric.reduce)
        if batch.entropy is not None and trained.any():
            found["entropy"] = Scalar(float(batch.entropy[trained].mean()))
    return found


def largest(values: Iterable[float]) -> float:
    """The largest; NaN wins, which ``max`` loses where another number comes first."""
    return max(values, key=lambda value: (math.isnan(value), value))


def over_steps(steps: Iterable[Mapping[str, Scalar]]) -> dict[str, float]:
    """One number for each name: means, or the largest, over the optimizer steps that have it."""
    every = list(steps)
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for step in every for name in step):
        known = [step[name] for step in every if name in step]
        values = [each.value for each in known]
        found[name] = largest(values) if known[0].reduce == "max" else sum(values) / len(values)
    return found
