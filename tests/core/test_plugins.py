"""The registry: isolation of broken plugins, clashes, owners, recipe folders."""

import importlib.metadata
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genrl_core import Capability, Media, Prompt, Reward, RewardConfig, hookimpl
from genrl_core.errors import PluginError, RewardError
from genrl_core.registry import Registry, builtin_recipes

POCKET = Path(__file__).parent / "pocket_plugin.py"


def distribution(folder: Path, entry: str, source: str, name: str = "acme") -> None:
    """An installed package: a module and the metadata that pip would write."""
    (folder / f"{entry}.py").write_text(source)
    info = folder / f"{name}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[genrl_core]\n{name} = {entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


REWARD = """
from genrl_core import RewardConfig, hookimpl

class Gloss(RewardConfig):
    'How glossy.'
    def build(self): raise NotImplementedError

@hookimpl
def register_rewards(register):
    register({name!r}, Gloss)
"""


FUNCTION = """
from genrl_core import Reward, hookimpl

class Ink(Reward):
    def __call__(self, media, prompts): return []

def ink(media, prompts):
    "{doc}"

def dry(media):
    "{doc}"

@hookimpl
def register_rewards(register):
    register("ink", {call})
"""


def test_an_installed_plugin_is_found_with_its_owner(site: Path) -> None:
    distribution(site, "acme_good", REWARD.format(name="gloss"))
    registry = Registry.discover()
    assert registry.rewards["gloss"].summary() == "How glossy."
    owner = registry.owner("reward", "gloss")
    assert (owner.name, owner.distribution, owner.version) == ("acme", "acme", "2.5")
    assert owner.path == str(site / "acme_good.py")
    assert owner.registered == ("reward gloss",)
    assert registry.name_of(registry.rewards["gloss"]) == "gloss"
    assert registry.name_of(registry.rewards["gloss"]()) == "gloss"


