"""What the tests of objectives share: a config of every preset, and TRL's loss functions."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from genrl_core import ObjectiveConfig
from genrl_objectives import OBJECTIVES

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session")
def proposed() -> Callable[..., ObjectiveConfig]:
    """A config by name: required fields take the value that the schema proposes."""

    def make(name: str, **fields: Any) -> ObjectiveConfig:
        schema = OBJECTIVES[name]
        extras = {k: f.json_schema_extra for k, f in schema.model_fields.items() if f.is_required()}
        found = {k: extra["propose"] for k, extra in extras.items() if isinstance(extra, dict)}
        return schema.model_validate(found | fields)

    return make


@pytest.fixture(scope="session")
def trl_trainers() -> dict[str, Any]:
    """The trainer classes of the reference implementation, never constructed."""
    trl = pytest.importorskip("trl", reason="trl==1.16.0, the test-only oracle, is not installed")
    if trl.__version__ != "1.16.0":
        pytest.skip(f"the oracle is trl 1.16.0, and {trl.__version__} is installed")
    from trl.experimental.gmpo import GMPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    return {"grpo": GRPOTrainer, "gmpo": GMPOTrainer, "rloo": RLOOTrainer, "dpo": DPOTrainer}
