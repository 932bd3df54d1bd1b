"""Which view of a rollout every objective of a recipe reads."""

from typing import Any

from genrl_core.errors import RecipeError
from genrl_core.interfaces.capability import VIEW_CAPABILITIES, Capability
from genrl_core.recipe.problems import Problem
from genrl_core.recipe.recipe import Recipe

View = str | type[Any]
"""A view by its name, or a plugin's own class, see ``genrl_core.View``."""


def capability_of(view: View) -> Capability:
    """What policy and sampler must give together for a view."""
    return VIEW_CAPABILITIES[view] if isinstance(view, str) else view.capability


def name_of_view(view: View) -> str:
    """What tables and messages call it."""
    return view if isinstance(view, str) else str(view.name)


def provided(recipe: Recipe) -> frozenset[Capability]:
    """What the policy and the sampler of a recipe give together."""
    known = (config for config in (recipe.policy, recipe.sampler) if config is not None)
    return frozenset().union(*(config.provides() for config in known))


def resolve_views(recipe: Recipe) -> dict[str, View]:
    """The view that every objective reads: its own, or else one of those that the others have.

    The view ``reward`` has no log-probs to share. An objective that stands beside it alone reads
    the first of its compatible views that policy and sampler support.

    Raises:
        RecipeError: no objective has a view of its own.
    """
    own = [view for c in recipe.objective.values() if (view := c.view_wanted()) is not None]
    if recipe.objective and not own:
        raise RecipeError(str(no_view(recipe)))
    found: dict[str, View] = {}
    for label, config in recipe.objective.items():
        compatible, view = config.compatible_views(), config.view_wanted()
        shared = [each for each in compatible if each in own]
        supported = [each for each in compatible if capability_of(each) in provided(recipe)]
        if view is not None:
            found[label] = view
        elif shared:
            found[label] = shared[0]
        elif "reward" in own:
            found[label] = [*supported, *compatible, *own][0]
        else:  # it has no numbers there, which check_views refuses
            found[label] = own[0]
    return found


def no_view(recipe: Recipe) -> Problem:
    """What is wrong where no objective has a view of its own."""
    labels = " and ".join(f"`{label}`" for label in recipe.objective)
    message = f"{labels} take the view of another objective, and there is none; add one"
    return recipe.problem(message, "objective")
