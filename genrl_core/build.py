"""From a recipe to live components, weights included; bases are trained once and kept."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genrl_core import checkpoint
from genrl_core.config import ObjectiveConfig, TrainConfig
from genrl_core.errors import PluginError, RecipeError
from genrl_core.files import with_umask, write_atomically
from genrl_core.manifest import sha256
from genrl_core.negotiate import built_policy, holds_weights, unread_weights
from genrl_core.objective import Objective
from genrl_core.policy import Policy
from genrl_core.recipe import RESOLVED_FILE, Recipe, load_recipe
from genrl_core.runtime import Runtime
from genrl_core.weights import Slots, fingerprint, within

Notify = Callable[[str], None]
TrainBase = Callable[[Recipe], dict[str, Tensor]]


def cache_folder() -> Path:
    """Where pre-trained bases are kept.

    ``$GENRL_CACHE``, else ``$XDG_CACHE_HOME/genrl`` where that is absolute (the XDG base directory
    specification ignores others), else ``~/.cache/genrl``.
    """
    if own := os.environ.get("GENRL_CACHE"):
        return Path(own)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "genrl"


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
        tensors = _base_weights(recipe, name, runtime, train_base, notify)
    elif weights is not None and holds_weights(Path(weights)):
        tensors = _saved_weights(Path(weights), recipe, runtime, train_base, notify)
    policy = (built_policy(recipe) or config).build()
    if tensors is not None:
        _load(policy.network, tensors, str(weights), policy.fresh_modules)
    policy.network.to(runtime.device)
    policy.network.eval()
    return policy


def build_objective(label: str, config: ObjectiveConfig) -> Objective:
    """The objective of a config, both of which say what it reads and who draws for it.

    Raises:
        PluginError: they say different things, so that one of them would be disregarded.
    """
    objective = config.build()
    for attribute, method, wanted in (
        ("view", "view_wanted", config.view_wanted()),
        ("draw_with", "draws_with", config.draws_with()),
    ):
        said = getattr(objective, attribute)
        if said != wanted:
            raise PluginError(
                f"objective {label}: {type(config).__name__}.{method}() says {wanted!r}, and the "
                f"{type(objective).__name__} that it builds has {attribute} {said!r}: a recipe is "
                "checked by the one and trained by the other; let both say the same"
            )
    return objective


def _saved_weights(
    path: Path, recipe: Recipe, runtime: Runtime, train_base: TrainBase, notify: Notify
) -> dict[str, Tensor]:
    """What a run ended with; of adapters, the network that they stand in with them folded in."""
    if (path / "checkpoints").is_dir():
        newest, problems = checkpoint.latest(path)
        if newest is None:
            raise RecipeError(f"{path} holds no valid checkpoint: " + "; ".join(problems))
        path = newest
    snapshot = checkpoint.load(path)
    tensors = dict(snapshot.tensors["policy"])
    if not any(".lora_" in name for name in tensors):
        return tensors
    own = path.resolve().parent.parent / RESOLVED_FILE
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
    slots = Slots(policy, trained.weights.lora, trained.run.seed)
    try:
        slots.load_state_dict(tensors)
    except ValueError as error:
        raise RecipeError(f"policy.weights: {path} holds other adapters: {error}") from error
    return slots.merged()


def _base_weights(
    recipe: Recipe, name: str, runtime: Runtime, train_base: TrainBase, notify: Notify
) -> dict[str, Tensor]:
    base = load_recipe(name, [f"run.seed={recipe.run.seed}"], recipe.registry)
    base = base.with_overrides(f"run.device={recipe.run.device}")
    path = cache_folder() / f"{name.replace('/', '-')}-{base.digest()[:16]}.safetensors"
    if runtime.main and (damage := _damage(path)) is not None:
        if damage:
            notify(f"{path} {damage}; it is trained again")
        notify(f"pre-training {name} with seed {base.run.seed}; kept in {path}")
        _keep({n: t.contiguous().cpu() for n, t in train_base(base).items()}, path)
    runtime.barrier()
    return load_file(path)


def _hash_file(path: Path) -> Path:
    """Beside a cached base: the sha256 that it must have."""
    return path.with_name(f"{path.name}.sha256")


def _damage(path: Path) -> str | None:
    """Why a cached base cannot be used, as half a sentence; empty if absent, None if whole."""
    if not path.is_file():
        return ""
    try:
        wanted = _hash_file(path).read_text(encoding="utf-8").strip()
        return None if sha256(path) == wanted else "is damaged (sha256 differs)"
    except (OSError, ValueError) as error:
        return f"cannot be verified ({error})"


def _keep(tensors: dict[str, Tensor], path: Path) -> None:
    """Put a base into the cache: the hash first, so that no entry ever stands without its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with with_umask(part):
        save_file(tensors, part)
    write_atomically(_hash_file(path), f"{sha256(part)}\n")
    part.replace(path)


def _load(
    network: nn.Module, tensors: dict[str, Tensor], source: str, fresh: Sequence[str] = ()
) -> None:
    """Fill the network; what belongs to ``fresh`` modules may be absent, all of it or nothing."""
    own: dict[str, Tensor] = dict(network.named_parameters()) | {
        f"buffer.{name}": buffer for name, buffer in network.named_buffers()
    }
    young = {name for name in own if within(name.removeprefix("buffer."), fresh)}
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


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices alone, not on biases and norms."""
    named = list(parameters)
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate,
        betas=(config.adam_betas[0], config.adam_betas[1]), eps=config.adam_epsilon, fused=True,
    )  # fmt: skip


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, then constant, linear or cosine; stepped once per optimizer step on every rank."""
    total = config.iterations * config.num_updates * config.num_minibatches

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
        if config.lr_scheduler == "linear":
            return max(1.0 - progress, 0.0)
        if config.lr_scheduler == "cosine":
            return 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * min(progress, 1.0)))))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
