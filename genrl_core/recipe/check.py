"""Refusing impossible combinations, on configs alone, with the reason and the way out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from genrl_core.errors import RecipeError, RewardError
from genrl_core.interfaces.capability import MEDIA, Capability
from genrl_core.interfaces.configs import Component, RewardConfig
from genrl_core.interfaces.media import Prompt
from genrl_core.recipe.problems import KeyPath, Problem, problems_of, raise_if
from genrl_core.recipe.prompts import refused
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.suggest import (
    FROM_SAMPLER,
    VIEW_NEEDS,
    Combination,
    choose,
    other_view,
    ways_to,
)
from genrl_core.recipe.weights import weights_problems

if TYPE_CHECKING:
    from genrl_core.interfaces.objective import View


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe in which nothing is wrong, and what checking it has found.

    Attributes:
        recipe: the recipe.
        views: objective label -> the view that it reads.
    """

    recipe: Recipe
    views: "Mapping[str, View]"

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts to train on."""
        return self.recipe.prompt_files["file"].prompts

    @property
    def eval_prompts(self) -> tuple[Prompt, ...]:
        """The held-out prompts; empty where the recipe has none."""
        file = self.recipe.prompt_files.get("evaluate")
        return file.prompts if file else ()


def check_recipe(
    recipe: Recipe | CheckedRecipe,
    *,
    policy_injected: bool = False,
    sampler_injected: bool = False,
    rewards_injected: bool = False,
) -> CheckedRecipe:
    """Refuse what cannot work.

    Args:
        recipe: a valid recipe; one that was checked before is not checked again.
        policy_injected, sampler_injected, rewards_injected: what replaces the recipe's own, so that
            nothing can be said about it here.

    Raises:
        RecipeError: every reason with its line and the way out.
    """
    if isinstance(recipe, CheckedRecipe):
        return recipe
    raise_if(find_problems(recipe, policy_injected, sampler_injected, rewards_injected))
    return CheckedRecipe(recipe, resolve_views(recipe))


def find_problems(
    recipe: Recipe,
    policy_injected: bool = False,
    sampler_injected: bool = False,
    rewards_injected: bool = False,
) -> list[Problem]:
    """What ``check_recipe`` refuses, as a list; empty where everything fits."""
    flags = {"policy": policy_injected, "sampler": sampler_injected, "rewards": rewards_injected}
    parts = Combination(recipe, frozenset(name for name, injected in flags.items() if injected))
    found = (problem for check in CHECKS for problem in check(parts))
    return list(dict.fromkeys(found))


def resolve_views(recipe: Recipe) -> "dict[str, View]":
    """The view that every objective reads: its own, or else one of those that the others have.

    The view ``reward`` has no log-probs to share. An objective that stands beside it alone reads
    the first of its compatible views that policy and sampler support.

    Raises:
        RecipeError: no objective has a view of its own.
    """
    own = [view for c in recipe.objective.values() if (view := c.view_wanted()) is not None]
    if recipe.objective and not own:
        raise RecipeError(str(_no_view(recipe)))
    provided = Combination(recipe).provided
    found: dict[str, View] = {}
    for label, config in recipe.objective.items():
        compatible, view = config.compatible_views(), config.view_wanted()
        shared = [each for each in compatible if each in own]
        supported = [each for each in compatible if VIEW_NEEDS[each] in provided]
        if view is not None:
            found[label] = view
        elif shared:
            found[label] = shared[0]
        elif "reward" in own:
            found[label] = [*supported, *compatible, *own][0]
        else:  # it has no numbers there, which check_views refuses
            found[label] = own[0]
    return found


def _no_view(recipe: Recipe) -> Problem:
    labels = " and ".join(f"`{label}`" for label in recipe.objective)
    message = f"{labels} take the view of another objective, and there is none; add one"
    return recipe.problem(("objective",), message)


def check_presence(parts: Combination) -> Iterator[Problem]:
    """There is a policy, a sampler and an objective."""
    recipe = parts.recipe
    for kind in ("policy", "sampler"):
        if getattr(recipe, kind) is None and kind not in parts.injected:
            yield recipe.problem((kind,), f"there is no {kind}; add `{kind}: {{use: NAME}}`")
    if not recipe.objective:
        known = ", ".join(recipe.registry.objectives) or "none is registered"
        yield recipe.problem(("objective",), f"there is no objective; add one of: {known}")


def check_paradigm(parts: Combination) -> Iterator[Problem]:
    """The sampler draws from such policies, and its fields fit this one."""
    policy, sampler, recipe = parts.policy, parts.sampler, parts.recipe
    if policy is None or sampler is None:
        return
    if policy.paradigm == sampler.paradigm:
        for field, why in sampler.incompatible_fields(policy).items():
            yield recipe.problem(("sampler", field), why)
        return
    wanted = (policy.paradigm, sampler.supervised)
    way = choose(recipe.registry.samplers, lambda c: (c.paradigm, c.supervised) == wanted)
    yield recipe.problem(
        ("sampler",),
        f"{parts.name(sampler)} draws from {sampler.paradigm} policies, but "
        f"{parts.name(policy)} is {policy.paradigm}. {way}",
    )


def check_data_kind(parts: Combination) -> Iterator[Problem]:
    """A supervised sampler's data are of the kind that the policy makes."""
    policy, sampler, recipe = parts.policy, parts.sampler, parts.recipe
    if policy is None or sampler is None or policy.paradigm != sampler.paradigm:
        return
    made, paradigm = policy.provides() & MEDIA, policy.paradigm
    if sampler.data_kind is None or sampler.data_kind in made:
        return
    way = choose(
        recipe.registry.samplers,
        lambda c: c.supervised and c.paradigm == paradigm and c.data_kind in made,
    )
    yield recipe.problem(
        ("sampler",),
        f"{parts.name(sampler)} returns data of the kind {sampler.data_kind.value}, but "
        f"{parts.name(policy)} makes {_media(made)}. {way}",
    )


