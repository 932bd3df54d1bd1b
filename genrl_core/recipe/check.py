"""Refusing impossible combinations, on configs alone, with the reason and the way out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import ValidationError

from genrl_core.errors import RecipeError, RewardError
from genrl_core.interfaces.capability import MEDIA, Capability
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.interfaces.media import Prompt
from genrl_core.recipe.problems import Problem, Route, dotted, raise_if
from genrl_core.recipe.prompts import load_prompts, refused
from genrl_core.recipe.recipe import RESOLVED_FILE, Recipe, load_recipe

if TYPE_CHECKING:
    View = Any

C = TypeVar("C", bound=Component)

_VIEW_NEEDS: "Mapping[View, Capability]" = {
    "steps": Capability.STEP_LOGP,
    "elbo": Capability.ELBO,
    "denoising": Capability.DENOISING,
    "reward": Capability.DIFFERENTIABLE,
}

_FROM_SAMPLER = {
    Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY, Capability.PREVIEW,
}  # fmt: skip


def resolve_views(recipe: Recipe) -> "dict[str, View]":
    """The view of every objective: its own, or the first that it can join of its neighbours'.

    The view ``reward`` has no log-densities to join. What stands beside it alone reads the first of
    its views that the policy and the sampler give.

    Raises:
        RecipeError: no objective has a view of its own.
    """
    wanted = {label: config.view_wanted() for label, config in recipe.objective.items()}
    own = [view for view in wanted.values() if view is not None]
    if wanted and not own:
        raise RecipeError(str(_no_view(recipe)))
    found: dict[str, View] = {}
    for label, config in recipe.objective.items():
        fitting = [view for view in config.compatible_views() if view in own]
        if not fitting and "reward" in own:
            given = _provided(recipe.policy) | _provided(recipe.sampler)
            fitting = [v for v in config.compatible_views() if _VIEW_NEEDS[v] in given] or [
                *config.compatible_views()
            ]
        found[label] = wanted[label] or (fitting or own)[0]
    return found


def _provided(config: PolicyConfig | SamplerConfig | None) -> frozenset[Capability]:
    return frozenset() if config is None else config.provides()


def holds_weights(folder: Path) -> bool:
    """Whether it is the folder of a run or of a checkpoint."""
    return (folder / "checkpoints").is_dir() or (folder / "MANIFEST.json").is_file()


def holds_own_weights(weights: str | None) -> bool:
    """Whether GenRL itself gives these weights, and not the policy."""
    return weights is not None and (weights.startswith("recipe:") or holds_weights(Path(weights)))


def giver_of(recipe: Recipe) -> Recipe | None:
    """The recipe of whoever trained ``policy.weights``: of ``recipe:NAME``, of a run, or None.

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
    is silent takes what the giver of the weights began with.

    Raises:
        RecipeError: the giver's recipe is wrong.
    """
    config = recipe.policy
    if config is None or not holds_own_weights(config.weights):
        return config
    changes: dict[str, str | None] = {"weights": None}
    giver = giver_of(recipe)
    begun = None if giver is None else built_policy(giver)
    if begun is not None and getattr(config, "base", "") is None:
        changes["base"] = begun.weights or getattr(begun, "base", None)
    return config.model_copy(update=changes)


def unread_weights(recipe: Recipe) -> Problem | None:
    """What is wrong with weights that neither GenRL nor the policy itself would load."""
    config = recipe.policy
    if config is None or config.weights is None or config.loads_weights:
        return None
    if holds_own_weights(config.weights):
        return None
    route = ("policy", "weights")
    message = (
        f"{config.weights} is no folder of a run (with checkpoints/) or of a checkpoint (with "
        f"MANIFEST.json), and {recipe.registry.name_of(config)} loads no others. Give one of "
        "these, or recipe:NAME, or null for the initial weights"
    )
    return Problem(recipe.place(*route), dotted(route), message)


def _no_view(recipe: Recipe) -> Problem:
    labels = " and ".join(f"`{label}`" for label in recipe.objective)
    message = f"{labels} take the view of another objective, and there is none; add one"
    return Problem(recipe.place("objective"), "objective", message)


def negotiate(
    recipe: Recipe,
    *,
    policy_injected: bool = False,
    sampler_injected: bool = False,
    rewards_injected: bool = False,
) -> None:
    """Refuse what cannot work.

    Args:
        recipe: a valid recipe.
        policy_injected, sampler_injected, rewards_injected: what replaces the recipe's own, so that
            nothing can be said about it here.

    Raises:
        RecipeError: every reason with its line and the way out.
    """
    raise_if(find_problems(recipe, policy_injected, sampler_injected, rewards_injected))


def find_problems(
    recipe: Recipe,
    policy_injected: bool = False,
    sampler_injected: bool = False,
    rewards_injected: bool = False,
) -> list[Problem]:
    """What ``negotiate`` refuses, as a list; empty where everything fits."""
    judge = _Judge(
        recipe,
        None if policy_injected else recipe.policy,
        None if sampler_injected else recipe.sampler,
    )
    if recipe.policy is None and not policy_injected:
        judge.report(("policy",), "there is no policy; add `policy: {use: NAME}`")
    if recipe.sampler is None and not sampler_injected:
        judge.report(("sampler",), "there is no sampler; add `sampler: {use: NAME}`")
    judge.paradigms()
    judge.data()
    judge.objectives(rewards_injected)
    judge.rewards()
    judge.numbers()
    judge.files()
    judge.prompts(rewards_injected)
    return judge.problems


class _Judge:
    """Looks at one recipe; ``policy`` and ``sampler`` are None where nothing is known of them."""

    def __init__(self, recipe: Recipe, policy: PolicyConfig | None, sampler: SamplerConfig | None):
        self.recipe, self.policy, self.sampler = recipe, policy, sampler
        self.problems: list[Problem] = []

    def report(self, route: Route, message: str) -> None:
        self.problems.append(Problem(self.recipe.place(*route), dotted(route), message))

    def name(self, config: Component) -> str:
        return self.recipe.registry.name_of(config)

    def paradigms(self) -> None:
        policy, sampler = self.policy, self.sampler
        if policy is None or sampler is None:
            return
        if policy.paradigm == sampler.paradigm:
            for field, why in sampler.incompatible_fields(policy).items():
                self.report(("sampler", field), why)
            return
        fitting = [
            name
            for name, schema in self.recipe.registry.samplers.items()
            if schema.paradigm == policy.paradigm and schema.supervised == sampler.supervised
        ]
        self.report(
            ("sampler",),
            f"{self.name(sampler)} draws from {sampler.paradigm} policies, but "
            f"{self.name(policy)} is {policy.paradigm}. {_choose(fitting)}",
        )

    def data(self) -> None:
        """A supervised sampler's data are of the kind that the policy makes."""
        policy, sampler = self.policy, self.sampler
        if policy is None or sampler is None or policy.paradigm != sampler.paradigm:
            return
        made = policy.provides() & MEDIA
        if sampler.gives is None or sampler.gives in made:
            return
        fitting = [
            name
            for name, schema in self.recipe.registry.samplers.items()
            if schema.supervised and schema.paradigm == policy.paradigm and schema.gives in made
        ]
        self.report(
            ("sampler",),
            f"{self.name(sampler)} returns data of the kind {sampler.gives.value}, but "
            f"{self.name(policy)} makes {_media(made)}. {_choose(fitting)}",
        )

    def objectives(self, rewards_injected: bool) -> None:
        recipe = self.recipe
        if not recipe.objective:
            known = ", ".join(recipe.registry.objectives) or "none is registered"
            self.report(("objective",), f"there is no objective; add one of: {known}")
            return
        if all(config.view_wanted() is None for config in recipe.objective.values()):
            self.problems.append(_no_view(recipe))
            return
        views = resolve_views(recipe)
        for label, config in recipe.objective.items():
            self._objective(label, config, views[label])
        if "reward" in views.values():
            labels = [label for label, view in views.items() if view == "reward"]
            self._differentiable(labels[0], rewards_injected)
        policy = self.policy if {"elbo", "denoising"} & set(views.values()) else None
        if policy is not None and (problem := policy.draws_problem(recipe.train.draws)):
            self.report(("train", "draws"), problem)
        using = [label for label, config in recipe.objective.items() if config.uses_reward]
        if using and not (recipe.reward or rewards_injected):
            names = ", ".join(using)
            message = f"there is no reward, but objective {names} learns from rewards; add one"
            self.report(("reward",), message)

    def _objective(self, label: str, config: ObjectiveConfig, view: "View") -> None:
        route = ("objective", label)
        if config.view_wanted() is None and view not in config.compatible_views():
            views = " or ".join(config.compatible_views())
            self.report(
                route,
                f"{label} has its numbers in the view {views}, and its neighbours have {view}. "
                f"Choose a neighbour with view: {views}, or leave {label} out",
            )
            return
        supervised = self.sampler is not None and self.sampler.supervised
        if self.sampler is not None and supervised and view in ("steps", "reward"):
            reads = "reads" if view == "steps" else "differentiates"
            self.report(
                route,
                f"{label} {reads} the steps of a rollout, but {self.name(self.sampler)} returns "
                f"data and takes no steps. Choose a sampler that draws{self._other_view(config)}",
            )
            return
        for capability in sorted(config.needs() | {_VIEW_NEEDS[view]}, key=list(Capability).index):
            self._need(route, config, capability)

    def _differentiable(self, label: str, rewards_injected: bool) -> None:
        """What the objective ``label`` of the view ``reward`` asks of rewards and neighbours."""
        recipe = self.recipe
        for other, config in recipe.objective.items():
            if config.draws_with() == "lagging":
                self.report(
                    ("objective", label),
                    f"{label} draws its samples again under the current weights, but {other} has "
                    "them drawn by the lagging ones (old), so these are other samples. Leave one "
                    "of the two out, or let the current weights draw",
                )
        for name, reward in {} if rewards_injected else recipe.reward.items():
            if not reward.differentiable:
                media = self.policy.provides() & MEDIA if self.policy else reward.media
                fitting = [
                    known
                    for known, schema in self.recipe.registry.rewards.items()
                    if schema.differentiable and not schema.evaluation_only
                    and schema.media & media
                ]  # fmt: skip
                self.report(
                    ("reward", name),
                    f"{label} differentiates the reward, and {self.name(reward)} has no gradient. "
                    f"{_choose(fitting)}, or leave {label} out",
                )

    def _need(self, route: Route, config: Component, capability: Capability) -> None:
        if self.policy is None or self.sampler is None:
            known = self.sampler if capability in _FROM_SAMPLER else self.policy
            if known is None or capability in known.provides():
                return
        elif capability in self.policy.provides() | self.sampler.provides():
            return
        ways: list[str] = []
        if capability in _FROM_SAMPLER and self.sampler is not None:
            lacking, reason = self.name(self.sampler), self.sampler.why_missing(capability)
            ways = self._samplers_with(capability)
        else:
            policy = cast(PolicyConfig, self.policy)
            lacking, reason = self.name(policy), policy.why_missing(capability)
            ways = self._policies_with(capability)
        other = self._other_view(config) if isinstance(config, ObjectiveConfig) else ""
        reason = reason or f"it would mean that {capability.sentence}"
        way = ", ".join(ways) + other if ways else other.removeprefix(", or ")
        way = f"Choose {way}" if way else ""
        self.report(
            route,
            f"{route[-1]} needs {capability.value}, which {lacking} does not provide: {reason}. "
            f"{way or self._elsewhere(capability) + self._without(config)}",
        )

    def _samplers_with(self, capability: Capability) -> list[str]:
        """Samplers of the paradigm that provide it, this one by other values included."""
        own = cast(SamplerConfig, self.sampler)
        found = []
        for name, schema in self.recipe.registry.samplers.items():
            if schema.paradigm != own.paradigm or schema.supervised != own.supervised:
                continue
            config = _example(schema, own)
            if config is not None and capability in config.provides():
                found.append(f"{name} with its default settings" if schema is type(own) else name)
        return found

    def _policies_with(self, capability: Capability, *, elsewhere: bool = False) -> list[str]:
        """Policies that provide it: of this paradigm, or of all others."""
        own = cast(PolicyConfig, self.policy)
        found = []
        for name, schema in self.recipe.registry.policies.items():
            apart = schema.paradigm != own.paradigm
            config = _example(schema, own) if apart == elsewhere else None
            if config is not None and capability in config.provides():
                found.append(f"{name} with its default settings" if schema is type(own) else name)
            elif config is not None and capability in schema.fields_enabling:
                fields = schema.fields_enabling[capability].items()
                asked = ", ".join(f"{key}: {str(value).lower()}" for key, value in fields)
                found.append(f"{name} with {asked}")
        return found

    def _elsewhere(self, capability: Capability) -> str:
        """What to say where nothing of this paradigm provides it."""
        if capability in _FROM_SAMPLER or self.policy is None:
            return "No registered component provides it"
        found = self._policies_with(capability, elsewhere=True)
        if not found:
            return "No registered component provides it"
        return f"Of other paradigms, {' and '.join(found)} {'do' if len(found) > 1 else 'does'}"

    def _without(self, config: Component) -> str:
        """What to choose where nothing can give what ``config`` needs."""
        if not isinstance(config, ObjectiveConfig):
            return ". Choose another reward"
        given = _provided(self.policy) | _provided(self.sampler)
        found = []
        for name, schema in self.recipe.registry.objectives.items():
            fields = schema.suggested_values()
            other = None if fields is None else schema.model_validate(fields)
            view = None if other is None else other.view_wanted()
            if other is not None and view and other.needs() | {_VIEW_NEEDS[view]} <= given:
                found.append(name)
        such = f", such as {' or '.join(found[:3])}" if found else ""
        return f". Choose an objective that does without{such}"

    def _other_view(self, config: ObjectiveConfig) -> str:
        """``, or view: elbo`` where the objective has a view that this policy can give."""
        field = type(config).model_fields.get("view")
        given = _provided(self.policy) | _provided(self.sampler)
        supervised = self.sampler is not None and self.sampler.supervised
        for view in get_args(field.annotation) if field else ():
            other = _example(type(config), config, view=view)
            if other is None or (wanted := other.view_wanted()) is None:
                continue
            fits = other.needs() | {_VIEW_NEEDS[wanted]} <= given
            if fits and not (supervised and wanted == "steps"):
                return f", or view: {view}"
        return ""

    def rewards(self) -> None:
        for label, config in self.recipe.reward.items():
            if config.evaluation_only:
                self.report(
                    ("reward", label),
                    f"{self.name(config)} is for evaluation only; name it under evaluate.metrics",
                )
            self._medium(("reward", label), config)
        for label, config in self.recipe.metrics.items():
            self._medium(("evaluate", "metrics", label), config)

    def _medium(self, route: Route, config: RewardConfig) -> None:
        if self.policy is None:
            return
        given = self.policy.provides() & MEDIA
        if not given & config.media:
            fitting = [
                name
                for name, schema in self.recipe.registry.rewards.items()
                if schema.media & given and schema.evaluation_only == config.evaluation_only
            ]
            self.report(
                route,
                f"{self.name(config)} judges {_media(config.media)}, but "
                f"{self.name(self.policy)} makes {_media(given)}. {_choose(fitting)}",
            )
        for capability in sorted(config.needs(), key=list(Capability).index):
            self._need(route, config, capability)

    def numbers(self) -> None:
        """Group sizes and minibatches."""
        recipe, train = self.recipe, self.recipe.train
        learns = any(
            config.uses_reward and config.view_wanted() != "reward"
            for config in recipe.objective.values()
        )
        if train.num_generations < 2 and learns:
            for key, value in recipe.advantage.within_groups.items():
                self.report(
                    ("train", "num_generations"),
                    f"advantage.{key}: {value} compares the samples of a prompt, and "
                    f"num_generations is 1. Take at least 2, or advantage.{key}: "
                    f"{value.replace('group', 'batch') if 'group' in value else 'batch_mean'}",
                )
        if train.num_generations < 2 and recipe.filter.active:
            message = "the spread of a group of one sample is always 0, and the filter rejects it"
            self.report(("train", "num_generations"), f"{message}; take at least 2")
        if recipe.filter.then == "resample" and not recipe.filter.active:
            message = "nothing is rejected without filter.min_std or filter.std_percentile"
            self.report(("filter", "then"), message)
        if train.num_minibatches > train.num_prompts:
            self.report(
                ("train", "num_minibatches"),
                f"groups stay whole, so {train.num_prompts} prompts cannot be split into "
                f"{train.num_minibatches} minibatches; take at most {train.num_prompts}",
            )

    def files(self) -> None:
        """Prompt files and what gives the weights."""
        recipe = self.recipe
        if self.policy is not None:
            self._weights(self.policy)
        if recipe.prompts.file is None:
            self.report(("prompts", "file"), "is missing; name a file of prompts to train on")
        evaluates = bool(recipe.metrics) or recipe.evaluate.every > 0
        if recipe.prompts.evaluate is None and evaluates:
            message = "is missing: evaluate measures on held-out prompts; name a file of them"
            self.report(("prompts", "evaluate"), message)
        for key in ("file", "evaluate"):
            path = getattr(recipe.prompts, key)
            if path is not None and not Path(path).is_file():
                self.report(("prompts", key), f"there is no file {path}")
        labels = (*recipe.metrics, "reward")
        headline = recipe.evaluate.primary_metric
        if headline is not None and not headline.startswith(labels):
            message = f"no such metric `{headline}`; they are {', '.join(labels)}"
            self.report(("evaluate", "primary_metric"), message)
        try:
            recipe.digest()
        except RecipeError as error:
            self.problems.append(Problem("", "", str(error)))

    def _weights(self, policy: PolicyConfig) -> None:
        """Whether weights are given that the policy can begin from, by the configs alone."""
        if (unread := unread_weights(self.recipe)) is not None:
            self.problems.append(unread)
            return
        try:
            given, built = giver_of(self.recipe), built_policy(self.recipe)
        except RecipeError:
            return  # whoever loads the weights says so
        if built is not None and (problem := built.weights_problem()):
            self.report(("policy", "weights"), problem)
        giver = given.policy if given else None
        if giver is None or isinstance(giver, type(policy)) or isinstance(policy, type(giver)):
            return
        self.report(
            ("policy", "weights"),
            f"{policy.weights} holds the weights of {self.name(giver)}, and this policy is "
            f"{self.name(policy)}, another network. Choose policy.use={self.name(giver)}, or "
            "other weights",
        )

    def prompts(self, rewards_injected: bool) -> None:
        """Whether policy and rewards take every prompt: the first step is late to learn of it."""
        recipe, policy = self.recipe, self.policy
        if policy is not None and type(policy).check_prompt is PolicyConfig.check_prompt:
            policy = None
        rewards = [] if rewards_injected else list(recipe.reward.values())
        asking = {"file": rewards, "evaluate": [*rewards, *recipe.metrics.values()]}
        for key, judges in asking.items():
            configs = [c for c in judges if type(c).check_prompt is not RewardConfig.check_prompt]
            path = getattr(recipe.prompts, key)
            if not (configs or policy) or path is None or not Path(path).is_file():
                continue
            try:
                prompts = load_prompts(path)
            except RecipeError:
                continue  # whoever reads the file says so
            if policy is not None:
                self.problems += refused(prompts, policy.check_prompt, path)
            for said in dict.fromkeys(_misfits(prompts, config) for config in configs):
                if said:
                    self.report(("prompts", key), f"{path}: {said}")


def _misfits(prompts: Sequence[Prompt], config: RewardConfig) -> str:
    """How many prompts a reward cannot judge, and why the first one; empty where it can."""
    found = []
    for prompt in prompts:
        try:
            config.check_prompt(prompt)
        except RewardError as error:
            found.append(str(error))
    return f"{len(found)} of {len(prompts)} prompts do not fit; {found[0]}" if found else ""


def _media(media: frozenset[Capability]) -> str:
    return " and ".join(sorted(medium.value for medium in media)) or "no declared medium"


def _choose(names: list[str]) -> str:
    return f"Choose {' or '.join(names)}" if names else "No registered component fits"


def _example(schema: type[C], like: Component, **fields: Any) -> C | None:
    """A config of ``schema`` with its defaults, required fields taken from ``like``; or None."""
    known = like.model_dump()
    required = {
        name: known[name]
        for name, field in schema.model_fields.items()
        if field.is_required() and name in known
    }
    try:
        return schema(**{**required, **fields})
    except ValidationError:
        return None
