"""Refusing impossible combinations, on configs alone, with the reason and the way out."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genrl_core.errors import RecipeError, RewardError
from genrl_core.interfaces.capability import MEDIA, Capability
from genrl_core.interfaces.configs import Component, RewardConfig
from genrl_core.interfaces.media import Prompt
from genrl_core.loop.settings import BASELINES
from genrl_core.recipe.problems import KeyPath, Problem, problems_of, raise_if
from genrl_core.recipe.prompts import refused
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.suggest import FROM_SAMPLER, choose, other_view, ways_to
from genrl_core.recipe.views import View, capability_of, no_view, provided, resolve_views
from genrl_core.recipe.weights import weights_problems
from genrl_core.text import did_you_mean, join_names


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe in which nothing is wrong, and what checking it has found.

    Attributes:
        recipe: the recipe.
        views: objective label -> the view that it reads.
    """

    recipe: Recipe
    views: Mapping[str, View]

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
    recipe: Recipe | CheckedRecipe, *, policy_injected: bool = False,
    sampler_injected: bool = False, rewards_injected: bool = False,
) -> CheckedRecipe:  # fmt: skip
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
    recipe: Recipe, policy_injected: bool = False, sampler_injected: bool = False,
    rewards_injected: bool = False,
) -> list[Problem]:  # fmt: skip
    """What ``check_recipe`` refuses, as a list; empty where everything fits."""
    flags = {"policy": policy_injected, "sampler": sampler_injected, "reward": rewards_injected}
    injected = [name for name, given in flags.items() if given]
    unknown: dict[str, Any] = {name: {} if name == "reward" else None for name in injected}
    known = replace(recipe, **unknown) if unknown else recipe
    found = [problem for check in CHECKS for problem in check(known)]
    found += check_presence(recipe, injected)
    try:
        recipe.essence()  # reads what it depends on: the recipe that gives the weights
    except RecipeError as error:
        found += problems_of(error)
    return list(dict.fromkeys(found))


def check_presence(recipe: Recipe, injected: Collection[str]) -> Iterator[Problem]:
    """There are a policy, a sampler, an objective, and rewards where they are learned from."""
    for kind in ("policy", "sampler"):
        if getattr(recipe, kind) is None and kind not in injected:
            yield recipe.problem(f"there is no {kind}; add `{kind}: {{use: NAME}}`", kind)
    if not recipe.objective:
        known = ", ".join(recipe.registry.objectives) or "none is registered"
        yield recipe.problem(f"there is no objective; add one of: {known}", "objective")
    using = [label for label, config in recipe.objective.items() if config.uses_reward]
    if using and not recipe.reward and "reward" not in injected:
        message = f"there is no reward, but objective {', '.join(using)} learns from rewards"
        yield recipe.problem(f"{message}; add one", "reward")


def check_paradigm(recipe: Recipe) -> Iterator[Problem]:
    """The sampler is for such policies, its fields fit this one, and so do data that it returns."""
    policy, sampler = recipe.policy, recipe.sampler
    if policy is None or sampler is None:
        return
    paradigm, made, supervised = policy.paradigm, policy.provides() & MEDIA, sampler.supervised
    samplers = recipe.registry.samplers
    own, others = recipe.name_of(sampler), recipe.name_of(policy)
    if paradigm != sampler.paradigm:
        way = choose(samplers, lambda c: (c.paradigm, c.supervised) == (paradigm, supervised))
        yield recipe.problem(
            f"{own} draws from {sampler.paradigm} policies, but {others} is {paradigm}. {way}",
            "sampler",
        )
        return
    for field, why in sampler.incompatible_fields(policy).items():
        yield recipe.problem(why, "sampler", field)
    if sampler.data_kind is not None and sampler.data_kind not in made:
        way = choose(samplers, lambda c: c.paradigm == paradigm and c.data_kind in made)
        yield recipe.problem(
            f"{own} returns data of the kind {sampler.data_kind.value}, but {others} makes "
            f"{_media(made)}. {way}",
            "sampler",
        )


