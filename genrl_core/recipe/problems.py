"""What is wrong with a recipe, where, and what to do: one line per problem, all of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genrl_core.errors import RecipeError
from genrl_core.text import did_you_mean, format_value, join_names

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe's tree: ``("objective", "grpo", "epsilon")``."""


def dotted(path: KeyPath) -> str:
    """A key path as users write it: ``objective.grpo.epsilon``."""
    return ".".join(map(str, path))


class SourceLocation(NamedTuple):
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

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))


def raise_if(problems: Sequence[Problem]) -> None:
    """Raise all problems as one error, if there are any."""
    if problems:
        raise ProblemsError(problems)


def problems_of(error: Exception) -> list[Problem]:
    """The problems that an error lists; another error is one problem without a place."""
    if isinstance(error, ProblemsError):
        return list(error.problems)
    return [Problem("", "", str(error))]


_OTHER_NAMES = {
    "num_updates": "num_iterations epochs ppo_epochs",
    "iterations": "num_train_epochs max_steps num_epochs",
    "num_generations": "group_size num_samples num_images_per_prompt",
    "num_minibatches": "num_mini_batches",
    "num_prompts": "batch_size per_device_train_batch_size",
    "micro_batch_size": "gradient_accumulation_steps rows_per_forward",
    "learning_rate": "lr",
    "lr_scheduler": "lr_scheduler_type scheduler",
    "warmup_steps": "warmup num_warmup_steps",
    "adam_betas": "betas",
    "epsilon": "eps clip clip_range cliprange clip_eps epsilon_low",
    "adam_epsilon": "eps",
    "weight_decay": "wd",
    "max_grad_norm": "clip_grad_norm grad_clip",
    "objective.kl.weight": "beta kl_coef kl_weight",
    "objective.entropy.weight": "entropy_coef",
    "num_inference_steps": "steps num_steps timesteps",
    "guidance_scale": "guidance cfg cfg_scale cfg_weight",
    "policy.use": "model",
    "policy.weights": "model_name_or_path checkpoint pretrained",
    "weights": "model model_name_or_path checkpoint pretrained",
    "run.seed": "seed",
    "run.name": "output_dir",
    "save.every": "save_steps",
    "evaluate.every": "eval_steps",
    "weights.lora.rank": "lora_rank",
    "weights.ema.decay": "ema_decay",
    "prompts.file": "dataset dataset_name",
    "use": "name type",
    "extends": "defaults base <<",
    # What GenRL called them before 0.2.
    "rollout_batch_size": "samples_per_forward",
    "min_std": "min_spread",
    "std_percentile": "spread_percentile",
    "primary_metric": "headline",
    "baseline_sweep": "base_sweep",
    "lagging": "old",
    "elbo": "bound",
}
"""GenRL's key -> what TRL, diffusers and their neighbours call the same thing."""

_OUR_NAMES: dict[str, list[str]] = {}
for _ours, _theirs in _OTHER_NAMES.items():
    for _name in _theirs.split():
        _OUR_NAMES.setdefault(_name, []).append(_ours)


def unknown_key(key: str, known: Iterable[str], homes: Sequence[str] = ()) -> str:
    """Why a key is refused, and which one was probably meant.

    Args:
        key: what was written.
        known: the keys that are allowed there.
        homes: full names of the places in this recipe where the key would be right.
    """
    known, ours = sorted(known), _OUR_NAMES.get(key, [])
    if here := next((name for name in ours if name in known), None):
        return f"unknown key; it is called `{here}` here"
    if homes:
        return f"unknown key; it belongs at `{'` or `'.join(homes)}`"
    if hint := did_you_mean(key, known):
        return f"unknown key{hint} Known: {join_names(known)}"
    hint = f"; GenRL writes it as `{ours[0]}`" if ours else ""
    return f"unknown key{hint}. Known: {join_names(known)}"


_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid array": "a list",
    "an object": "a mapping (`key: value`)",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    " after validation": "",
}
"""pydantic speaks of JSON; a recipe is YAML."""


def pydantic_message(details: "ErrorDetails") -> str:
    """What pydantic says of a value, in the words of a recipe and with the value itself.

    ``Input should be a valid integer`` becomes ``should be a whole number, not the text 'x'``.
    """
    kind, value, text = details["type"], details["input"], details["msg"]
    if kind == "value_error":
        return str(details["ctx"]["error"])
    _, should, rest = text.partition(" should ")
    if not should:
        return text[:1].lower() + text[1:]
    text = f"should {rest.partition(', got ')[0]}"
    if kind in ("literal_error", "enum"):
        options = text.removeprefix("should be ").replace(" or ", ", ").split(", ")
        bare = [option.strip("'") for option in options]
        near = did_you_mean(value, bare) if isinstance(value, str) else ""
        return f"{text}, not {format_value(value)}{near}"
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    if kind in ("too_short", "too_long"):  # these end in the number that there is
        return text
    quoted = isinstance(value, str) and "number" in text and _is_number(value)
    return f"{text}{', without quotes' if quoted else ''}, not {format_value(value)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
