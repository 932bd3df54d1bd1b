"""What the tests of learning share: a policy that comes to draw the one code that is rewarded."""

from pathlib import Path
from typing import Any

from genrl_core import Media, Reward, load_recipe
from genrl_core.run.assembly import build_trainer

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


def shares(
    folder: Path, policy: dict[str, Any], prompts: str, *, iterations: int, seed: int,
    transition: str = "p1",
) -> list[float]:  # fmt: skip
    """The share of the rewarded code after every iteration of 16 samples; never with a drift."""
    (folder / "prompts.txt").write_text(prompts)
    recipe = load_recipe({
        "policy": policy | {"gradient_checkpointing": True},
        "sampler": {"use": "confidence", "num_inference_steps": 4, "transition": transition},
        "reward": {"jpeg_size": {}},
        "objective": {"grpo": {"epsilon": 0.1, "epsilon_high": 0.2}},
        "prompts": {"file": str(folder / "prompts.txt")},
        "train": {"iterations": iterations, "num_prompts": 2, "num_generations": 8,
                  "learning_rate": 3e-3},
        "run": {"threads": 1, "device": "cpu", "seed": seed},
    })  # fmt: skip
    reward = TargetCode()
    trainer = build_trainer(recipe, rewards={"jpeg_size": reward})
    reward.watch(trainer.parts.policy)
    curve = [trainer.step().metrics for _ in range(iterations)]
    assert max(metrics["drift"] for metrics in curve) < 1e-4
    found = [metrics["reward"] for metrics in curve]
    print([round(share, 2) for share in found])
    return found
