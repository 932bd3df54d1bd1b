"""The only module that knows accelerate and torch.distributed: ranks, gathering, reduction."""

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genrl_core.errors import GenRLError

T = TypeVar("T")


class Runtime:
    """Where this process stands among its peers, and the few things they do together.

    Numbers are global, networks local: ``gather`` brings per-sample numbers to every rank, and
    ``reduce_gradients`` is the one all-reduce that makes an update equal on every rank.
    """

    def __init__(self, device: str = "auto", alone: bool = False):
        """Join the launcher's process group, if there is one.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.
            alone: ignore the process group: for what one rank does by itself.

        Raises:
            GenRLError: ``cuda`` was asked for and is not there.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise GenRLError("run.device is cuda, but torch sees no GPU: choose auto or cpu")
        self._cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self._distributed = not alone and int(os.environ.get("WORLD_SIZE", "1")) > 1

    @cached_property
    def _state(self) -> Any:
        from accelerate import PartialState

        return PartialState(cpu=not self._cuda)

    @property
    def rank(self) -> int:
        return int(self._state.process_index) if self._distributed else 0

    @property
    def world_size(self) -> int:
        return int(self._state.num_processes) if self._distributed else 1

    @property
    def device(self) -> torch.device:
        if self._distributed:
            return torch.device(self._state.device)
        return torch.device("cuda" if self._cuda else "cpu")

    @property
    def main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self._distributed:
            self._state.wait_for_everyone()

    def own_groups(self, groups: int) -> list[int]:
        """The groups that this rank draws, by number; a group's samples stay on one rank."""
        return list(range(self.rank, groups, self.world_size))

    def gather(self, local: Tensor, sample_index: Tensor, total: int) -> Tensor:
        """Per-sample numbers of all ranks, in plan order, equal on every rank.

        Args:
            local: ``[..., b]`` on the CPU, this rank's samples in the last axis. Leading axes may
                differ between ranks in length; the result has the largest, zeros elsewhere.
            sample_index: ``[b]`` int64, the place of each among ``total``.
            total: B.

        Returns:
            ``[..., B]`` of the same dtype.
        """
        lead = list(local.shape[:-1])
        if self._distributed and lead:
            longest = torch.tensor(lead, dtype=torch.int64, device=self.device)
            torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
            lead = longest.tolist()
        dtype = torch.int64 if local.dtype == torch.bool else local.dtype
        whole = torch.zeros(*lead, total, dtype=dtype)
        part = whole[tuple(slice(size) for size in local.shape[:-1])]
        part[..., sample_index] = local.to(dtype)
        if self._distributed:
            shared = whole.to(self.device)
            torch.distributed.all_reduce(shared)
            whole = shared.cpu()
        return whole.to(local.dtype)

    def largest(self, value: float) -> float:
        """The largest value over all ranks; NaN wins."""
        if not self._distributed:
            return value
        values = torch.zeros(self.world_size, dtype=torch.float64, device=self.device)
        values[self.rank] = value
        torch.distributed.all_reduce(values)
        return float(values.max())

    def collect(self, item: T) -> list[T]:
        """A small picklable object of every rank, in rank order."""
        if not self._distributed:
            return [item]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, item)
        return found

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all ranks: each holds the part of its own samples.

        The loss on every rank is that of the whole batch, with its denominators, and a rank carries
        back the slopes of its own rows alone; so the sum is the gradient, and no mean is taken.

        One explicit all-reduce after the last chunk. A parameter that only some ranks reached
        counts as zero on the others; one that none reached keeps no gradient, as in one process.
        """
        if not self._distributed:
            return
        every = list(parameters)
        reached = torch.tensor([p.grad is not None for p in every], device=self.device).int()
        torch.distributed.all_reduce(reached, torch.distributed.ReduceOp.MAX)
        for parameter, anywhere in zip(every, reached.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""
        if self._distributed:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def close(self, *, together: bool = True) -> None:
        """Leave the process group, all ranks together.

        Without waiting for each other a gloo thread may still hold tensors while the interpreter
        ends, and a finished rank aborts. A rank that failed must not wait: the others may be
        waiting for it elsewhere.
        """
        if self._distributed:
            if together:
                self.barrier()
            self._state.destroy_process_group()
