"""Stripes: a policy, a reward, an objective, and a recipe for the three."""

from pathlib import Path

from genrl_core import Register, hookimpl

from .objective import register_objectives
from .policy import register_policies
from .reward import register_rewards

__all__ = ["register_objectives", "register_policies", "register_recipes", "register_rewards"]


@hookimpl
def register_recipes(register: Register) -> None:
    register(Path(__file__).parent / "recipes")
