"""The weights that a policy begins with: who gives them, and whether anybody can load them."""

from collections.abc import Iterator
from pathlib import Path

from genrl_core.errors import RecipeError
from genrl_core.interfaces.configs import PolicyConfig
from genrl_core.recipe.problems import Problem
from genrl_core.recipe.recipe import RESOLVED_FILE, Recipe, load_recipe

_PATH = ("policy", "weights")


def holds_weights(folder: Path) -> bool:
    """Whether it is the folder of a run or of a checkpoint."""
    return (folder / "checkpoints").is_dir() or (folder / "MANIFEST.json").is_file()


def _core_loads(weights: str | None) -> bool:
    """Whether GenRL itself gives these weights, and not the policy."""
    return weights is not None and (weights.startswith("recipe:") or holds_weights(Path(weights)))


def trained_by(recipe: Recipe) -> Recipe | None:
    """The recipe that trained ``policy.weights``, which names it or the folder of its run; or None.

    Raises:
        RecipeError: that recipe is wrong.
    """
    if recipe.policy is None or recipe.policy.weights is None:
        return None
    folder = Path(recipe.policy.weights)
    for run in (folder, folder.resolve().parent.parent):  # the second where it is a checkpoint
        if holds_weights(folder) and (run / RESOLVED_FILE).is_file():
            return load_recipe(run / RESOLVED_FILE, registry=recipe.registry)
    return recipe.base_recipe()


def built_policy(recipe: Recipe) -> PolicyConfig | None:
    """The policy as the core has it built, which loads the weights that GenRL itself gives.

    Those go into a network that a policy may only know from published files: a field ``base`` that
    is silent takes what the recipe behind the weights began with.

    Raises:
        RecipeError: that recipe is wrong.
    """
    config = recipe.policy
    if config is None or not _core_loads(config.weights):
        return config
    changes: dict[str, str | None] = {"weights": None}
    trained = trained_by(recipe)
    begun = None if trained is None else built_policy(trained)
    if begun is not None and getattr(config, "base", "") is None:
        changes["base"] = begun.weights or getattr(begun, "base", None)
    return config.model_copy(update=changes)


def unread_weights(recipe: Recipe) -> Problem | None:
    """What is wrong with weights that neither GenRL nor the policy itself would load."""
    config = recipe.policy
    if config is None or config.weights is None or config.loads_weights:
        return None
    if _core_loads(config.weights):
        return None
    message = (
        f"{config.weights} is no folder of a run (with checkpoints/) or of a checkpoint (with "
        f"MANIFEST.json), and {recipe.name_of(config)} loads no others. Give one of "
        "these, or recipe:NAME, or null for the initial weights"
    )
    return recipe.problem(message, *_PATH)


def weights_problems(recipe: Recipe) -> Iterator[Problem]:
    """Why the policy cannot begin from its weights, as far as configs alone say."""
    policy, name_of = recipe.policy, recipe.name_of
    if (unread := unread_weights(recipe)) is not None:
        yield unread
    if policy is None or unread is not None:
        return
    try:
        trained, built = trained_by(recipe), built_policy(recipe)
    except RecipeError:
        return  # whoever loads the weights says so
    if built is not None and (reason := built.weights_problem()):
        yield recipe.problem(reason, *_PATH)
    other = trained.policy if trained else None
    if other is None or isinstance(other, type(policy)) or isinstance(policy, type(other)):
        return
    yield recipe.problem(
        f"{policy.weights} holds the weights of {name_of(other)}, and this policy is "
        f"{name_of(policy)}, another network. Choose policy.use={name_of(other)}, or other weights",
        *_PATH,
    )
