"""The policy of a recipe with its weights: from a base, a run, a checkpoint, or its own files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from genrl_core.errors import RecipeError
from genrl_core.interfaces.policy import Policy
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.weights import WeightSets, belongs_to, fingerprint
from genrl_core.recipe.recipe import RESOLVED_FILE, Recipe, load_recipe
from genrl_core.recipe.weights import built_policy, holds_weights, unread_weights
from genrl_core.run import checkpoint
from genrl_core.run.bases import Notify, TrainBase, base_weights


def build_policy(recipe: Recipe, runtime: Runtime, train_base: TrainBase, notify: Notify) -> Policy:
    """The policy of a recipe, with its weights, on this rank's device.

    ``policy.weights`` may be ``recipe:NAME`` (trained by ``train_base`` under this recipe's seed
    unless the cache has it), a GenRL run or checkpoint folder, or whatever the policy itself loads.

    Raises:
        RecipeError: the weights are missing, nobody loads them, or they belong to another network.
    """
    config = recipe.policy
    if config is None:
        raise RecipeError("the recipe has no policy: add `policy: {use: ...}`")
    if (unread := unread_weights(recipe)) is not None:
        raise RecipeError(str(unread))
    weights, tensors = config.weights, None
    if weights is not None and weights.startswith("recipe:"):
        name = weights.removeprefix("recipe:")
        tensors = base_weights(recipe, name, runtime, train_base, notify)
    elif weights is not None and holds_weights(Path(weights)):
        tensors = _saved_weights(Path(weights), recipe, runtime, train_base, notify)
    policy = (built_policy(recipe) or config).build()
    if tensors is not None:
        _load(policy.network, tensors, str(weights), policy.new_modules)
    policy.network.to(runtime.device)
    policy.network.eval()
    return policy


def _saved_weights(
    path: Path, recipe: Recipe, runtime: Runtime, train_base: TrainBase, notify: Notify
) -> dict[str, Tensor]:
    """What a run ended with; of adapters, the network that they stand in with them folded in."""
    if (path / "checkpoints").is_dir():
        newest, problems = checkpoint.latest(path)
        if newest is None:
            raise RecipeError(f"{path} holds no valid checkpoint: " + "; ".join(problems))
        snapshot = newest
    else:
        snapshot = checkpoint.load(path)
    tensors = dict(snapshot.tensors["policy"])
    if not any(".lora_" in name for name in tensors):
        return tensors
    own = snapshot.path.resolve().parent.parent / RESOLVED_FILE
    if not own.is_file():
        raise RecipeError(
            f"policy.weights: {path} holds adapters alone, and {own}, which says what they stand "
            "in, is not there: give the run folder as it was written"
        )
    trained = load_recipe(own, registry=recipe.registry)
    policy = build_policy(trained, runtime, train_base, notify)
    if snapshot.state.get("base") != fingerprint(policy.network):
        raise RecipeError(
            f"policy.weights: {path} holds adapters, and the weights under them cannot be rebuilt: "
            f"policy.weights in {own} gives others than when that run began"
        )
    weight_sets = WeightSets(policy, trained.weights.lora, trained.run.seed)
    try:
        weight_sets.load_state_dict(tensors)
    except ValueError as error:
        raise RecipeError(f"policy.weights: {path} holds other adapters: {error}") from error
    return weight_sets.merged()


def _load(
    network: nn.Module, tensors: dict[str, Tensor], source: str, fresh: Sequence[str] = ()
) -> None:
    """Fill the network; what belongs to ``fresh`` modules may be absent, all of it or nothing."""
    own: dict[str, Tensor] = dict(network.named_parameters()) | {
        f"buffer.{name}": buffer for name, buffer in network.named_buffers()
    }
    young = {name for name in own if belongs_to(name.removeprefix("buffer."), fresh)}
    if own.keys() - tensors.keys() == young:
        own = {name: tensor for name, tensor in own.items() if name not in young}
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if wrong:
        raise RecipeError(
            f"policy.weights: {source} belongs to another network; {len(wrong)} tensors differ, "
            f"for example {', '.join(wrong[:5])}: give the policy the same fields"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
