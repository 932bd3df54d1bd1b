"""The shipped bases, and the command that trains them: ``python -m genrl_shapes.bases``.

Three runs of the recipe ``shapes/masked_base``, kept in half precision (372 kB each): the first
seeds from 0 on whose model knows left from right; 2 and 3 had not learned that in 1,500
iterations. The header of a file holds the seed and the digest of the recipe that it came from.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl_core import RecipeError, load_recipe, train
from genrl_shapes import SHIPPED

FOLDER = Path(__file__).with_name("weights")
RECIPE = "shapes/masked_base"


def shipped(name: str) -> dict[str, Tensor]:
    """The tensors of a base in float32, by the names of the network's state.

    Raises:
        RecipeError: no base has this name.
    """
    if name not in SHIPPED:
        raise RecipeError(
            f"policy.weights: {name} is no folder of a run (with checkpoints/) or of a checkpoint "
            f"(with MANIFEST.json) and none of the shipped bases {', '.join(SHIPPED)}. Give one of "
            "these, or recipe:NAME, or null for the initial weights"
        )
    return {
        key: tensor.float() for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()
    }


def pretrain(seed: int, path: Path) -> None:
    """Train the base of a seed, 80 seconds on a core, and write it."""
    recipe = load_recipe(RECIPE, [f"run.seed={seed}", "run.device=cpu"])
    config = recipe.policy
    assert config is not None
    policy = config.build()
    for _ in train(recipe, policy=policy):
        pass
    state = {key: tensor.half() for key, tensor in policy.network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"seed": str(seed), "recipe": recipe.digest()})


if __name__ == "__main__":
    for base in SHIPPED:
        folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
        pretrain(int(base.removeprefix("base-")), folder / f"{base}.safetensors")
