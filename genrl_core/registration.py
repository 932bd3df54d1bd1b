"""A plugin and what it registers through its hooks, checked as it does so."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import pluggy

from genrl_core import hookspecs
from genrl_core.errors import PluginError
from genrl_core.interfaces.capability import MEDIA, Capability
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.reward import Reward, RewardFunction
from genrl_core.loop.settings import BASELINES

VERBS = ("ls", "show", "cp", "check", "run", "sample", "plugins")
"""GenRL's own verbs, which no plugin may take."""

Kind = Literal["policy", "sampler", "reward", "objective"]

KINDS: dict[Kind, type[Component]] = {
    "policy": PolicyConfig, "sampler": SamplerConfig,
    "reward": RewardConfig, "objective": ObjectiveConfig,
}  # fmt: skip

PLURALS: dict[Kind, str] = {
    "policy": "policies", "sampler": "samplers", "reward": "rewards", "objective": "objectives",
}  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """One plugin and what became of it.

    Attributes:
        name: of its entry point, its file or its module.
        distribution, version: of the package that brought it; empty for a file or a bare module.
        path: of its entry module; empty where that cannot be found.
        registered: what it registered, as ``sampler confidence``.
        reason: why it is broken; empty where it is not.
    """

    name: str
    distribution: str = ""
    version: str = ""
    path: str = ""
    registered: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({f'{self.distribution} {self.version}'.strip() or self.path})"


@dataclass
class Registration:
    """What one plugin registers; taken over as a whole or not at all."""

    components: list[tuple[Kind, str, type[Component]]] = field(default_factory=list)
    recipes: list[Path] = field(default_factory=list)
    commands: list[tuple[str, Callable[..., Any]]] = field(default_factory=list)
    baselines: list[tuple[str, Callable[..., Any]]] = field(default_factory=list)

    def component(self, kind: Kind, name: str, config: Any) -> None:
        base, what = KINDS[kind], f"{kind} {name!r}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise PluginError(f"{kind} name {name!r}: use lower-case letters, digits and _")
        if not (isinstance(config, type) and issubclass(config, base)):
            wanted = f"{base.__name__}{' and no function' if kind == 'reward' else ''}"
            raise PluginError(f"{what}: {config!r} is no subclass of {wanted}")
        if not config.builds and config.build is base.build:
            wanted = "defines no build() and names nothing in builds"
            raise PluginError(f"{what}: {config.__name__} {wanted}")
        if missing := sorted(getattr(config, "__abstractmethods__", ())):
            raise PluginError(f"{what}: {config.__name__} defines no {missing[0]}()")
        if kind in ("policy", "sampler") and not hasattr(config, "paradigm"):
            raise PluginError(f"{what}: {config.__name__} names no paradigm")
        if "use" in config.model_fields:
            raise PluginError(f"{what}: a field cannot be called `use`")
        self.components.append((kind, name, config))

    def reward(self, name: str, reward: Any, *, media: str | None = None) -> None:
        """A config class, or a function and what it judges."""
        if inspect.isfunction(reward):
            reward = config_of(reward, media or "image")
        elif media is not None:
            raise PluginError(f"reward {name!r}: media= goes with a function; a config has its own")
        self.component("reward", name, reward)

    def objective(self, name: str, objective: Any) -> None:
        """A config class, or a function that is a baseline for ``advantage.baseline``."""
        if not inspect.isfunction(objective):
            self.component("objective", name, objective)
            return
        try:
            inspect.signature(objective).bind(None, None)
        except TypeError:
            wrong = f"cannot be called as {objective.__name__}(rewards, group)"
            raise PluginError(f"baseline {name!r}: {objective.__name__} {wrong}") from None
        if name in BASELINES:
            raise PluginError(f"the baseline `{name}` is GenRL's own; choose another name")
        self.baselines.append((name, objective))

    def recipe_folder(self, folder: Path | str) -> None:
        if not Path(folder).is_dir():
            raise PluginError(f"recipe folder {folder} does not exist")
        self.recipes.append(Path(folder))

    def command(self, command: Callable[..., Any], *, name: str) -> None:
        if name in VERBS:
            raise PluginError(f"the command `{name}` is GenRL's own; choose another name")
        self.commands.append((name, command))

    def summary(self) -> tuple[str, ...]:
        return (
            *(f"{kind} {name}" for kind, name, _ in self.components),
            *(f"recipes in {folder}" for folder in self.recipes),
            *(f"command {name}" for name, _ in self.commands),
            *(f"baseline {name}" for name, _ in self.baselines),
        )


def registration_of(module: ModuleType) -> Registration:
    """Call the hooks of a plugin's entry module.

    Raises:
        PluginError: it registers what it may not.
        Exception: whatever a hook raises, or pluggy of a hook that does not exist.
    """
    found = Registration()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    for kind, plural in PLURALS.items():
        own = {"reward": found.reward, "objective": found.objective}
        register = own.get(kind, partial(found.component, kind))
        getattr(manager.hook, f"register_{plural}")(register=register)
    manager.hook.register_recipes(register=found.recipe_folder)
    manager.hook.register_commands(register=found.command)
    return found


def config_of(function: RewardFunction, media: str) -> type[RewardConfig]:
    """The config class of a plain function that judges ``media``; its one field is the weight.

    Raises:
        PluginError: it has no docstring or takes other arguments, or there is no such medium.
    """
    name, known = function.__name__, sorted(medium.value for medium in MEDIA)
    if not (function.__doc__ or "").strip():
        raise PluginError(f"{name}() has no docstring; `genrl ls` shows the first line of it")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise PluginError(f"{name}() cannot be called as {name}(media, prompts)") from None
    if media not in known:
        raise PluginError(f"{name}() judges the unknown medium {media!r}; there are {known}")
    judged = frozenset({Capability(media)})

    class FunctionReward(Reward):
        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
            return function(media, list(prompts))

    class FunctionConfig(RewardConfig):
        __doc__ = function.__doc__
        media: ClassVar[frozenset[Capability]] = judged

        def build(self) -> Reward:
            return FunctionReward()

    FunctionReward.__name__ = FunctionConfig.__name__ = name
    return FunctionConfig
