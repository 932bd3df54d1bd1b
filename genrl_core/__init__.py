"""GenRL: reinforcement learning for generative models of any paradigm, with any objective."""

from typing import TYPE_CHECKING

from genrl_core.public import lazy_names

if TYPE_CHECKING:
    from genrl_core.attention import attend, attention_backend, transformers_attention
    from genrl_core.batch import Batch
    from genrl_core.capability import MEDIA, Capability
    from genrl_core.config import (
        NONE,
        Component,
        ObjectiveConfig,
        PolicyConfig,
        RewardConfig,
        SamplerConfig,
        Schema,
        ValueHeadConfig,
    )
    from genrl_core.errors import (
        CheckpointError,
        GenRLError,
        PluginError,
        RecipeError,
        RewardError,
    )
    from genrl_core.forwards import forward_arguments
    from genrl_core.hookspecs import Register, hookimpl
    from genrl_core.hub import ModelFiles
    from genrl_core.media import Media, Prompt, Reading
    from genrl_core.objective import Objective, Replay, View
    from genrl_core.plugins import Registry
    from genrl_core.policy import Policy
    from genrl_core.recipe import Recipe, load_recipe
    from genrl_core.records import (
        Matching,
        Others,
        Plan,
        Scored,
        Streams,
        Tensors,
        Terms,
        Trajectory,
        take,
    )
    from genrl_core.reward import Reward
    from genrl_core.sampler import MarkovSampler, Sampler, Transition
    from genrl_core.supervised import DataSampler
    from genrl_core.tensor_files import WEIGHT_FILES, fit_tensors, read_tensors
    from genrl_core.trainer import train

__version__ = "0.1.0"

_HOMES = {
    "attend": "attention", "attention_backend": "attention",
    "transformers_attention": "attention",
    "Capability": "capability", "MEDIA": "capability",
    "Component": "config", "PolicyConfig": "config", "SamplerConfig": "config",
    "RewardConfig": "config", "ObjectiveConfig": "config", "Schema": "config", "NONE": "config",
    "ValueHeadConfig": "config",
    "GenRLError": "errors", "RecipeError": "errors", "PluginError": "errors",
    "RewardError": "errors", "CheckpointError": "errors",
    "forward_arguments": "forwards",
    "hookimpl": "hookspecs", "Register": "hookspecs",
    "ModelFiles": "hub",
    "Registry": "plugins",
    "Recipe": "recipe", "load_recipe": "recipe",
    "Policy": "policy", "Sampler": "sampler", "MarkovSampler": "sampler",
    "Transition": "sampler", "Reward": "reward", "Objective": "objective", "View": "objective",
    "Replay": "objective",
    "Batch": "batch", "Media": "media", "Prompt": "media", "Reading": "media",
    "Matching": "records", "Others": "records", "Plan": "records", "Scored": "records",
    "Streams": "records", "Tensors": "records", "Terms": "records", "Trajectory": "records",
    "take": "records",
    "lazy_names": "public",
    "DataSampler": "supervised",
    "WEIGHT_FILES": "tensor_files", "fit_tensors": "tensor_files",
    "read_tensors": "tensor_files",
    "train": "trainer",
}  # fmt: skip

__all__ = [
    "MEDIA", "NONE", "WEIGHT_FILES", "Batch", "Capability", "CheckpointError", "Component",
    "DataSampler", "GenRLError", "MarkovSampler", "Matching", "Media", "ModelFiles", "Objective",
    "ObjectiveConfig", "Others", "Plan",
    "PluginError", "Policy", "PolicyConfig", "Prompt", "Reading", "Recipe", "RecipeError",
    "Register", "Registry", "Replay", "Reward", "RewardConfig", "RewardError", "Sampler",
    "SamplerConfig", "Schema", "Scored", "Streams", "Tensors", "Terms", "Trajectory", "Transition",
    "ValueHeadConfig", "View",
    "__version__", "attend", "attention_backend", "fit_tensors", "forward_arguments", "hookimpl",
    "lazy_names", "load_recipe", "read_tensors", "take", "train",
    "transformers_attention",
]  # fmt: skip


__getattr__ = lazy_names(__name__, _HOMES)
