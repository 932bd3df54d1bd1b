"""What plugin authors test with: conformance checks, and small policies with exact expectations."""

from genrl_core.loop.settings import AdvantageConfig
from genrl_core.testing.conformance import Conformance, check_sampler, expected_update, toys
from genrl_core.testing.directions import check_objective
from genrl_core.testing.enumerable import (
    ToyCanvas,
    ToyCanvasSampler,
    ToyGaussian,
    ToyGaussianSampler,
    ToyReward,
    ToySequence,
    ToySequenceSampler,
)
from genrl_core.testing.trajectories import every_trajectory, follow
from genrl_core.testing.update import SingleUpdates, learner_for, rollout_of

__all__ = [
    "AdvantageConfig",
    "Conformance",
    "SingleUpdates",
    "ToyCanvas",
    "ToyCanvasSampler",
    "ToyGaussian",
    "ToyGaussianSampler",
    "ToyReward",
    "ToySequence",
    "ToySequenceSampler",
    "check_objective",
    "check_sampler",
    "every_trajectory",
    "expected_update",
    "follow",
    "learner_for",
    "rollout_of",
    "toys",
]  # fmt: skip
