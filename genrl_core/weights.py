"""Weight slots: the current weights and frozen companions, and the fixed set of what is trained."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genrl_core.policy import Policy


class Slots:
    """The weights of one policy under several names.

    ``current`` is what is trained. Another slot is a module of its own, put in the place of
    ``policy.network`` while it is active; parameters are never swapped inside a module, because
    autocast keeps casts of them. The set of trainable parameters is taken once, here: libraries
    that switch adapters flip ``requires_grad`` on the way.
    """

    def __init__(self, policy: Policy):
        self._policy = policy
        self._modules: dict[str, nn.Module] = {"current": policy.network}
        self.trainable: dict[str, nn.Parameter] = {
            name: p for name, p in policy.network.named_parameters() if p.requires_grad
        }

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def freeze(self, name: str) -> None:
        """Make the slot ``name`` a frozen copy of the current weights as they are now."""
        frozen = copy.deepcopy(self._modules["current"])
        frozen.requires_grad_(False)
        frozen.eval()
        self._modules[name] = frozen

    @contextmanager
    def active(self, name: str) -> Iterator[Policy]:
        """The policy under the weights of a slot; the slot before comes back at the end.

        Raises:
            KeyError: no such slot (a fault of the caller, not of the user).
        """
        before = self._policy.network
        self._policy.network = self._modules[name]
        try:
            yield self._policy
        finally:
            self._policy.network = before

    def state_dict(self) -> dict[str, Tensor]:
        """The trained parameters and the buffers of the current weights."""
        network = self._modules["current"]
        buffers = {f"buffer.{name}": b.detach() for name, b in network.named_buffers()}
        return {name: p.detach() for name, p in self.trainable.items()} | buffers

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from ``state_dict``.

        Raises:
            ValueError: names or shapes differ, with the differences.
        """
        own = self.state_dict()
        problems = [f"missing {name}" for name in own.keys() - tensors.keys()]
        problems += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
            for name in own.keys() & tensors.keys()
            if own[name].shape != tensors[name].shape
        ]
        if problems:
            raise ValueError("; ".join(sorted(problems)))
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers: whether two modules hold the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
