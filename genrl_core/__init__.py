"""GenRL: reinforcement learning for generative models of any paradigm, with any objective."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Capability": "capability",
    "Component": "config", "PolicyConfig": "config", "SamplerConfig": "config",
    "RewardConfig": "config", "ObjectiveConfig": "config", "Schema": "config",
    "GenRLError": "errors", "RecipeError": "errors", "PluginError": "errors",
    "RewardError": "errors", "CheckpointError": "errors",
    "hookimpl": "hookspecs",
    "Registry": "plugins",
    "Recipe": "recipe", "load_recipe": "recipe",
    "Policy": "policy", "Sampler": "sampler", "MarkovSampler": "sampler",
    "Transition": "sampler", "Reward": "reward", "Objective": "objective", "View": "objective",
    "Batch": "records", "Matching": "records", "Media": "records", "Others": "records",
    "Plan": "records", "Prompt": "records", "Scored": "records", "Streams": "records",
    "Tensors": "records", "Terms": "records", "Trajectory": "records", "take": "records",
    "train": "trainer",
}  # fmt: skip

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'genrl_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"genrl_core.{_HOMES[name]}"), name)