def check_views(recipe: Recipe) -> Iterator[Problem]:
    """Every objective has a view with its numbers, and policy and sampler give what it needs."""
    policy, sampler = recipe.policy, recipe.sampler
    try:
        views = resolve_views(recipe)
    except RecipeError:
        yield no_view(recipe)
        return
    for label, view in views.items():
        config = recipe.objective[label]
        if config.view_wanted() is None and view not in config.compatible_views():
            wanted = " or ".join(config.compatible_views())
            yield recipe.problem(
                f"{label} has its numbers in the view {wanted}, and its neighbours have {view}. "
                f"Choose a neighbour with view: {wanted}, or leave {label} out",
                "objective", label,
            )  # fmt: skip
        elif sampler is not None and sampler.supervised and view in ("steps", "reward"):
            reads = "reads" if view == "steps" else "differentiates"
            ways = ", or ".join(["a sampler that draws", *other_view(config, recipe)])
            yield recipe.problem(
                f"{label} {reads} the steps of a rollout, but {recipe.name_of(sampler)} returns "
                f"data and takes no steps. Choose {ways}",
                "objective", label,
            )  # fmt: skip
        else:
            needs = config.needs() | {capability_of(view)}
            yield from _unmet_needs(recipe, needs, config, ("objective", label))
    corrupts = {"elbo", "denoising"} & set(views.values())
    if corrupts and policy is not None and (problem := policy.draws_problem(recipe.train.draws)):
        yield recipe.problem(problem, "train", "draws")


def _unmet_needs(
    recipe: Recipe, needs: Iterable[Capability], config: Component, path: KeyPath
) -> Iterator[Problem]:
    """A problem for each capability that neither policy nor sampler provides."""
    for capability in sorted(needs, key=list(Capability).index):
        lacking = recipe.sampler if capability in FROM_SAMPLER else recipe.policy
        if lacking is None or capability in provided(recipe):
            continue
        reason = lacking.why_missing(capability) or f"it would mean that {capability.sentence}"
        yield recipe.problem(
            f"{path[-1]} needs {capability.value}, which {recipe.name_of(lacking)} does not "
            f"provide: {reason}. {ways_to(capability, config, recipe)}",
            *path,
        )


def check_differentiable(recipe: Recipe) -> Iterator[Problem]:
    """What an objective of the view ``reward`` asks of rewards and of the other objectives."""
    objectives = recipe.objective.items()
    label = next((label for label, c in objectives if c.view_wanted() == "reward"), None)
    if label is None:
        return
    for other, config in objectives:
        if config.draws_with() == "lagging":
            yield recipe.problem(
                f"{label} draws its samples again under the current weights, but {other} has them "
                "drawn by the lagging ones, so these are other samples. Leave one of the two "
                "out, or let the current weights draw",
                "objective", label,
            )  # fmt: skip
    for name, reward in recipe.reward.items():
        if not reward.differentiable:
            media = recipe.policy.provides() & MEDIA if recipe.policy else reward.media
            way = _other_rewards(recipe, media, differentiable=True, evaluation_only=False)
            yield recipe.problem(
                f"{label} differentiates the reward, and {recipe.name_of(reward)} has no gradient. "
                f"{way}, or leave {label} out",
                "reward", name,
            )  # fmt: skip


def _other_rewards(recipe: Recipe, media: frozenset[Capability], **wanted: bool) -> str:
    """Advice to take another reward on such media, of which the attributes are as wanted."""

    def fits(reward: type[RewardConfig]) -> bool:
        return bool(reward.media & media) and all(getattr(reward, k) == wanted[k] for k in wanted)

    return choose(recipe.registry.rewards, fits)


def _media(media: frozenset[Capability]) -> str:
    return " and ".join(sorted(medium.value for medium in media)) or "no declared medium"


def check_rewards(recipe: Recipe) -> Iterator[Problem]:
    """Rewards and measures judge what the policy makes, and each stands where it may."""
    policy, judges = recipe.policy, dict[KeyPath, RewardConfig]()
    for label, config in recipe.reward.items():
        judges["reward", label] = config
        if config.evaluation_only:
            message = "is for evaluation only; name it under evaluate.metrics"
            yield recipe.problem(f"{recipe.name_of(config)} {message}", "reward", label)
    judges |= {("evaluate", "metrics", label): config for label, config in recipe.metrics.items()}
    if policy is None:
        return
    made = policy.provides() & MEDIA
    for path, config in judges.items():
        if not made & config.media:
            way = _other_rewards(recipe, made, evaluation_only=config.evaluation_only)
            yield recipe.problem(
                f"{recipe.name_of(config)} judges {_media(config.media)}, but "
                f"{recipe.name_of(policy)} makes {_media(made)}. {way}",
                *path,
            )
        yield from _unmet_needs(recipe, config.needs(), config, path)


