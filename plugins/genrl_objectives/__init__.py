"""Objectives for every paradigm: presets over the pure functions of ``genrl_core.functional``."""

from collections.abc import Callable

from genrl_core import ObjectiveConfig, hookimpl
from genrl_objectives.configs import (
    BestOfNConfig,
    DgpoConfig,
    DpoConfig,
    EntropyConfig,
    KlConfig,
    NftConfig,
    PpoConfig,
    RwrConfig,
    SftConfig,
    Wd1Config,
)
from genrl_objectives.differentiable import RewardGradientConfig
from genrl_objectives.presets import (
    AwmConfig,
    BnpoConfig,
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    FlowDppoConfig,
    GmpoConfig,
    GrpoConfig,
    GrpoGuardConfig,
    GspoConfig,
    ReinforceConfig,
    ReinforcePpConfig,
    RlooConfig,
    SapoConfig,
)

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "reinforce": ReinforceConfig,
    "grpo": GrpoConfig,
    "dr_grpo": DrGrpoConfig,
    "dapo": DapoConfig,
    "bnpo": BnpoConfig,
    "gspo": GspoConfig,
    "gmpo": GmpoConfig,
    "cispo": CispoConfig,
    "sapo": SapoConfig,
    "rloo": RlooConfig,
    "reinforce_pp": ReinforcePpConfig,
    "grpo_guard": GrpoGuardConfig,
    "flow_dppo": FlowDppoConfig,
    "ppo": PpoConfig,
    "awm": AwmConfig,
    "dpo": DpoConfig,
    "dgpo": DgpoConfig,
    "rwr": RwrConfig,
    "best_of_n": BestOfNConfig,
    "wd1": Wd1Config,
    "nft": NftConfig,
    "reward_gradient": RewardGradientConfig,
    "sft": SftConfig,
    "kl": KlConfig,
    "entropy": EntropyConfig,
}
"""Name -> config."""

__all__ = [
    "OBJECTIVES", "AwmConfig", "BestOfNConfig", "BnpoConfig", "CispoConfig", "DapoConfig",
    "DgpoConfig", "DpoConfig", "DrGrpoConfig", "EntropyConfig", "FlowDppoConfig", "GmpoConfig",
    "GrpoConfig", "GrpoGuardConfig", "GspoConfig", "KlConfig", "NftConfig", "PpoConfig",
    "ReinforceConfig", "ReinforcePpConfig", "RewardGradientConfig", "RlooConfig", "RwrConfig",
    "SapoConfig", "SftConfig", "Wd1Config",
]  # fmt: skip


@hookimpl
def register_objectives(register: Callable[[str, type[ObjectiveConfig]], None]) -> None:
    for name, config in OBJECTIVES.items():
        register(name, config)
