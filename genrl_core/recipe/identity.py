"""What decides a run's result: the key of a cached base, and what a resume must not change."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl_core.errors import RecipeError
from genrl_core.interfaces.configs import Schema
from genrl_core.text import format_value

if TYPE_CHECKING:
    from genrl_core.recipe.recipe import Recipe


def digest(recipe: "Recipe") -> str:
    """sha256 of everything that could show in the result, rounding included; for caches.

    Raises:
        RecipeError: the recipe under policy.weights is missing or leads back to this one.
    """
    return _digest(recipe, ())


def essence(recipe: "Recipe") -> dict[str, Any]:
    """What must stay when a run is resumed: dotted key -> value, as JSON.

    It leaves out the fields that their schema marks with ``changes_results: False``.

    Raises:
        RecipeError: as for ``digest``.
    """
    tree = _by_content(recipe, ())
    for kind in ("policy", "sampler"):
        if (part := getattr(recipe, kind)) is not None:
            _drop_neutral(part, tree[kind])
    for kind in ("reward", "objective"):
        for label, part in getattr(recipe, kind).items():
            _drop_neutral(part, tree[kind][label])
    for name in tree.keys() - {"requires", "policy", "sampler", "reward", "objective"}:
        _drop_neutral(getattr(recipe, name), tree[name])
    return flat(tree)


def refusal(saved: Any, recipe: "Recipe", done: int) -> str:
    """Why a run of ``done`` iterations cannot go on under this recipe; empty where it can.

    Args:
        saved: the ``essence`` of the recipe that the run had.
        recipe: the one that it is to have.
        done: iterations that are complete.
    """
    if not isinstance(saved, Mapping):
        return "it was written by an older GenRL, which did not note what its recipe decides"
    now, key = essence(recipe), "train.iterations"
    schedule = recipe.train.lr_scheduler
    same_schedule = saved.get("train.lr_scheduler") == schedule
    found = changes(saved, now)
    if same_schedule and schedule == "constant":
        found.pop(key, None)
    said = [
        f"{name} was {format_value(old)} and is {format_value(new)}"
        for name, (old, new) in found.items()
    ]
    if key in found and same_schedule:
        said.append(
            f"{schedule} ends at the last iteration, so the learning rates until now would have "
            "been others: only a constant one can go on"
        )
    if recipe.train.iterations < done:
        said.append(f"{done} iterations are done, and {key} is {recipe.train.iterations}")
    return "; ".join(said)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two flat trees whose values differ -> both values, None for none."""
    keys = dict.fromkeys((*before, *now))
    both = {key: (before.get(key), now.get(key)) for key in keys}
    return {key: (old, new) for key, (old, new) in both.items() if old != new}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted key -> value; lists are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return found


def _drop_neutral(part: Schema, tree: dict[str, Any]) -> None:
    for name, field in type(part).model_fields.items():
        extra, value = field.json_schema_extra, getattr(part, name)
        if isinstance(extra, dict) and extra.get("changes_results") is False:
            del tree[name]
        elif isinstance(value, Schema):
            _drop_neutral(value, tree[name])


def _digest(recipe: "Recipe", seen: tuple[str, ...]) -> str:
    tree = _by_content(recipe, seen)
    tree["run"].pop("name")
    tree.pop("save")
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _by_content(recipe: "Recipe", seen: tuple[str, ...]) -> dict[str, Any]:
    """The resolved form with what prompt files and the base's recipe hold in place of their names.

    Args:
        recipe: the recipe.
        seen: the recipes whose base it is.
    """
    tree = deepcopy(recipe.resolved)
    for key, path in tree["prompts"].items():
        if path and Path(path).is_file():
            tree["prompts"][key] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    base = recipe.base_recipe()
    if base is not None:
        chain = (*seen, recipe.name)
        if base.name in chain:
            loop = " > ".join((*chain, base.name))
            place = recipe.place("policy", "weights")
            raise RecipeError(f"{place}: policy.weights: leads back to itself: {loop}")
        tree["policy"]["weights"] = _digest(base, chain)
    return tree
