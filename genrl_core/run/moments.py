"""An optimizer's state as tensors and JSON, and back, every tensor compared with its parameter."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genrl_core.errors import CheckpointError

_COUNTERS = ("step", "eta", "mu", "mu_product")
"""What torch's optimizers keep as one number for each parameter; all else has its shape."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors (not copied) and JSON, for ``load_optimizer``.

    Tensors are named ``<parameter>.<name>`` and, where a setting of a group is a tensor,
    ``group<number>.<name>``.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entry in packed["state"].items():
        for name, value in entry.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    groups = []
    for number, group in enumerate(packed["param_groups"]):
        held = {name: value for name, value in group.items() if isinstance(value, Tensor)}
        tensors |= {f"group{number}.{name}": value for name, value in held.items()}
        groups.append({name: value for name, value in group.items() if name not in held})
    kind, shapes = type(optimizer).__name__, _shapes(optimizer)
    packed = {"class": kind, "shapes": shapes, "scalars": scalars, "groups": groups}
    return tensors, packed | {"tensors": sorted(tensors)}


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], json_state: Mapping[str, Any]
) -> None:
    """Put back what ``optimizer_tensors`` gave, bit for bit.

    Raises:
        CheckpointError: as for ``optimizer_state``.
    """
    packed = optimizer_state(optimizer, tensors, json_state)
    for entry in (*packed["state"].values(), *packed["param_groups"]):
        # Cloned, since the optimizer would otherwise write into the snapshot.
        entry |= {n: v.clone() for n, v in entry.items() if isinstance(v, Tensor)}
    optimizer.load_state_dict(packed)


def optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], json_state: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``optimizer_tensors`` gave, as the optimizer's own ``state_dict``, nothing copied.

    A fused AdamW reads and writes a moment by the parameter's size and looks at nothing, so that
    every tensor is compared with its parameter here.

    Raises:
        CheckpointError: it belongs to another optimizer or to other parameters, or tensors are
            missing, foreign, or of another shape or type than their parameter.
    """
    if json_state["class"] != type(optimizer).__name__:
        raise CheckpointError(
            f"the checkpoint's optimizer is {json_state['class']}, "
            f"the recipe's is {type(optimizer).__name__}"
        )
    if json_state["shapes"] != _shapes(optimizer):
        raise CheckpointError(
            "the checkpoint's optimizer trains parameters of other shapes or in another order "
            f"({_first_difference(json_state['shapes'], _shapes(optimizer))})"
        )
    if odd := set(tensors) ^ set(json_state["tensors"]):
        raise CheckpointError(f"tensors of the optimizer are missing or foreign: {sorted(odd)[:5]}")
    groups = [
        _settings(saved, live)
        for saved, live in zip(json_state["groups"], optimizer.param_groups, strict=True)
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **json_state["scalars"]}.items():
        owner, _, name = key.partition(".")
        numbered = owner.removeprefix("group")
        if numbered != owner:
            groups[int(numbered)][name] = value
            continue
        if isinstance(value, Tensor) and (wrong := _misfit(name, value, parameters[int(owner)])):
            raise CheckpointError(f"the optimizer's {key} {wrong}")
        state.setdefault(int(owner), {})[name] = value
    _same_names(state)
    return {"state": state, "param_groups": groups}


def _settings(saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings as they were; JSON knows no tuples, and torch compares betas as given."""
    if odd := {n for n, v in live.items() if not isinstance(v, Tensor)} ^ saved.keys():
        raise CheckpointError(f"settings of the optimizer are missing or foreign: {sorted(odd)}")
    if odd := {n for n, v in saved.items() if _is_number(v) != _is_number(live[n])}:
        raise CheckpointError(f"settings of the optimizer are no numbers, or are: {sorted(odd)}")
    return {n: tuple(v) if isinstance(live[n], tuple) else v for n, v in saved.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _misfit(name: str, tensor: Tensor, parameter: Tensor) -> str:
    """Why a tensor of an optimizer's state cannot be a parameter's, as half a sentence."""
    wanted = torch.Size() if name in _COUNTERS else parameter.shape
    if tensor.shape != wanted:
        return f"has the shape {list(tensor.shape)}, and its parameter wants {list(wanted)}"
    if name in _COUNTERS:
        return "" if tensor.is_floating_point() else f"is {tensor.dtype}, and steps are float32"
    if tensor.dtype != parameter.dtype:
        return f"is {tensor.dtype}, and its parameter {parameter.dtype}"
    return ""


def _same_names(state: Mapping[int, Mapping[str, Any]]) -> None:
    """Every parameter that was stepped has the same entries."""
    names = set().union(*state.values())
    for index, entry in state.items():
        if lacking := names - entry.keys():
            raise CheckpointError(f"parameter {index} of the optimizer lacks {sorted(lacking)}")


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]


def _first_difference(saved: list[list[Any]], live: list[list[Any]]) -> str:
    if [len(group) for group in saved] != [len(group) for group in live]:
        return f"groups of {[len(g) for g in saved]} parameters, here {[len(g) for g in live]}"
    pairs = ((a, b) for x, y in zip(saved, live, strict=True) for a, b in zip(x, y, strict=True))
    return next(f"shape {a}, here {b}" for a, b in pairs if a != b)
