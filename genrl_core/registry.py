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
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy

from genrl_core import __version__, hookspecs
from genrl_core.errors import PluginError
from genrl_core.function_rewards import config_of
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
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

PLURALS: dict[Kind, str] = {
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
        base, what = KINDS[kind], f"{kind} {name!r}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise PluginError(f"{kind} name {name!r}: use lower-case letters, digits and _")
        if not (isinstance(config, type) and issubclass(config, base)):
            wanted = f"{base.__name__}{' and no function' if kind == 'reward' else ''}"
            raise PluginError(f"{what}: {config!r} is no subclass of {wanted}")
        if getattr(config, "__abstractmethods__", None):
            raise PluginError(f"{what}: {config.__name__} defines no build()")
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
        policies, samplers, rewards, objectives: name -> config class; names that two plugins claim
            are left out.
        plugins: every plugin that was looked at, broken ones with their reason.
        commands: verbs for the command line.
        recipe_folders: folders of recipes with their owners, GenRL's own first.
        files: the plugin files that were given.
    """

    def __init__(self) -> None:
        own = Plugin("genrl_core", "genrl-core", __version__, str(Path(__file__).parent))
        self.plugins: list[Plugin] = []
        self.commands: list[Command] = []
        self.recipe_folders = [(folder, own) for folder in (builtin_recipes(),) if folder.is_dir()]
        self.files: list[Path] = []
        self._components: dict[Kind, dict[str, list[tuple[type[Component], Plugin]]]] = {
            kind: {} for kind in KINDS
        }
        self._modules: set[str] = set()
        self._recipes: dict[str, list[tuple[Path, Plugin]]] = {}
        self._recipes_are_from: list[tuple[Path, Plugin]] = []

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
        distribution, version = _name_and_version(point.dist)
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
        loaded = None
        if file.name == "__init__.py":
            name = file.resolve().parent.name
            loaded = sys.modules.get(name)
        if loaded is not None and Path(loaded.__file__ or "").resolve() != file.resolve():
            other = f"another package {name} is installed, {loaded.__file__}"
            raise PluginError(f"plugin file {file}: {other}; uninstall it or rename one")
        module = loaded or _import_file(name, file)
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

    @property
    def policies(self) -> Mapping[str, type[PolicyConfig]]:
        return self._unambiguous("policy")

    @property
    def samplers(self) -> Mapping[str, type[SamplerConfig]]:
        return self._unambiguous("sampler")

    @property
    def rewards(self) -> Mapping[str, type[RewardConfig]]:
        return self._unambiguous("reward")

    @property
    def objectives(self) -> Mapping[str, type[ObjectiveConfig]]:
        return self._unambiguous("objective")

    def names(self, kind: Kind) -> list[str]:
        """The names of a kind; those that two plugins claim are left out."""
        return list(self._unambiguous(kind))

    def _unambiguous(self, kind: Kind) -> dict[str, Any]:
        entries = sorted(self._components[kind].items())
        return {name: owners[0][0] for name, owners in entries if len(owners) == 1}

    @property
    def broken(self) -> list[Plugin]:
        """Plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.reason]

    def broken_plugins_note(self) -> str:
        """Which plugins are broken, for the end of a message about something that is missing."""
        broken = "; ".join(f"{plugin}: {plugin.reason}" for plugin in self.broken)
        return f". Broken plugins, which may hold it: {broken}" if broken else ""

    @property
    def clashes(self) -> list[str]:
        """One sentence per name that more than one component claims."""
        claims = {
            f"{kind} `{name}`": [plugin for _, plugin in owners]
            for kind in KINDS
            for name, owners in sorted(self._components[kind].items())
        }
        for name, files in self.recipes().items():
            claims[f"recipe `{name}`"] = [plugin for _, plugin in files]
        for command in self.commands:
            claims.setdefault(f"command `{command.name}`", []).append(command.plugin)
        return [_clash(what, plugins) for what, plugins in claims.items() if len(plugins) > 1]

    def get(self, kind: Kind, name: str) -> type[Component]:
        """The config class of a name.

        Raises:
            PluginError: nobody registered it (with the nearest name and the plugins that are
                broken), or more than one did.
        """
        return self._registered(kind, name)[0]

    def owner(self, kind: Kind, name: str) -> Plugin:
        """The plugin that registered a name; raises like ``get``."""
        return self._registered(kind, name)[1]

    def _registered(self, kind: Kind, name: str) -> tuple[type[Component], Plugin]:
        known = self._components[kind]
        owners = known.get(name, [])
        if len(owners) == 1:
            return owners[0]
        if owners:
            raise PluginError(_clash(f"{kind} `{name}`", [plugin for _, plugin in owners]))
        others = [other for other in KINDS if name in self._components[other]]
        hint = f"; `{name}` is a registered {others[0]}." if others else did_you_mean(name, known)
        rest = f"Registered {PLURALS[kind]}: {join_names(known)}{self.broken_plugins_note()}"
        raise PluginError(f"unknown {kind} `{name}`{hint or '.'} {rest}")

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

    def recipes(self) -> Mapping[str, list[tuple[Path, Plugin]]]:
        """Recipe name -> its files with their owners; a name with two files is a clash.

        The folders are walked once, and again when there are others.
        """
        if self._recipes_are_from != self.recipe_folders:
            found: dict[str, list[tuple[Path, Plugin]]] = {}
            for folder, plugin in self.recipe_folders:
                for path in sorted(folder.rglob("*.yaml")):
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    found.setdefault(name, []).append((path, plugin))
            self._recipes = dict(sorted(found.items()))
            self._recipes_are_from = list(self.recipe_folders)
        return self._recipes

    def find_recipe(self, name: str) -> Path:
        """The file of a recipe's name.

        Raises:
            PluginError: there is none (with the nearest name), or more than one.
        """
        files = self.recipes().get(name, [])
        if len(files) > 1:
            raise PluginError(_clash(f"recipe `{name}`", [plugin for _, plugin in files]))
        if not files:
            hint = did_you_mean(name, self.recipes()) or "."
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
    for kind, plural in PLURALS.items():
        register = found.reward if kind == "reward" else partial(found.component, kind)
        getattr(manager.hook, f"register_{plural}")(register=register)
    manager.hook.register_recipes(register=found.recipe_folder)
    manager.hook.register_commands(register=found.command)
    return found


def _clash(what: str, plugins: Sequence[Plugin]) -> str:
    owners = " and ".join(f"{plugin} at {plugin.path}" for plugin in plugins)
    return f"{what} is registered more than once, by {owners}; uninstall one or rename it"


@lru_cache(maxsize=8)
def _name_and_version(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Kept, since each asks for the metadata to be parsed, and a package may bring many plugins."""
    if distribution is None:
        return "", ""
    if distribution.name == "genrl-core":  # an editable install keeps the number it came with
        return "genrl-core", __version__
    return distribution.name, distribution.version


def _origin(module: str) -> str:
    """Where a module lies, without importing it."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    return (spec.origin or "") if spec else ""


def _reason(error: BaseException) -> str:
    """An exception in one line, with the line of the plugin that raised it."""
    if isinstance(error, PluginError):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    machinery = ("<frozen", __file__, pluggy.__path__[0], importlib.__path__[0])
    own = [frame for frame in frames if not frame.filename.startswith(machinery)]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text
