"""GenRL: reinforcement learning for generative models of any paradigm, with any objective."""

from typing import TYPE_CHECKING

from genrl_core.lazy import lazy_names
from genrl_core.version import __version__

if TYPE_CHECKING:
    from genrl_core.errors import (
        CheckpointError,
        GenRLError,
        PluginError,
        RecipeError,
        RewardError,
    )
    from genrl_core.hookspecs import Register, hookimpl
    from genrl_core.interfaces.batch import Batch, Metric
    from genrl_core.interfaces.capability import MEDIA, Capability
    from genrl_core.interfaces.configs import (
        NONE,
        Component,
        ObjectiveConfig,
        PolicyConfig,
        RewardConfig,
        SamplerConfig,
        Schema,
        ValueHeadConfig,
    )
    from genrl_core.interfaces.data_sampler import DataSampler
    from genrl_core.interfaces.media import Media, Prompt, Reading
    from genrl_core.interfaces.objective import Objective, SamplerBackprop
    from genrl_core.interfaces.policy import ExportReport, Policy
    from genrl_core.interfaces.records import (
        Denoising,
        Plan,
        Tensors,
        Terms,
        Trajectory,
        select_rows,
    )
    from genrl_core.interfaces.reward import Reward
    from genrl_core.interfaces.sampler import MarkovSampler, Sampler, Transition
    from genrl_core.interfaces.streams import Streams
    from genrl_core.loop.trainer import Trainer
    from genrl_core.loop.views import Prepared, View
    from genrl_core.recipe.recipe import Recipe, load_recipe
    from genrl_core.run.assembly import build_trainer, train

_HOMES = {
    "Capability": "interfaces.capability", "MEDIA": "interfaces.capability",
    "Component": "interfaces.configs", "PolicyConfig": "interfaces.configs",
    "SamplerConfig": "interfaces.configs", "RewardConfig": "interfaces.configs",
    "ObjectiveConfig": "interfaces.configs", "Schema": "interfaces.configs",
    "NONE": "interfaces.configs", "ValueHeadConfig": "interfaces.configs",
    "GenRLError": "errors", "RecipeError": "errors", "PluginError": "errors",
    "RewardError": "errors", "CheckpointError": "errors",
    "hookimpl": "hookspecs", "Register": "hookspecs",
    "Recipe": "recipe.recipe", "load_recipe": "recipe.recipe",
    "Policy": "interfaces.policy", "ExportReport": "interfaces.policy",
    "Sampler": "interfaces.sampler",
    "MarkovSampler": "interfaces.sampler", "Transition": "interfaces.sampler",
    "Reward": "interfaces.reward", "Objective": "interfaces.objective",
    "SamplerBackprop": "interfaces.objective",
    "Batch": "interfaces.batch", "Media": "interfaces.media", "Prompt": "interfaces.media",
    "Reading": "interfaces.media",
    "Denoising": "interfaces.records",
    "Plan": "interfaces.records",
    "Streams": "interfaces.streams",
    "Tensors": "interfaces.records", "Terms": "interfaces.records",
    "Trajectory": "interfaces.records", "select_rows": "interfaces.records",
    "lazy_names": "lazy",
    "DataSampler": "interfaces.data_sampler",
    "train": "run.assembly", "build_trainer": "run.assembly", "Trainer": "loop.trainer",
    "View": "loop.views", "Prepared": "loop.views", "Metric": "interfaces.batch",
}  # fmt: skip

__all__ = [
    "MEDIA",
    "NONE",
    "Batch",
    "Capability",
    "CheckpointError",
    "Component",
    "DataSampler",
    "Denoising",
    "ExportReport",
    "GenRLError",
    "MarkovSampler",
    "Media",
    "Metric",
    "Objective",
    "ObjectiveConfig",
    "Plan",
    "PluginError",
    "Policy",
    "PolicyConfig",
    "Prepared",
    "Prompt",
    "Reading",
    "Recipe",
    "RecipeError",
    "Register",
    "Reward",
    "RewardConfig",
    "RewardError",
    "Sampler",
    "SamplerBackprop",
    "SamplerConfig",
    "Schema",
    "Streams",
    "Tensors",
    "Terms",
    "Trainer",
    "Trajectory",
    "Transition",
    "ValueHeadConfig",
    "View",
    "__version__",
    "build_trainer",
    "hookimpl",
    "lazy_names",
    "load_recipe",
    "select_rows",
    "train",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
