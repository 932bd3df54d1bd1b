"""One iteration that is not kept: whether a recipe runs, and the memory that it takes."""

from collections.abc import Mapping
from typing import Any

import torch

from genrl_core.loop.distributed import Runtime
from genrl_core.recipe.check import CheckedRecipe
from genrl_core.run.assembly import build_trainer
from genrl_core.run.files import dumps


def dry_run(checked: CheckedRecipe, runtime: Runtime, json: bool, quiet: bool) -> None:
    """Build everything, draw and learn from one iteration, and say what it took.

    Args:
        checked: what would be trained.
        runtime: this process among its peers; rank 0 speaks.
        json, quiet: print one JSON value and nothing else, or nothing.
    """

    def notify(text: str) -> None:
        if not json and not quiet:
            print(text, flush=True)

    recipe, trainer = checked.recipe, build_trainer(checked, runtime=runtime, notify=notify)
    network = trainer.parts.policy.network
    trained = list(trainer.weight_sets.trainable.values())
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    # Gradients and the two moments of AdamW, in the dtype of the weights, and frozen copies.
    extra = 3 * sum(p.numel() * p.element_size() for p in trained)
    copies = size * ("reference" in trainer.weight_sets)
    saved = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        record = trainer.step()
    found = {
        "recipe": recipe.name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained": sum(p.numel() for p in trained),
        "num_prompts": recipe.train.num_prompts,
        "num_generations": recipe.train.num_generations,
        "bytes": size + extra + copies,
        "bytes_saved_for_backward": saved,
        "metrics": record.metrics,
    }
    if runtime.main and json:
        print(dumps(found, 2))
    elif runtime.main and not quiet:
        _say_dry_run(found)


def _say_dry_run(found: Mapping[str, Any]) -> None:
    print(f"recipe      {found['recipe']}: it runs")
    print(f"weights     {found['parameters']:,} parameters, {found['trained']:,} trained")
    print(f"iteration   {found['num_prompts']} prompts x {found['num_generations']} samples")
    print(f"memory      {_mib(found['bytes'])} weights, gradients, optimizer, slots")
    saved = _mib(found["bytes_saved_for_backward"])
    print(f"            {saved} saved for backward, all chunks of the update together")
    width = max(map(len, found["metrics"])) + 2
    for name, value in found["metrics"].items():
        print(f"{name:<{width}}{value:.6g}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
