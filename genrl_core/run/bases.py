"""Pre-trained bases (`policy.weights: recipe:NAME`): trained once, kept, verified."""

import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl_core.loop.distributed import Runtime
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.run.files import sha256, with_umask, write_atomically

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


def base_weights(
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
