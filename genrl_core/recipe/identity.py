"""Whether a run may go on under another recipe: what in it decides the result must stay."""

from collections.abc import Mapping
from typing import Any

from genrl_core.recipe.recipe import Recipe
from genrl_core.text import format_value


def refusal(saved: Any, recipe: Recipe, done: int) -> str:
    """Why a run of ``done`` iterations cannot go on under this recipe; empty where it can.

    Args:
        saved: the ``essence`` of the recipe that the run had.
        recipe: the one that it is to have.
        done: iterations that are complete.
    """
    if not isinstance(saved, Mapping):
        return "it was written by an older GenRL, which did not note what its recipe decides"
    now, key = recipe.essence(), "train.iterations"
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
