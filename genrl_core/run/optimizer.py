"""An optimizer's state under its parameters' names, as tensors and JSON, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from genrl_core.errors import CheckpointError

_COUNTERS = ("step", "eta", "mu", "mu_product")
"""What torch's optimizers keep as one number for each parameter; all else has its shape."""


def optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors (not copied) and JSON, for ``load_optimizer_state``.

    Returns:
        The tensors, named ``<parameter>.<entry>`` with the parameter's name in ``network``, or
        ``param_groups.<number>.<setting>``, and everything else, with a description in place of
        each of them.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    # Flattened by torch, every group's settings would stand once for each of its parameters, and
    # a parameter that never had a gradient could not be loaded.
    with _left_unstepped(optimizer):
        found: dict[str, Any] = get_optimizer_state_dict(network, optimizer)
    tensors: dict[str, Tensor] = {}

    def described(owner: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        held = {name: value for name, value in entry.items() if isinstance(value, Tensor)}
        tensors.update({f"{owner}.{name}": tensor for name, tensor in held.items()})
        return {**entry, **{name: _describe(tensor) for name, tensor in held.items()}}

    state = {name: described(name, entry) for name, entry in found["state"].items()}
    groups = [described(f"param_groups.{i}", g) for i, g in enumerate(found["param_groups"])]
    return tensors, {"class": type(optimizer).__name__, "state": state, "param_groups": groups}


def load_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor],
    json_state: Mapping[str, Any],
) -> None:  # fmt: skip
    """Put back what ``optimizer_state`` gave, bit for bit.

    Raises:
        CheckpointError: as for ``check_optimizer_state``; nothing has changed then.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    packed = check_optimizer_state(network, optimizer, tensors, json_state)
    for entry in packed["state"].values():
        # Cloned, since the optimizer would otherwise write into the snapshot.
        entry |= {n: v.clone() for n, v in entry.items() if isinstance(v, Tensor)}
    # Not strict, since a parameter that never had a gradient has no state.
    options = StateDictOptions(strict=False)
    with _left_unstepped(optimizer):
        set_optimizer_state_dict(network, optimizer, packed, options=options)


def check_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor],
    json_state: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What ``optimizer_state`` gave, as torch wants it back; nothing is copied or changed.

    A fused AdamW reads and writes a moment by the parameter's size and looks at nothing, so every
    tensor is compared with its parameter here.

    Raises:
        CheckpointError: it belongs to another optimizer or to other parameters, or tensors are
            missing, foreign, or of another shape or type than their parameter.
    """
    _, own = optimizer_state(network, optimizer)
    saved, kind, groups = json_state["class"], own["class"], own["param_groups"]
    if saved != kind:
        raise CheckpointError(f"the checkpoint's optimizer is {saved}, the recipe's is {kind}")
    then = [group["params"] for group in json_state["param_groups"]]
    now = [group["params"] for group in groups]
    if then != now:
        odd = sorted(set(chain(*then)) ^ set(chain(*now)))
        what = f"other parameters ({', '.join(odd[:5])})" if odd else "parameters in other groups"
        raise CheckpointError(f"the checkpoint's optimizer trains {what}")
    parameters = {
        name: _describe(parameter)
        for group, live in zip(groups, optimizer.param_groups, strict=True)
        for name, parameter in zip(group["params"], live["params"], strict=True)
    }
    left = dict(tensors)
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in json_state["state"].items():
        entries[name] = {key: left.pop(f"{name}.{key}", value) for key, value in entry.items()}
        for key, value in entries[name].items():
            if wrong := _misfit(key, value, parameters.get(name, "unknown")):
                raise CheckpointError(f"the optimizer's {key} of {name} {wrong}")
    expected = set().union(*entries.values())
    if odd := [name for name, entry in entries.items() if entry.keys() != expected]:
        raise CheckpointError(f"the optimizer's state of {odd[0]} lacks some of {expected}")
    settings = [
        _settings({n: left.pop(f"param_groups.{i}.{n}", v) for n, v in saved.items()}, live)
        for i, (saved, live) in enumerate(
            zip(json_state["param_groups"], optimizer.param_groups, strict=True)
        )
    ]
    if left:
        raise CheckpointError(f"foreign tensors of the optimizer: {sorted(left)[:5]}")
    return {"state": entries, "param_groups": settings}


def _settings(saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings as they were; JSON knows no tuples, and torch compares betas as given."""
    if odd := saved.keys() ^ live.keys():
        raise CheckpointError(f"settings of the optimizer are missing or foreign: {sorted(odd)}")
    if odd := {n for n, v in saved.items() if _kind(v) != _kind(live[n])}:
        raise CheckpointError(f"settings of the optimizer are of another kind: {sorted(odd)}")
    return {n: tuple(v) if isinstance(live[n], tuple) else v for n, v in saved.items()}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return _describe(value)
    return "number" if isinstance(value, int | float) else "other"


def _misfit(name: str, value: Any, parameter: str) -> str:
    """Why an entry of an optimizer's state cannot be a parameter's, as half a sentence."""
    if not isinstance(value, Tensor):
        return "is missing" if isinstance(value, str) else ""
    if name in _COUNTERS:
        fits = value.dim() == 0 and value.is_floating_point()
        return "" if fits else f"is {_describe(value)}, and must be one float"
    found = _describe(value)
    return "" if found == parameter else f"is {found}, and its parameter is {parameter}"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@contextmanager
def _left_unstepped(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep torch from filling an optimizer without state by a step with zero gradients.

    Bias corrections would count that step. Torch takes the optimizer as it is where it finds an
    entry, be it empty.
    """
    first = optimizer.param_groups[0]["params"][0]
    optimizer.state.setdefault(first, {})
    try:
        yield
    finally:
        if optimizer.state.get(first) == {}:
            del optimizer.state[first]
