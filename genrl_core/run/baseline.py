"""The policy before training, measured: as recipes sample it, and at the best of a sweep.

Where the policy begins with a cached base (``policy.weights: recipe:NAME``), what was measured is
kept beside that base, since another run with the same base, sampler and metrics would find the same
numbers. It is a file of pixels with JSON in its header, as the base is one of weights.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from genrl_core.errors import RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.loop.evaluate import Evaluation
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.bases import cache_folder
from genrl_core.run.files import with_umask
from genrl_core.run.pictures import ImageColumn

Measure = Callable[..., "Measured"]
"""``measure(title, **sampler_fields)``: draws and measures, and says so."""


@dataclass(frozen=True)
class Measured:
    """An evaluation under the name that tables and pictures give it."""

    title: str
    evaluation: Evaluation

    def row(self) -> dict[str, Any]:
        return {"title": self.title, **self.evaluation.metrics}

    def column(self) -> ImageColumn:
        found = self.evaluation
        return ImageColumn(self.title, found.media, found.prompts, found.metrics)


def measure_baseline(
    recipe: Recipe, trainer: Trainer, measure: Measure, note: Callable[[str], None]
) -> dict[str, Measured]:
    """``before`` and, of the best of ``evaluate.baseline_sweep``, ``best_base``.

    Args:
        recipe: of the run.
        trainer: before its first iteration.
        measure: makes a measurement, title by title.
        note: told where measurements come from that were kept.

    Raises:
        RecipeError: ``evaluate.primary_metric`` is not measured.
    """
    runtime, path = trainer.parts.runtime, _kept_file(recipe)
    kept = _load(path, trainer.parts.evaluator.prompts) if path and runtime.main else None
    if (found := runtime.collect(kept)[0]) is not None:
        for measured in found.values():
            numbers = ", ".join(f"{n} {v:.4g}" for n, v in measured.evaluation.metrics.items())
            note(f"{measured.title}: {numbers}, kept from an earlier run in {path}")
        return found
    found = {"before": measure("base")}
    best: Measured | None = None
    metric = _primary_metric(recipe, found["before"].evaluation)
    for field, values in recipe.evaluate.baseline_sweep.items():
        for value in values:
            swept = measure(f"base, {field} {value:g}", **{field: value})
            if best is None or swept.evaluation.metrics[metric] > best.evaluation.metrics[metric]:
                best = swept
    if best is not None:
        found["best_base"] = best
    if path and runtime.main:
        _keep(path, found)
    return found


def _primary_metric(recipe: Recipe, found: Evaluation) -> str:
    name = recipe.evaluate.primary_metric or next(iter(found.metrics), "")
    if recipe.evaluate.baseline_sweep and name not in found.metrics:
        known = ", ".join(found.metrics)
        raise RecipeError(f"evaluate.primary_metric: {name!r} is not measured; there are {known}")
    return name


def _kept_file(recipe: Recipe) -> Path | None:
    """Where the measurements of this base are kept, by all that decides them; None for no base."""
    base, prompts = recipe.base_recipe(), recipe.prompt_files.get("evaluate")
    if base is None or prompts is None:
        return None
    names = ("requires", "policy", "sampler", "reward", "evaluate", "run")
    tree = {name: recipe.resolved[name] for name in names}
    tree["run"] = {**tree["run"], "name": None}
    tree["base"] = base.with_overrides(f"run.seed={recipe.run.seed}").digest()
    tree["prompts"] = prompts.sha256
    tree["torch"] = torch.__version__
    key = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{base.name.replace('/', '-')}-measured-{key}.safetensors"


def _keep(path: Path, found: dict[str, Measured]) -> None:
    tensors, rows = {}, {}
    for name, measured in found.items():
        evaluation = measured.evaluation
        media = evaluation.media
        if media.pixels is not None:
            tensors[name] = media.pixels.contiguous().cpu()
        rows[name] = {
            "title": measured.title, "metrics": evaluation.metrics, "kind": media.kind,
            "texts": media.texts, "raw_texts": media.raw_texts,
            "num_generations": evaluation.num_generations,
        }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with with_umask(part):
        save_file(tensors, part, metadata={"measured": json.dumps(rows)})
    part.replace(path)


def _load(path: Path, prompts: Any) -> dict[str, Measured] | None:
    """What was kept, or None where it is absent or cannot be read and is measured again."""
    try:
        with safe_open(path, "pt") as file:
            rows = json.loads(file.metadata()["measured"])
            found = {}
            for name, row in rows.items():
                pixels = file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118
                raw = None if row["raw_texts"] is None else tuple(row["raw_texts"])
                media = Media(row["kind"], pixels, tuple(row["texts"]), raw)
                asked: list[Prompt] = [p for p in prompts for _ in range(row["num_generations"])]
                evaluation = Evaluation(row["metrics"], media, tuple(asked), row["num_generations"])
                found[name] = Measured(row["title"], evaluation)
            return found
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
