"""State dicts in files: read without running code, compared with a network, and put into it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrl_core import RecipeError, Tensors

WEIGHT_FILES = (
    "pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What the weights may be called, the first that is found being taken; an index names shards."""

_SHOWN = 5
"""How many keys of a kind a message lists before it counts the rest."""


def read_tensors(path: Path, field: str, inside: str | None = None) -> Tensors:
    """The tensors of one file by key, on the CPU.

    Read is safetensors, or a pickle of tensors alone (``weights_only=True``).

    Args:
        path: the file.
        field: what the recipe calls it, for messages.
        inside: the key under which the state dict may stand in a pickle of several things.

    Raises:
        RecipeError: it is damaged, or a pickle that holds anything but a dictionary of tensors.
    """
    found = _read(path, field)
    if inside is not None and isinstance(found, dict):
        found = found.get(inside, found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise RecipeError(
            f"{field}: {path} holds no plain state dict, a tensor per key: save the model's "
            "state_dict() alone"
        )
    return {str(key): value for key, value in found.items()}


def _read(path: Path, field: str) -> Any:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RecipeError(f"{field}: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{field}: {path} ({path.stat().st_size} bytes) cannot be read as tensors: "
            f"{first}. It is damaged, half downloaded, a Git LFS pointer, or a pickle of "
            "other things, which GenRL does not open: download it again, as safetensors if possible"
        ) from error


def fit_tensors(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put a state dict into a network, which may be on the meta device; all keys must agree.

    The tensors become the network's own, in the dtype and on the device that they have.

    Raises:
        RecipeError: keys are missing, unexpected, of another shape, or integers where numbers
            with a fraction belong; ``where`` begins it.
    """
    expected = network.state_dict()
    pairs = [(key, state[key], own) for key, own in expected.items() if key in state]
    kinds = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {list(found.shape)} instead of {list(own.shape)}"
            for key, found, own in pairs
            if found.shape != own.shape
        ],
        "quantised, or of another kind of number": [
            f"{key} {str(found.dtype).removeprefix('torch.')}"
            for key, found, own in pairs
            if found.is_floating_point() != own.is_floating_point()
        ],
    }
    problems = [f"{len(keys)} {kind} ({listing(keys)})" for kind, keys in kinds.items() if keys]
    if problems:  # load_state_dict would list every key, and take integers for floats
        raise RecipeError(f"{where} does not fit: of {len(expected)} keys, {', '.join(problems)}")
    network.load_state_dict(dict(state), strict=True, assign=True)


def listing(names: Iterable[str]) -> str:
    """The first few names in the order given, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) or "nothing") + more
