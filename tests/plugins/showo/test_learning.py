"""Show-o learns: a tiny random one, with its tokenizer, comes to draw the code that is rewarded."""

import json
from pathlib import Path
from typing import Any

import pytest

from genrl_core import Media, Reward, load_recipe
from genrl_core.trainer import Trainer

from .conftest import LENGTH, NUM_TOKENS, TINY

TARGET = 5


class TargetCode(Reward):
    """The share of positions that hold ``TARGET``, noted when the policy decodes them."""

    def __init__(self) -> None:
        self.noted: list[float] = []

    def watch(self, policy: Any) -> None:
        decode = policy.decode

        def noting(final: Any) -> Media:
            self.noted += (final["tokens"] == TARGET).double().mean(1).tolist()
            found: Media = decode(final)
            return found

        policy.decode = noting

    def __call__(self, media: Media, prompts: Any) -> list[float]:
        noted, self.noted = self.noted, []
        assert len(noted) == len(media) == len(prompts)
        return noted


@pytest.mark.parametrize(("transition", "seed"), [("p1", 0), ("p1", 1), ("p1", 2), ("p2", 0)])
def test_a_rewarded_code_is_drawn_more_often(
    published: dict[str, Path], tmp_path: Path, transition: str, seed: int
) -> None:
    """From a sixteenth or so to most positions, in 18 iterations of 16 samples."""
    (tmp_path / "prompts.txt").write_text("a red cube\ntwo small cat\n")
    recipe = load_recipe({
        "policy": {"use": "showo", "weights": str(published["showo"]), "max_text_tokens": LENGTH,
                   "image_tokenizer": str(published["image"]), "gradient_checkpointing": True},
        "sampler": {"use": "confidence", "num_inference_steps": 4, "transition": transition},
        "reward": {"jpeg_size": {}},
        "objective": {"grpo": {"epsilon": 0.1, "epsilon_high": 0.2}},
        "prompts": {"file": str(tmp_path / "prompts.txt")},
        "train": {"iterations": 18, "num_prompts": 2, "num_generations": 8,
                  "learning_rate": 3e-3},
        "run": {"threads": 1, "device": "cpu", "seed": seed},
    })  # fmt: skip
    reward = TargetCode()
    trainer = Trainer(recipe, rewards={"jpeg_size": reward})
    reward.watch(trainer.policy)
    curve = [trainer.step().metrics for _ in range(recipe.train.iterations)]
    shares = [metrics["reward"] for metrics in curve]
    print(json.dumps([round(share, 2) for share in shares]))
    assert max(metrics["drift"] for metrics in curve) < 1e-4
    assert sum(shares[:3]) / 3 < 0.3 and NUM_TOKENS == TINY.codes == 16
    assert sum(shares[-5:]) / 5 > 0.6
