"""The registry: which components, recipes and verbs there are, and which plugin gave each."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, cast

import pluggy

from genrl_core import __version__, hookspecs
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
from genrl_core.text import did_you_mean, join_names

GROUP = "genrl_core"

VERBS = ("ls", "show", "cp", "check", "run", "sample", "plugins")
"""GenRL's own verbs, which no plugin may take."""

Kind = Literal["policy", "sampler", "reward", "objective"]

KINDS: dict[Kind, type[Component]] = {
    "policy": PolicyConfig,
    "sampler": SamplerConfig,
    "reward": RewardConfig,
    "objective": ObjectiveConfig,
}

_PLURALS: dict[Kind, str] = {
    "policy": "policies",
    "sampler": "samplers",
    "reward": "rewards",
    "objective": "objectives",
}


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


@dataclass(frozen=True)
class Command:
    """One verb that a plugin adds to the command line."""

    name: str
    command: Callable[..., Any]
    plugin: Plugin


@dataclass
class _Found:
    """What one plugin registers; taken over as a whole or not at all."""

    components: list[tuple[Kind, str, type[Component]]] = field(default_factory=list)
    recipes: list[Path] = field(default_factory=list)
    commands: list[tuple[str, Callable[..., Any]]] = field(default_factory=list)

    def component(self, kind: Kind, name: str, config: Any) -> None:
        base = KINDS[kind]
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise PluginError(f"{kind} name {name!r}: use lower-case letters, digits and _")
        if not (isinstance(config, type) and issubclass(config, base)):
            wanted = f"{base.__name__}{' and no function' if kind == 'reward' else ''}"
            raise PluginError(f"{kind} {name!r}: {config!r} is no subclass of {wanted}")
        if not config.builds and config.build is base.build:
            wanted = "defines no build() and names nothing in builds"
            raise PluginError(f"{kind} {name!r}: {config.__name__} {wanted}")
        if missing := sorted(getattr(config, "__abstractmethods__", ())):
            raise PluginError(f"{kind} {name!r}: {config.__name__} defines no {missing[0]}()")
        if kind in ("policy", "sampler") and not hasattr(config, "paradigm"):
            raise PluginError(f"{kind} {name!r}: {config.__name__} names no paradigm")
        if "use" in config.model_fields:
            raise PluginError(f"{kind} {name!r}: a field cannot be called `use`")
        self.components.append((kind, name, config))

    def reward(self, name: str, reward: Any, *, media: str | None = None) -> None:
        """A config class, or a function and what it judges."""
        if inspect.isfunction(reward):
            reward = config_of(reward, media or "image")
        elif media is not None:
            raise PluginError(f"reward {name!r}: media= goes with a function; a config has its own")
        self.component("reward", name, reward)

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
        )