def check_views(parts: Combination) -> Iterator[Problem]:
    """Every objective has a view with its numbers, and policy and sampler give what it needs."""
    recipe, policy, sampler = parts.recipe, parts.policy, parts.sampler
    try:
        views = resolve_views(recipe)
    except RecipeError:
        yield _no_view(recipe)
        return
    for label, view in views.items():
        config, path = recipe.objective[label], ("objective", label)
        if config.view_wanted() is None and view not in config.compatible_views():
            wanted = " or ".join(config.compatible_views())
            yield recipe.problem(
                path,
                f"{label} has its numbers in the view {wanted}, and its neighbours have {view}. "
                f"Choose a neighbour with view: {wanted}, or leave {label} out",
            )
        elif sampler is not None and sampler.supervised and view in ("steps", "reward"):
            reads = "reads" if view == "steps" else "differentiates"
            ways = ", or ".join(["a sampler that draws", *other_view(config, parts)])
            yield recipe.problem(
                path,
                f"{label} {reads} the steps of a rollout, but {parts.name(sampler)} returns data "
                f"and takes no steps. Choose {ways}",
            )
        else:
            yield from _unmet_needs(path, config, config.needs() | {VIEW_NEEDS[view]}, parts)
    corrupts = {"elbo", "denoising"} & set(views.values())
    if corrupts and policy is not None and (problem := policy.draws_problem(recipe.train.draws)):
        yield recipe.problem(("train", "draws"), problem)


def _unmet_needs(
    path: KeyPath, config: Component, needs: Iterable[Capability], parts: Combination
) -> Iterator[Problem]:
    """A problem for each capability that neither policy nor sampler provides."""
    for capability in sorted(needs, key=list(Capability).index):
        lacking = parts.sampler if capability in FROM_SAMPLER else parts.policy
        if lacking is None or capability in parts.provided:
            continue
        reason = lacking.why_missing(capability)
        reason = reason or f"it would mean that {capability.sentence}"
        yield parts.recipe.problem(
            path,
            f"{path[-1]} needs {capability.value}, which {parts.name(lacking)} does not provide: "
            f"{reason}. {ways_to(capability, config, parts)}",
        )


def check_differentiable(parts: Combination) -> Iterator[Problem]:
    """What an objective of the view ``reward`` asks of rewards and of the other objectives."""
    recipe, policy = parts.recipe, parts.policy
    objectives = recipe.objective.items()
    label = next((label for label, c in objectives if c.view_wanted() == "reward"), None)
    if label is None:
        return
    for other, config in objectives:
        if config.draws_with() == "lagging":
            yield recipe.problem(
                ("objective", label),
                f"{label} draws its samples again under the current weights, but {other} has them "
                "drawn by the lagging ones (old), so these are other samples. Leave one of the two "
                "out, or let the current weights draw",
            )
    for name, reward in parts.rewards.items():
        if not reward.differentiable:
            media = policy.provides() & MEDIA if policy else reward.media
            way = choose(recipe.registry.rewards, partial(_is_differentiable, media))
            yield recipe.problem(
                ("reward", name),
                f"{label} differentiates the reward, and {parts.name(reward)} has no gradient. "
                f"{way}, or leave {label} out",
            )


def _is_differentiable(media: frozenset[Capability], reward: type[RewardConfig]) -> bool:
    return reward.differentiable and not reward.evaluation_only and bool(reward.media & media)


def check_rewards(parts: Combination) -> Iterator[Problem]:
    """There is something to learn from, and it judges what the policy makes; so do measures."""
    recipe = parts.recipe
    using = [label for label, config in recipe.objective.items() if config.uses_reward]
    if using and not (recipe.reward or "rewards" in parts.injected):
        message = f"there is no reward, but objective {', '.join(using)} learns from rewards"
        yield recipe.problem(("reward",), f"{message}; add one")
    for label, config in recipe.reward.items():
        if config.evaluation_only:
            message = "is for evaluation only; name it under evaluate.metrics"
            yield recipe.problem(("reward", label), f"{parts.name(config)} {message}")
        yield from _check_medium(("reward", label), config, parts)
    for label, config in recipe.metrics.items():
        yield from _check_medium(("evaluate", "metrics", label), config, parts)


