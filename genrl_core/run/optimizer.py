"""An optimizer's state under its parameters' names, as tensors and JSON, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

    Both name what they hold ``state.<parameter>.<name>``, with the parameter's name in ``network``,
    or ``param_groups.<number>.<name>``.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    # Flattened by torch, every group's settings would stand once for each of its parameters, and
    # a parameter that never had a gradient could not be loaded.
    with _left_unstepped(optimizer):
        found: dict[str, Any] = get_optimizer_state_dict(network, optimizer)
    owners = {f"state.{name}": entry for name, entry in found["state"].items()}
    owners |= {f"param_groups.{i}": group for i, group in enumerate(found["param_groups"])}
    values = {f"{owner}.{n}": v for owner, entry in owners.items() for n, v in entry.items()}
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    parameters = {
        name: _described(parameter)
        for named, group in zip(found["param_groups"], optimizer.param_groups, strict=True)
        for name, parameter in zip(named["params"], group["params"], strict=True)
    }
    rest = {key: value for key, value in values.items() if key not in tensors}
    packed = {"class": type(optimizer).__name__, "parameters": parameters, "values": rest}
    return tensors, packed | {"tensors": sorted(tensors)}


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
    """What ``optimizer_state`` gave, as torch wants it back, nothing copied and nothing changed.

    A fused AdamW reads and writes a moment by the parameter's size and looks at nothing, so every
    tensor is compared with its parameter here.

    Raises:
        CheckpointError: it belongs to another optimizer or to other parameters, or tensors are
            missing, foreign, or of another shape or type than their parameter.
    """
    own_tensors, own = optimizer_state(network, optimizer)
    if json_state["class"] != own["class"]:
        raise CheckpointError(
            f"the checkpoint's optimizer is {json_state['class']}, the recipe's is {own['class']}"
        )
    saved, live = json_state["parameters"], own["parameters"]
    for name in {**saved, **live}:
        if saved.get(name) != live.get(name):
            raise CheckpointError(
                "the checkpoint's optimizer trains other parameters "
                f"({name}: {saved.get(name, 'nothing')}, here {live.get(name, 'nothing')})"
            )
    if odd := set(tensors) ^ set(json_state["tensors"]):
        raise CheckpointError(f"tensors of the optimizer are missing or foreign: {sorted(odd)[:5]}")
    state, groups = _by_owner({**json_state["values"], **tensors})
    _, own_groups = _by_owner({**own["values"], **own_tensors})
    if _members(groups) != _members(own_groups):
        raise CheckpointError("the checkpoint's optimizer groups its parameters in another way")
    names = set().union(*state.values())
    for owner, entry in state.items():
        if lacking := names - entry.keys():
            raise CheckpointError(f"the optimizer's state of {owner} lacks {sorted(lacking)}")
        for name, value in entry.items():
            if isinstance(value, Tensor) and (wrong := _misfit(name, value, live[owner])):
                raise CheckpointError(f"the optimizer's {name} of {owner} {wrong}")
    settings = [_settings(groups[number], group) for number, group in own_groups.items()]
    return {"state": state, "param_groups": settings}


Entries = dict[str, dict[str, Any]]


def _by_owner(values: Mapping[str, Any]) -> tuple[Entries, Entries]:
    """The entries of every parameter, and the settings of every group by its number."""
    found: dict[str, Entries] = {"state": {}, "param_groups": {}}
    for key, value in values.items():
        kind, _, rest = key.partition(".")
        owner, _, name = rest.rpartition(".")
        found[kind].setdefault(owner, {})[name] = value
    return found["state"], found["param_groups"]


def _members(groups: Entries) -> dict[str, Any]:
    return {number: group.get("params") for number, group in groups.items()}


def _settings(saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings as they were; JSON knows no tuples, and torch compares betas as given."""
    if odd := saved.keys() ^ live.keys():
        raise CheckpointError(f"settings of the optimizer are missing or foreign: {sorted(odd)}")
    if odd := {n for n, v in saved.items() if _kind(v) != _kind(live[n])}:
        raise CheckpointError(f"settings of the optimizer are of another kind: {sorted(odd)}")
    return {n: tuple(v) if isinstance(live[n], tuple) else v for n, v in saved.items()}


def _kind(value: Any) -> str | bool:
    return _described(value) if isinstance(value, Tensor) else isinstance(value, int | float)


def _misfit(name: str, tensor: Tensor, parameter: str) -> str:
    """Why a tensor of an optimizer's state cannot be a parameter's, as half a sentence."""
    if name in _COUNTERS:
        fits = tensor.dim() == 0 and tensor.is_floating_point()
        return "" if fits else f"is {_described(tensor)}, and must be one float"
    found = _described(tensor)
    return "" if found == parameter else f"is {found}, and its parameter is {parameter}"


def _described(tensor: Tensor) -> str:
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