class Registry:
    """Everything that plugins registered. An object: two registries know nothing of each other.

    Attributes:
        plugins: every plugin that was looked at, broken ones with their reason.
        commands: verbs for the command line.
        recipe_folders: folders of recipes with their owners, GenRL's own first.
        files: the plugin files that were given.
    """

    def __init__(self) -> None:
        own = Plugin("genrl_core", "genrl-core", __version__, str(Path(__file__).parent))
        self.plugins: list[Plugin] = []
        self.commands: list[Command] = []
        self.recipe_folders: list[tuple[Path, Plugin]] = []
        self.files: list[Path] = []
        self._components: dict[Kind, dict[str, list[tuple[type[Component], Plugin]]]] = {
            kind: {} for kind in KINDS
        }
        self._modules: set[str] = set()
        if (recipes := builtin_recipes()).is_dir():
            self.recipe_folders.append((recipes, own))

    @classmethod
    def discover(
        cls, files: Sequence[Path | str] = (), modules: Sequence[ModuleType | str] = ()
    ) -> "Registry":
        """Load every installed plugin, then the given files and modules.

        An installed plugin that cannot be imported, whose hook raises, or whose entry module
        imports torch is left out and remembered with its reason. Files and modules are named
        by the user: they may import what they like, and a broken one is an error at once.

        Raises:
            PluginError: a file or module is missing or broken; with ``GENRL_STRICT=1`` the error of
                an installed plugin itself.
        """
        registry = cls()
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
            registry._add_entry_point(point)
        for file in files:
            registry.add_file(Path(file))
        for module in modules:
            registry.add_module(module)
        return registry

    def _add_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        distribution = point.dist.name if point.dist else ""
        version = point.dist.version if point.dist else ""
        if distribution == "genrl-core":
            version = __version__  # an editable install keeps the number it was installed with
        plugin = Plugin(point.name, distribution, version, _origin(point.module))
        had_torch = "torch" in sys.modules
        try:
            found = _call_hooks(point.load())
            if "torch" in sys.modules and not had_torch:
                raise PluginError("its entry module imports torch: do so in build() or a method")
        except (Exception, SystemExit) as error:  # a broken plugin must disturb nobody
            if os.environ.get("GENRL_STRICT") == "1":
                raise
            self.plugins.append(replace(plugin, reason=_reason(error)))
        else:
            self._modules.add(point.module)
            self._take(plugin, found)

    def add_file(self, path: Path) -> None:
        """Load one plugin file, or one package by its folder; a package keeps its own name.

        Raises:
            PluginError: it does not exist, cannot be imported, or a hook raises; or another package
                of that name is loaded.
        """
        file = path / "__init__.py" if path.is_dir() else path
        if not file.is_file():
            raise PluginError(f"plugin file {file} does not exist")
        name = f"genrl_plugin_file_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
        module = None
        if file.name == "__init__.py":
            name = file.resolve().parent.name
            module = sys.modules.get(name)
        if module is None:
            module = _import_file(name, file)
        elif Path(module.__file__ or "").resolve() != file.resolve():
            other = f"another package {name} is installed, {module.__file__}"
            raise PluginError(f"plugin file {file}: {other}; uninstall it or rename one")
        self.files.append(path)
        self.add_module(module)

    def add_module(self, module: ModuleType | str) -> None:
        """Load one module as a plugin; one that an entry point brought already is left alone.

        Raises:
            PluginError: it cannot be imported, or a hook raises.
        """
        name = module if isinstance(module, str) else module.__name__
        if name in self._modules:
            return
        self._modules.add(name)
        try:
            loaded = importlib.import_module(module) if isinstance(module, str) else module
            found = _call_hooks(loaded)
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {name} is broken: {_reason(error)}") from error
        self._take(Plugin(name, path=getattr(loaded, "__file__", None) or ""), found)

    def _take(self, plugin: Plugin, found: _Found) -> None:
        plugin = replace(plugin, registered=found.summary())
        self.plugins.append(plugin)
        for kind, name, config in found.components:
            self._components[kind].setdefault(name, []).append((config, plugin))
        self.recipe_folders += [(folder, plugin) for folder in found.recipes]
        self.commands += [Command(name, command, plugin) for name, command in found.commands]

    def _unambiguous(self, kind: Kind) -> dict[str, type[Component]]:
        entries = sorted(self._components[kind].items())
        return {name: owners[0][0] for name, owners in entries if len(owners) == 1}

    def names(self, kind: Kind) -> list[str]:
        """The names of a kind; those that two plugins claim are left out."""
        return list(self._unambiguous(kind))

    @property
    def policies(self) -> Mapping[str, type[PolicyConfig]]:
        """Name -> config class; names that two plugins claim are left out."""
        return cast(dict[str, type[PolicyConfig]], self._unambiguous("policy"))

    @property
    def samplers(self) -> Mapping[str, type[SamplerConfig]]:
        """Name -> config class; names that two plugins claim are left out."""
        return cast(dict[str, type[SamplerConfig]], self._unambiguous("sampler"))

    @property
    def rewards(self) -> Mapping[str, type[RewardConfig]]:
        """Name -> config class; names that two plugins claim are left out."""
        return cast(dict[str, type[RewardConfig]], self._unambiguous("reward"))

    @property
    def objectives(self) -> Mapping[str, type[ObjectiveConfig]]:
        """Name -> config class; names that two plugins claim are left out."""
        return cast(dict[str, type[ObjectiveConfig]], self._unambiguous("objective"))

    @property
    def broken(self) -> list[Plugin]:
        """Plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.reason]

    @property
    def clashes(self) -> list[str]:
        """One sentence per name that more than one component claims."""
        claims = {
            f"{kind} `{name}`": [plugin for _, plugin in owners]
            for kind in KINDS
            for name, owners in sorted(self._components[kind].items())
        }
        claims |= {
            f"recipe `{name}`": [p for _, p in files] for name, files in self.recipes().items()
        }
        for command in self.commands:
            claims.setdefault(f"command `{command.name}`", []).append(command.plugin)
        return [_clash(what, plugins) for what, plugins in claims.items() if len(plugins) > 1]

    def get(self, kind: Kind, name: str) -> type[Component]:
        """The config class of a name.

        Raises:
            PluginError: nobody registered it (with the nearest name and the plugins that are
                broken), or more than one did.
        """
        owners = self._components[kind].get(name, [])
        if len(owners) == 1:
            return owners[0][0]
        if owners:
            raise PluginError(_clash(f"{kind} `{name}`", [plugin for _, plugin in owners]))
        others = [other for other in KINDS if name in self._components[other]]
        hint = f"; `{name}` is a registered {others[0]}" if others else ""
        hint = hint or did_you_mean(name, self._components[kind]) or "."
        known = f" Registered {_PLURALS[kind]}: {join_names(self._components[kind])}"
        raise PluginError(f"unknown {kind} `{name}`{hint}{known}{self.broken_plugins_note()}")

    def broken_plugins_note(self) -> str:
        """Which plugins are broken, for the end of a message about something that is missing."""
        broken = "; ".join(f"{plugin}: {plugin.reason}" for plugin in self.broken)
        return f". Broken plugins, which may hold it: {broken}" if broken else ""

    def owner(self, kind: Kind, name: str) -> Plugin:
        """The plugin that registered a name; raises like ``get``."""
        self.get(kind, name)
        return self._components[kind][name][0][1]

    def name_of(self, config: Component | type[Component]) -> str:
        """The name under which a config class, or the class of a config, is registered.

        Raises:
            PluginError: it is not registered.
        """
        wanted = config if isinstance(config, type) else type(config)
        for components in self._components.values():
            for name, owners in components.items():
                if any(owned is wanted for owned, _ in owners):
                    return name
        raise PluginError(f"{wanted.__module__}.{wanted.__name__} is not registered")

    def recipes(self) -> dict[str, list[tuple[Path, Plugin]]]:
        """Recipe name -> its files with their owners; a name with two files is a clash."""
        out: dict[str, list[tuple[Path, Plugin]]] = {}
        for folder, plugin in self.recipe_folders:
            for path in sorted(folder.rglob("*.yaml")):
                name = path.relative_to(folder).with_suffix("").as_posix()
                out.setdefault(name, []).append((path, plugin))
        return dict(sorted(out.items()))

    def find_recipe(self, name: str) -> Path:
        """The file of a recipe's name.

        Raises:
            PluginError: there is none (with the nearest name), or more than one.
        """
        recipes = self.recipes()
        files = recipes.get(name, [])
        if len(files) > 1:
            raise PluginError(_clash(f"recipe `{name}`", [plugin for _, plugin in files]))
        if not files:
            hint = did_you_mean(name, recipes) or "."
            rest = f" `genrl ls recipes` lists all of them{self.broken_plugins_note()}"
            raise PluginError(f"unknown recipe `{name}`{hint}{rest}")
        return files[0][0]


def builtin_recipes() -> Path:
    """The checkout's own recipes where there is a checkout, else the copy inside the package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "recipes"
    is_checkout = checkout.is_dir() and (package.parent / "pyproject.toml").is_file()
    return checkout if is_checkout else package / "_recipes"


def _import_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin file {file} is broken: {_reason(error)}") from error
    return module


def _call_hooks(module: ModuleType) -> _Found:
    found = _Found()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    for kind, plural in _PLURALS.items():
        register = found.reward if kind == "reward" else partial(found.component, kind)
        getattr(manager.hook, f"register_{plural}")(register=register)
    manager.hook.register_recipes(register=found.recipe_folder)
    manager.hook.register_commands(register=found.command)
    return found


def _clash(what: str, plugins: Sequence[Plugin]) -> str:
    owners = " and ".join(f"{plugin} at {plugin.path}" for plugin in plugins)
    return f"{what} is registered more than once, by {owners}; uninstall one or rename it"


def _origin(module: str) -> str:
    """Where a module lies, without importing it."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    return (spec.origin or "") if spec else ""


def _reason(error: BaseException) -> str:
    """An exception in one line, with the line of the plugin that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, PluginError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    machinery = ("<frozen", __file__, pluggy.__path__[0], importlib.__path__[0])
    own = [frame for frame in frames if not frame.filename.startswith(machinery)]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text


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