def _check_medium(path: KeyPath, config: RewardConfig, parts: Combination) -> Iterator[Problem]:
    if parts.policy is None:
        return
    made = parts.policy.provides() & MEDIA
    if not made & config.media:
        way = choose(
            parts.recipe.registry.rewards,
            lambda c: bool(c.media & made) and c.evaluation_only == config.evaluation_only,
        )
        yield parts.recipe.problem(
            path,
            f"{parts.name(config)} judges {_media(config.media)}, but "
            f"{parts.name(parts.policy)} makes {_media(made)}. {way}",
        )
    yield from _unmet_needs(path, config, config.needs(), parts)


def _media(media: frozenset[Capability]) -> str:
    return " and ".join(sorted(medium.value for medium in media)) or "no declared medium"


def check_numbers(parts: Combination) -> Iterator[Problem]:
    """Group sizes, minibatches and corruption draws."""
    recipe, train = parts.recipe, parts.recipe.train
    objectives = recipe.objective.values()
    learns = any(c.uses_reward and c.view_wanted() != "reward" for c in objectives)
    if train.num_generations < 2 and learns:
        for key, value in recipe.advantage.within_groups.items():
            instead = value.replace("group", "batch") if "group" in value else "batch_mean"
            yield recipe.problem(
                ("train", "num_generations"),
                f"advantage.{key}: {value} compares the samples of a prompt, and num_generations "
                f"is 1. Take at least 2, or advantage.{key}: {instead}",
            )
    if train.num_generations < 2 and recipe.filter.active:
        message = "the spread of a group of one sample is always 0, and the filter rejects it"
        yield recipe.problem(("train", "num_generations"), f"{message}; take at least 2")
    if recipe.filter.then == "resample" and not recipe.filter.active:
        message = "nothing is rejected without filter.min_std or filter.std_percentile"
        yield recipe.problem(("filter", "then"), message)
    if train.num_minibatches > train.num_prompts:
        yield recipe.problem(
            ("train", "num_minibatches"),
            f"groups stay whole, so {train.num_prompts} prompts cannot be split into "
            f"{train.num_minibatches} minibatches; take at most {train.num_prompts}",
        )


def check_weights(parts: Combination) -> Iterator[Problem]:
    """What gives the weights exists, and its network is this one."""
    if parts.policy is not None:
        yield from weights_problems(parts.recipe)
    try:
        parts.recipe.essence()
    except RecipeError as error:
        yield from problems_of(error)


def check_evaluation(parts: Combination) -> Iterator[Problem]:
    """There are prompts to evaluate on, and the primary metric is measured."""
    recipe = parts.recipe
    if recipe.prompts.evaluate is None and (recipe.metrics or recipe.evaluate.every > 0):
        message = "is missing: evaluate measures on held-out prompts; name a file of them"
        yield recipe.problem(("prompts", "evaluate"), message)
    labels, primary = (*recipe.metrics, "reward"), recipe.evaluate.primary_metric
    if primary is not None and not primary.startswith(labels):
        message = f"no such metric `{primary}`; they are {', '.join(labels)}"
        yield recipe.problem(("evaluate", "primary_metric"), message)


def check_prompts(parts: Combination) -> Iterator[Problem]:
    """Prompt files can be read, and the policy, rewards and measures take every prompt in them."""
    recipe = parts.recipe
    if recipe.prompts.file is None:
        message = "is missing; name a file of prompts to train on"
        yield recipe.problem(("prompts", "file"), message)
    judges = {"file": [*parts.rewards.values()]}
    judges["evaluate"] = [*judges["file"], *recipe.metrics.values()]
    for key, path in recipe.prompts.model_dump().items():
        if path is not None and key not in recipe.prompt_files:
            yield recipe.problem(("prompts", key), f"there is no file {path}")
    for key, file in recipe.prompt_files.items():
        try:
            prompts = file.prompts
        except RecipeError as error:
            yield from problems_of(error)
            continue
        if parts.policy is not None:
            yield from refused(prompts, parts.policy.check_prompt, file.place)
        for config in judges[key]:
            if unfit := _unjudged(prompts, config):
                yield recipe.problem(("prompts", key), f"{file.path}: {unfit}")


def _unjudged(prompts: Sequence[Prompt], config: RewardConfig) -> str:
    """How many prompts a reward cannot judge, and why the first one; empty where it can."""
    found = []
    for prompt in prompts:
        try:
            config.check_prompt(prompt)
        except RewardError as error:
            found.append(str(error))
    return f"{len(found)} of {len(prompts)} prompts do not fit; {found[0]}" if found else ""


CHECKS: tuple[Callable[[Combination], Iterable[Problem]], ...] = (
    check_presence,
    check_paradigm,
    check_data_kind,
    check_views,
    check_differentiable,
    check_rewards,
    check_numbers,
    check_weights,
    check_evaluation,
    check_prompts,
)