BROKEN = {
    "import error": ("import no_such_module_anywhere", "ModuleNotFoundError"),
    "syntax error": ("def f(:\n", "SyntaxError"),
    "exit": ("raise SystemExit(3)", "SystemExit"),
    "raising hook": (
        REWARD.format(name="first") + "    raise ValueError('boom')\n",
        "ValueError: boom",
    ),
    "misspelt hook": (
        "from genrl_core import hookimpl\n@hookimpl\ndef register_rewrds(register): pass\n",
        "register_rewrds",
    ),
    "wrong argument": (
        "from genrl_core import hookimpl\n@hookimpl\ndef register_rewards(registry): pass\n",
        "registry",
    ),
    "no config": (
        (
            "from genrl_core import hookimpl\n@hookimpl\ndef register_rewards(register):\n"
            "    register('x', dict)\n"
        ),
        "no subclass of RewardConfig",
    ),
    "no build": (REWARD.format(name="x").replace("    def build", "    def bild"), "no build()"),
    "bad name": (REWARD.format(name="a.b"), "lower-case"),
    "no docstring": (FUNCTION.format(call="ink", doc=""), "ink() has no docstring"),
    "other arguments": (
        FUNCTION.format(call="dry", doc="."),
        "dry() cannot be called as dry(media",
    ),
    "unknown medium": (
        FUNCTION.format(call="ink, media='sound'", doc="."),
        "ink() judges the unknown medium 'sound'; there are ['image', 'text', 'video']",
    ),
    "reward class": (FUNCTION.format(call="Ink", doc="."), "of RewardConfig and no function"),
    "called too early": (FUNCTION.format(call="ink(0, 0)", doc="."), "None is no subclass of"),
    "medium of a config": (
        REWARD.format(name="x") + "    register('y', Gloss, media='text')\n",
        "media= goes with a function; a config has its own",
    ),
    "own verb": (
        (
            "from genrl_core import hookimpl\n@hookimpl\ndef register_commands(register):\n"
            "    register(print, name='run')\n"
        ),
        "GenRL's own",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_disturbs_nobody_and_is_named(site: Path, kind: str) -> None:
    source, reason = BROKEN[kind]
    module = f"acme_{kind.replace(' ', '_')}"
    distribution(site, module, source)
    registry = Registry.discover()
    (broken,) = registry.broken
    assert broken.name == "acme"
    assert reason in broken.reason
    assert broken.path == str(site / f"{module}.py")
    assert "first" not in registry.rewards, "a plugin is taken over as a whole or not at all"
    with pytest.raises(PluginError, match=r"unknown reward `glos`.*acme \(acme 2\.5\): "):
        registry.get("reward", "glos")


def test_a_broken_plugin_is_named_with_its_line(site: Path) -> None:
    distribution(site, "acme_line", "\n\nimport no_such_module_anywhere\n")
    assert Registry.discover().broken[0].reason.endswith(f"({site / 'acme_line.py'}:3)")


def test_strict_mode_raises_the_error_itself(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(site, "acme_strict", "raise KeyError('inner')")
    monkeypatch.setenv("GENRL_STRICT", "1")
    with pytest.raises(KeyError, match="inner"):
        Registry.discover()


def test_an_entry_module_that_imports_torch_is_isolated(tmp_path: Path) -> None:
    fake = tmp_path / "torch"
    fake.mkdir()
    (fake / "__init__.py").write_text("")
    distribution(tmp_path, "acme_heavy", "import torch\n" + REWARD.format(name="gloss"))
    code = (
        "from genrl_core.registry import Registry\n"
        "(plugin,) = Registry.discover().broken\n"
        "assert plugin.name == 'acme' and 'imports torch' in plugin.reason, plugin\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path)})


def test_what_rewards_and_objectives_need_loads_no_torch() -> None:
    code = (
        "import sys; from genrl_core import Batch, Media, Metric, Objective, Prompt, Reward;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def module(name: str, **hooks: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(made, hook, hookimpl(function))
    return made


def test_two_components_with_one_name_name_both_owners_when_used() -> None:
    registry = Registry()
    registry.add_file(POCKET)
    shine = registry.rewards["shine"]
    registry.add_module(module("rival", register_rewards=lambda register: register("shine", shine)))
    assert "shine" not in registry.rewards
    assert "jury" in registry.rewards
    with pytest.raises(PluginError, match=r"reward `shine`.*pocket_plugin.* and rival"):
        registry.get("reward", "shine")
    assert len(registry.clashes) == 1


def test_missing_names_say_what_was_probably_meant() -> None:
    registry = Registry()
    registry.add_file(POCKET)
    with pytest.raises(PluginError, match=r"unknown sampler `tos`; did you mean `toss`\? Regis"):
        registry.get("sampler", "tos")
    with pytest.raises(PluginError, match="`shine` is a registered reward"):
        registry.get("objective", "shine")


def test_registries_know_nothing_of_each_other_and_load_a_module_once() -> None:
    first, second = Registry(), Registry()
    first.add_file(POCKET)
    assert not second.rewards
    plugin = module(
        "once", register_rewards=lambda register: register("shiny", first.rewards["shine"])
    )
    second.add_module(plugin)
    second.add_module(plugin)
    assert list(second.rewards) == ["shiny"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("import no_such_module", "is broken: ModuleNotFoundError")],
)
def test_a_given_file_that_fails_is_an_error_at_once(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PluginError, match=message):
        Registry.discover([path])


def first_letter(media: Media, prompts: list[Prompt]) -> list[float | None]:
    """Where a text starts in the alphabet, 0 to 25.

    Nothing for an empty text.
    """
    assert isinstance(prompts, list)
    return [ord(text[0]) - ord("a") if text else None for text in media.texts]


def test_a_function_is_a_reward() -> None:
    registry = Registry()

    def hook(register: Any) -> None:
        register("first_letter", first_letter, media="text")

    registry.add_module(module("letters", register_rewards=hook))
    config = registry.rewards["first_letter"]
    assert issubclass(config, RewardConfig)
    assert config.__name__ == "first_letter"
    assert config.summary() == "Where a text starts in the alphabet, 0 to 25."
    assert config.media == {Capability.TEXT}
    assert set(config.model_fields) == {"weight"}
    reward = config(weight=2.0).build()
    assert isinstance(reward, Reward)
    media = Media("text", texts=("bee", "", "dog"))
    prompts = (Prompt("p", "an animal"),) * 3
    assert reward(media, prompts) == [1, None, 3]
    assert reward.summary(media, prompts) == {"": 2.0}
    with pytest.raises(RewardError, match="first_letter gave no value"):
        reward.summary(Media("text", texts=("",)), prompts[:1])


class Gloss(Reward):
    def __init__(self, config: RewardConfig):
        self.config = config

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        return [0.0] * len(prompts)


def config_that_builds(what: str | type) -> RewardConfig:
    class GlossConfig(RewardConfig):
        """How glossy."""

        builds = what

    return GlossConfig()


def test_a_config_names_what_it_builds(site: Path) -> None:
    """By a class, or by a string whose module is imported when it is built and not before."""
    source = "class Gloss:\n    def __init__(self, config): self.config = config\n"
    (site / "acme_gloss.py").write_text(source)
    for what in (Gloss, "acme_gloss:Gloss"):
        config = type(config_that_builds(what))

        def hook(register: Any, of: type[RewardConfig] = config) -> None:
            register("gloss", of)

        Registry().add_module(module("gloss", register_rewards=hook))
        assert "acme_gloss" not in sys.modules
        built: Any = config(weight=2.0).build()
        assert type(built).__name__ == "Gloss" and built.config.weight == 2
    del sys.modules["acme_gloss"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("acme_nowhere:Gloss", "'acme_nowhere:Gloss', and there is no module acme_nowhere"),
        ("genrl_core.nowhere:Gloss", "and there is no module genrl_core.nowhere"),
        ("genrl_core.errors:Gloss", "and genrl_core.errors has no Gloss"),
        ("genrl_core.errors", "'genrl_core.errors'; expected package.module:Name"),
        (":Gloss", "':Gloss'; expected package.module:Name"),
    ],
)
def test_what_a_config_cannot_build_is_said_with_its_name(what: str, words: str) -> None:
    with pytest.raises(PluginError, match=f"^GlossConfig.builds is .*{re.escape(words)}"):
        config_that_builds(what).build()


def test_a_library_that_is_missing_is_not_a_wrong_name(site: Path) -> None:
    (site / "acme_needy.py").write_text("import acme_library\nclass Gloss: ...\n")
    with pytest.raises(ModuleNotFoundError, match="acme_library"):
        config_that_builds("acme_needy:Gloss").build()


def package(folder: Path, name: str, source: str) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "__init__.py").write_text(source)
    (made / "words.py").write_text("NAME = 'gloss'\n")
    return made


INSIDE = REWARD.replace("{name!r}", "NAME").replace("\nfrom", "\nfrom .words import NAME\nfrom", 1)


def test_a_package_folder_is_a_plugin_under_its_own_name(tmp_path: Path) -> None:
    folder = package(tmp_path, "acme_folder", INSIDE)
    for given in (folder, folder / "__init__.py"):
        registry = Registry.discover([given])
        assert registry.rewards["gloss"].__module__ == "acme_folder"
        assert registry.owner("reward", "gloss").name == "acme_folder"
        assert registry.files == [given]
    assert sys.modules["acme_folder.words"].__file__ == str(folder / "words.py")
    assert str(tmp_path) not in sys.path


def test_a_package_folder_that_fails_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"plugin file .*__init__\.py does not exist"):
        Registry.discover([tmp_path])
    broken = package(tmp_path, "acme_broken", "from .nowhere import x")
    with pytest.raises(PluginError, match=r"acme_broken.* is broken: ModuleNotFoundError.*:1\)"):
        Registry.discover([broken])
    assert "acme_broken" not in sys.modules
    first, second = (package(tmp_path / side, "acme_twice", INSIDE) for side in ("a", "b"))
    Registry.discover([first])
    with pytest.raises(PluginError, match=r"b.acme_twice.*another package acme_twice.*rename one"):
        Registry.discover([second])


def test_recipe_folders_and_their_clashes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x" / "one.yaml").write_text("# a recipe\n")
    registry = Registry()
    registry.add_module(module("left", register_recipes=lambda register: register(tmp_path / "a")))
    assert registry.find_recipe("x/one") == tmp_path / "a" / "x" / "one.yaml"
    with pytest.raises(PluginError, match=r"unknown recipe `x/on`; did you mean `x/one`\?"):
        registry.find_recipe("x/on")
    assert registry.recipes() is registry.recipes(), "the folders are walked once"
    registry.add_module(module("right", register_recipes=lambda register: register(tmp_path / "b")))
    with pytest.raises(
        PluginError, match=r"recipe `x/one` is registered more than once.*left.*right"
    ):
        registry.find_recipe("x/one")


def test_the_checkout_is_preferred_over_the_packaged_recipes() -> None:
    assert builtin_recipes() == Path(__file__).parents[2] / "recipes"


def test_the_built_in_plugins_load_and_clash_with_nobody() -> None:
    registry = Registry.discover()
    assert registry.broken == []
    assert registry.clashes == []
    own = {p.name for p in importlib.metadata.entry_points(group="genrl_core")}
    assert own <= {plugin.name for plugin in registry.plugins}
