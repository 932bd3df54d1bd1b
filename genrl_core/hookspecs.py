"""The six hooks of a plugin: what an entry module may implement, and nothing else.

An entry module holds config classes and hooks. It is imported by every command, so it imports no
torch and no other heavy library; those belong inside ``build()`` and the methods. Example::

    from genrl_core import Media, Prompt, Register, hookimpl

    def brightness(media: Media, prompts: list[Prompt]) -> list[float]:
        \"\"\"How bright the picture is, 0 to 1.\"\"\"
        return [float(picture.float().mean()) / 255 for picture in media.pixels]

    @hookimpl
    def register_rewards(register: Register) -> None:
        register("brightness", brightness)

and in that package's ``pyproject.toml``::

    [project.entry-points.genrl_core]
    my_package = "my_package"

No hook returns anything, and there is no hook into a running loop: whoever wants to watch a run
iterates over ``genrl_core.train(recipe)``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from genrl_core.interfaces.configs import (
        ObjectiveConfig,
        PolicyConfig,
        RewardConfig,
        SamplerConfig,
    )
    from genrl_core.interfaces.reward import RewardFunction

PROJECT = "genrl_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]
"""What a hook is given, for the annotation of its one argument; each hook says how to call it."""


class RegisterReward(Protocol):
    """Adds one reward."""

    def __call__(
        self, name: str, reward: "type[RewardConfig] | RewardFunction", *, media: str = "image"
    ) -> None:
        """``media`` goes with a function and is what it judges: image, text or video."""


class RegisterCommand(Protocol):
    """Adds one verb to the command line."""

    def __call__(self, command: Callable[..., Any], *, name: str) -> None:
        """``command`` is a function that typer understands, or a whole ``typer.Typer``."""


@hookspec
def register_policies(register: "Callable[[str, type[PolicyConfig]], None]") -> None:
    """Call ``register(name, config_class)`` once per policy."""


@hookspec
def register_samplers(register: "Callable[[str, type[SamplerConfig]], None]") -> None:
    """Call ``register(name, config_class)`` once per sampler."""


@hookspec
def register_rewards(register: RegisterReward) -> None:
    """Call ``register(name, config_class_or_function)`` once per reward or measure.

    A function is called as ``function(media, prompts)``; its docstring's first line is the summary.
    ``media="text"`` or ``media="video"`` says that it judges no images.
    """


@hookspec
def register_objectives(register: "Callable[[str, type[ObjectiveConfig]], None]") -> None:
    """Call ``register(name, config_class)`` once per objective.

    A function registered here is a baseline, ``function(rewards, group)`` to what is subtracted
    from each reward, all ``[N]``; ``advantage.baseline`` names it.
    """


@hookspec
def register_recipes(register: "Callable[[Path], None]") -> None:
    """Call ``register(folder)``: ``folder/a/b.yaml`` becomes the recipe ``a/b``."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Call ``register(function_or_typer_app, name="verb")`` once per verb of the command line."""
