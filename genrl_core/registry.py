"""The registry: which components, recipes and verbs there are, and which plugin gave each."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from genrl_core import __version__
from genrl_core.errors import PluginError
from genrl_core.interfaces.configs import (
    Component,
    ObjectiveConfig,
    PolicyConfig,
    RewardConfig,
    SamplerConfig,
)
from genrl_core.registration import KINDS, PLURALS, Kind, Plugin, Registration, registration_of
from genrl_core.text import did_you_mean, join_names

GROUP = "genrl_core"


class Registry:
    """Everything that plugins registered. An object: two registries know nothing of each other.

    Attributes:
        policies, samplers, rewards, objectives: name -> config class; names that two plugins claim
            are left out.
        plugins: every plugin that was looked at, broken ones with their reason.
        commands: verb -> command, for the command line.
        baselines: name -> function ``(rewards, group) -> [N]``, for ``advantage.baseline``.
        recipe_folders: folders of recipes with their owners, GenRL's own first.
        files: the plugin files that were given.
    """

    def __init__(self) -> None:
        own = Plugin("genrl_core", "genrl-core", __version__, str(Path(__file__).parent))
        self.plugins: list[Plugin] = []
        self.commands: dict[str, Callable[..., Any]] = {}
        self.baselines: dict[str, Callable[..., Any]] = {}
        self.recipe_folders = [(folder, own) for folder in (builtin_recipes(),) if folder.is_dir()]
        self.files: list[Path] = []
        self._components: dict[Kind, dict[str, type[Component]]] = {kind: {} for kind in KINDS}
        self._owners: dict[str, list[Plugin]] = {}
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
            found = registration_of(point.load())
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
            found = registration_of(loaded)
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {name} is broken: {_reason(error)}") from error
        self._take(Plugin(name, path=getattr(loaded, "__file__", None) or ""), found)

    def _take(self, plugin: Plugin, found: Registration) -> None:
        plugin = replace(plugin, registered=found.summary())
        self.plugins.append(plugin)
        for kind, name, config in found.components:
            self._components[kind][name] = config
            self._owners.setdefault(f"{kind} `{name}`", []).append(plugin)
        self.recipe_folders += [(folder, plugin) for folder in found.recipes]
        for name, command in found.commands:
            self.commands.setdefault(name, command)
            self._owners.setdefault(f"command `{name}`", []).append(plugin)
        for name, function in found.baselines:
            self.baselines[name] = function
            self._owners.setdefault(f"baseline `{name}`", []).append(plugin)

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
        known = sorted(self._components[kind].items())
        return {name: c for name, c in known if len(self._owners[f"{kind} `{name}`"]) == 1}

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
        """One sentence per name that more than one component, recipe or verb claims."""
        recipes = {
            f"recipe `{name}`": [plugin for _, plugin in files]
            for name, files in self.recipes().items()
        }
        return [_clash(*each) for each in (self._owners | recipes).items() if len(each[1]) > 1]

    def clash_of_command(self, name: str) -> str:
        """What is wrong with a verb that two plugins claim; empty where one does."""
        owners = self._owners[f"command `{name}`"]
        return _clash(f"command `{name}`", owners) if len(owners) > 1 else ""

    def get(self, kind: Kind, name: str) -> type[Component]:
        """The config class of a name.

        Raises:
            PluginError: nobody registered it (with the nearest name and the plugins that are
                broken), or more than one did.
        """
        known = self._components[kind]
        if name in known:
            self.owner(kind, name)
            return known[name]
        others = [other for other in KINDS if name in self._components[other]]
        hint = f"; `{name}` is a registered {others[0]}." if others else did_you_mean(name, known)
        rest = f"Registered {PLURALS[kind]}: {join_names(known)}{self.broken_plugins_note()}"
        raise PluginError(f"unknown {kind} `{name}`{hint or '.'} {rest}")

    def owner(self, kind: Kind, name: str) -> Plugin:
        """The plugin that registered a name, which must be registered.

        Raises:
            PluginError: more than one did.
        """
        first, *others = self._owners[f"{kind} `{name}`"]
        if others:
            raise PluginError(_clash(f"{kind} `{name}`", [first, *others]))
        return first

    def name_of(self, config: Component | type[Component]) -> str:
        """The name under which a config class, or the class of a config, is registered.

        Raises:
            PluginError: it is not registered.
        """
        wanted = config if isinstance(config, type) else type(config)
        for components in self._components.values():
            for name, known in components.items():
                if known is wanted:
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
    machinery = ("<frozen", str(Path(__file__).parent), pluggy.__path__[0], importlib.__path__[0])
    own = [frame for frame in frames if not frame.filename.startswith(machinery)]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text
