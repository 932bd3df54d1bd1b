"""aMUSEd learns: a tiny random ``UVit2DModel`` comes to draw the code that is rewarded."""

from pathlib import Path

import pytest

from genrl_core import load_recipe
from genrl_core.trainer import Trainer

from ..showo.test_learning import TargetCode  # noqa: TID252  # the same reward


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rewarded_code_is_drawn_more_often(published: Path, tmp_path: Path, seed: int) -> None:
    """From less than a third to most of the positions, in 25 iterations of 16 samples."""
    (tmp_path / "prompts.txt").write_text("a red dog\ntwo cats\n")
    recipe = load_recipe({
        "policy": {"use": "amused", "weights": str(published), "gradient_checkpointing": True},
        "sampler": {"use": "confidence", "num_inference_steps": 4, "transition": "p1"},
        "reward": {"jpeg_size": {}},
        "objective": {"grpo": {"epsilon": 0.1, "epsilon_high": 0.2}},
        "prompts": {"file": str(tmp_path / "prompts.txt")},
        "train": {"iterations": 25, "num_prompts": 2, "num_generations": 8,
                  "learning_rate": 3e-3},
        "run": {"threads": 1, "device": "cpu", "seed": seed},
    })  # fmt: skip
    reward = TargetCode()
    trainer = Trainer(recipe, rewards={"jpeg_size": reward})
    reward.watch(trainer.policy)
    curve = [trainer.step().metrics for _ in range(recipe.train.iterations)]
    shares = [metrics["reward"] for metrics in curve]
    print([round(share, 2) for share in shares])
    assert max(metrics["drift"] for metrics in curve) < 1e-4
    assert sum(shares[:3]) / 3 < 0.33
    assert sum(shares[-5:]) / 5 > 0.6