def check_numbers(recipe: Recipe) -> Iterator[Problem]:
    """Group sizes, the filter, minibatches and the metric that is looked at."""
    train, objectives = recipe.train, recipe.objective.values()
    alone = train.num_generations < 2
    if alone and any(c.uses_reward and c.view_wanted() != "reward" for c in objectives):
        for key, value in recipe.advantage.within_groups.items():
            instead = value.replace("group", "batch") if "group" in value else "batch_mean"
            yield recipe.problem(
                f"advantage.{key}: {value} compares the samples of a prompt, and num_generations "
                f"is 1. Take at least 2, or advantage.{key}: {instead}",
                "train", "num_generations",
            )  # fmt: skip
    baseline, own = recipe.advantage.baseline, recipe.registry.baselines
    if baseline not in (*BASELINES, *own):
        known = (*BASELINES, *own)
        hint = did_you_mean(baseline, known) or "."
        message = f"there is no baseline `{baseline}`{hint} There are {join_names(known)}"
        yield recipe.problem(message, "advantage", "baseline")
    if alone and recipe.filter.active:
        message = "the spread of a group of one sample is always 0, and the filter rejects it"
        yield recipe.problem(f"{message}; take at least 2", "train", "num_generations")
    if recipe.filter.then == "resample" and not recipe.filter.active:
        message = "nothing is rejected without filter.min_std or filter.std_percentile"
        yield recipe.problem(message, "filter", "then")
    if train.num_minibatches > train.num_prompts:
        yield recipe.problem(
            f"groups stay whole, so {train.num_prompts} prompts cannot be split into "
            f"{train.num_minibatches} minibatches; take at most {train.num_prompts}",
            "train", "num_minibatches",
        )  # fmt: skip
    labels, primary = (*recipe.metrics, "reward"), recipe.evaluate.primary_metric
    if primary is not None and not primary.startswith(labels):
        message = f"no such metric `{primary}`; they are {', '.join(labels)}"
        yield recipe.problem(message, "evaluate", "primary_metric")


def check_prompts(recipe: Recipe) -> Iterator[Problem]:
    """Prompt files can be read, and the policy, rewards and measures take every prompt in them."""
    if recipe.prompts.file is None:
        yield recipe.problem("is missing; name a file of prompts to train on", "prompts", "file")
    if recipe.prompts.evaluate is None and (recipe.metrics or recipe.evaluate.every > 0):
        message = "is missing: evaluate measures on held-out prompts; name a file of them"
        yield recipe.problem(message, "prompts", "evaluate")
    judges = {"file": [*recipe.reward.values()]}
    judges["evaluate"] = [*judges["file"], *recipe.metrics.values()]
    for key, file in recipe.prompt_files.items():
        if not file.path.is_file():
            yield recipe.problem(f"there is no file {file.path}", "prompts", key)
            continue
        try:
            prompts = file.prompts
        except RecipeError as error:
            yield from problems_of(error)
            continue
        if recipe.policy is not None:
            yield from refused(prompts, recipe.policy.check_prompt, file.place)
        for config in judges[key]:
            if unfit := _unjudged(prompts, config):
                yield recipe.problem(f"{file.path}: {unfit}", "prompts", key)


def _unjudged(prompts: Sequence[Prompt], config: RewardConfig) -> str:
    """How many prompts a reward cannot judge, and why the first one; empty where it can."""
    found = []
    for prompt in prompts:
        try:
            config.check_prompt(prompt)
        except RewardError as error:
            found.append(str(error))
    return f"{len(found)} of {len(prompts)} prompts do not fit; {found[0]}" if found else ""


CHECKS: tuple[Callable[[Recipe], Iterable[Problem]], ...] = (
    check_paradigm,
    check_views,
    check_differentiable,
    check_rewards,
    check_numbers,
    weights_problems,
    check_prompts,
)
"""What is asked of a recipe, of which parts that are injected are left out."""
