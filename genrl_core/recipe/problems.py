"""What is wrong with a recipe, where, and what to do: one line per problem, all of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrl_core.errors import RecipeError
from genrl_core.text import did_you_mean, format_value, join_names

Route = tuple[str | int, ...]
"""Where a value stands in a recipe's tree: ``("objective", "grpo", "epsilon")``."""


# Names of TRL, diffusers and their neighbours -> where GenRL keeps the same thing.
_ELSEWHERE = {
    "num_iterations": "num_updates",
    "epochs": "num_updates",
    "ppo_epochs": "num_updates",
    "num_train_epochs": "iterations",
    "max_steps": "iterations",
    "num_epochs": "iterations",
    "group_size": "num_generations",
    "num_samples": "num_generations",
    "num_images_per_prompt": "num_generations",
    "num_mini_batches": "num_minibatches",
    "batch_size": "num_prompts",
    "per_device_train_batch_size": "num_prompts",
    "gradient_accumulation_steps": "micro_batch_size",
    # What GenRL called it before 0.2.
    "rows_per_forward": "micro_batch_size",
    "samples_per_forward": "rollout_batch_size",
    "min_spread": "min_std",
    "spread_percentile": "std_percentile",
    "headline": "primary_metric",
    "base_sweep": "baseline_sweep",
    "old": "lagging",
    "bound": "elbo",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "warmup": "warmup_steps",
    "num_warmup_steps": "warmup_steps",
    "betas": "adam_betas",
    "eps": "epsilon adam_epsilon",
    "wd": "weight_decay",
    "clip_grad_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip": "epsilon",
    "clip_range": "epsilon",
    "cliprange": "epsilon",
    "clip_eps": "epsilon",
    "epsilon_low": "epsilon",
    "beta": "objective.kl.weight",
    "kl_coef": "objective.kl.weight",
    "kl_weight": "objective.kl.weight",
    "entropy_coef": "objective.entropy.weight",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "timesteps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "cfg_weight": "guidance_scale",
    "model": "policy.use weights",
    "model_name_or_path": "policy.weights weights",
    "checkpoint": "policy.weights weights",
    "pretrained": "policy.weights weights",
    "seed": "run.seed",
    "output_dir": "run.name",
    "save_steps": "save.every",
    "eval_steps": "evaluate.every",
    "lora_rank": "weights.lora.rank",
    "ema_decay": "weights.ema.decay",
    "dataset": "prompts.file",
    "dataset_name": "prompts.file",
    "name": "use",
    "type": "use",
    "defaults": "extends",
    "base": "extends",
    "<<": "extends",
}


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Attributes:
        source: what a message prints: a path, ``override `a.b=c` ``, ``mapping``.
        line: 1-based; 0 where there are no lines.
        folder: what relative paths written there are relative to.
        span: first and past-the-last character of the value in its file.
    """

    source: str
    line: int = 0
    folder: Path = Path()
    span: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``place: path: message``."""

    place: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.path, self.message) if part)


class ProblemsError(RecipeError):
    """A recipe error that keeps its problems apart, for ``--json``."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))


def raise_if(problems: Sequence[Problem]) -> None:
    """Raise all problems as one error, if there are any."""
    if problems:
        raise ProblemsError(problems)


def dotted(route: Route) -> str:
    """A route as users write it: ``objective.grpo.epsilon``."""
    return ".".join(map(str, route))


def unknown_key(key: str, known: Iterable[str], homes: Sequence[str] = ()) -> str:
    """Why a key is refused, and which one was probably meant.

    Args:
        key: what was written.
        known: the keys that are allowed there.
        homes: full names of the places in this recipe where the key would be right.
    """
    known = sorted(known)
    for candidate in _ELSEWHERE.get(key, "").split():
        if candidate in known:
            return f"unknown key; it is called `{candidate}` here"
    if homes:
        return f"unknown key; it belongs at `{'` or `'.join(homes)}`"
    hint = did_you_mean(key, known)
    if not hint and (elsewhere := _ELSEWHERE.get(key)):
        hint = f"; GenRL writes it as `{elsewhere.split()[0]}`"
    return f"unknown key{hint}{'' if hint.endswith('?') else '.'} Known: {join_names(known)}"


def plain(kind: str, value: object, context: dict[str, Any], message: str) -> str:
    """A pydantic error in plain words.

    Args:
        kind: pydantic's error type.
        value: what was given.
        context: pydantic's ``ctx``.
        message: pydantic's own words, for whatever has none here.
    """
    if kind == "string_pattern_mismatch":
        return f"should match {context['pattern']}, not {format_value(value)}"
    if kind == "value_error":
        return str(context.get("error", message))
    if kind in ("literal_error", "enum"):
        options = context["expected"]
        bare = [option.strip("'") for option in options.replace(" or ", ", ").split(", ")]
        hint = did_you_mean(value, bare) if isinstance(value, str) else ""
        return f"should be {options}, not {format_value(value)}{hint}"
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        limit = context["min_length" if kind == "too_short" else "max_length"]
        return f"should have {bound} {limit} entries, not {context['actual_length']}"
    for word, phrase in _BOUNDS.items():
        if kind == word:
            limit = context[phrase[1]]
            return f"should be {phrase[0]} {limit:g}, not {format_value(value)}"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.rpartition("_")[0])
    if expected is None:
        return message[:1].lower() + message[1:]
    advice = ", without quotes" if isinstance(value, str) and _numeric(value) else ""
    return f"should be {expected}{advice}, not {format_value(value)}"


_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}

_EXPECTED = {
    "int": "a whole number",
    "int_from": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "dict": "a mapping (`key: value`)",
    "model": "a mapping (`key: value`)",
    "mapping": "a mapping (`key: value`)",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "none": "null",
}


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
