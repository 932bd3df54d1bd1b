"""Objectives for every paradigm, a file each, made of the functions of ``genrl_core.functional``.

A new objective is a file with its loss and its config, and one line here. The decorator
``register`` of the config gives it the name that recipes use.
"""

from genrl_core import Register, hookimpl
from genrl_objectives.awm import AwmConfig as AwmConfig
from genrl_objectives.cispo import CispoConfig as CispoConfig
from genrl_objectives.common import OBJECTIVES as OBJECTIVES
from genrl_objectives.dgpo import DgpoConfig as DgpoConfig
from genrl_objectives.dpo import DpoConfig as DpoConfig
from genrl_objectives.entropy import EntropyConfig as EntropyConfig
from genrl_objectives.flow_dppo import FlowDppoConfig as FlowDppoConfig
from genrl_objectives.gmpo import GmpoConfig as GmpoConfig
from genrl_objectives.grpo import BnpoConfig as BnpoConfig
from genrl_objectives.grpo import DapoConfig as DapoConfig
from genrl_objectives.grpo import DrGrpoConfig as DrGrpoConfig
from genrl_objectives.grpo import GrpoConfig as GrpoConfig
from genrl_objectives.grpo import GspoConfig as GspoConfig
from genrl_objectives.grpo_guard import GrpoGuardConfig as GrpoGuardConfig
from genrl_objectives.kl import KlConfig as KlConfig
from genrl_objectives.nft import NftConfig as NftConfig
from genrl_objectives.ppo import PpoConfig as PpoConfig
from genrl_objectives.reinforce import ReinforceConfig as ReinforceConfig
from genrl_objectives.reinforce import ReinforcePpConfig as ReinforcePpConfig
from genrl_objectives.reinforce import RlooConfig as RlooConfig
from genrl_objectives.reward_gradient import RewardGradientConfig as RewardGradientConfig
from genrl_objectives.rwr import BestOfNConfig as BestOfNConfig
from genrl_objectives.rwr import RwrConfig as RwrConfig
from genrl_objectives.sapo import SapoConfig as SapoConfig
from genrl_objectives.sft import SftConfig as SftConfig
from genrl_objectives.wd1 import Wd1Config as Wd1Config


@hookimpl
def register_objectives(register: Register) -> None:
    """All of them."""
    for name, config in OBJECTIVES.items():
        register(name, config)
