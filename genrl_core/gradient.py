"""How the gradient travels: an objective differentiates numbers, chunks carry that to the network.

A view turns rows (call, sample) into differentiable numbers. The rule:

1. Evaluate the numbers of all rows without gradient, or take the recorded ones where the rollout
   was drawn under the same weights. This record is the leaf.
2. Call the loss once on the whole matrix and take the gradient with respect to every field.
3. Run the network chunk by chunk and call ``torch.autograd.backward(fields, gradients)``.

By the chain rule this is exact for any loss, with the memory of one chunk. A separable loss skips
step 1: a chunk's fresh numbers are put into the matrix and reduced with the whole batch's
denominators, so that the chunks add up to the same loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genrl_core.records import Batch, Tensors, fold
from genrl_core.runtime import Runtime

Loss = Callable[[Batch], tuple[Tensor, Tensors]]


class View(Protocol):
    """One way to see a rollout as numbers: K calls of M terms for this rank's samples."""

    @property
    def calls(self) -> int: ...

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        """The differentiable numbers of rows, ``[R, M]`` each; ``b`` counts local samples."""
        ...

    def blank(self, batch: Batch) -> Tensors:
        """A constant for every field, ``[K * M, B]``: what entries outside the mask hold."""
        ...

    def insert(self, batch: Batch, values: Tensors) -> Batch:
        """The batch with its current numbers replaced; differentiable in ``values``."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What one pass found.

    Attributes:
        loss: its value, for the whole batch.
        metrics: unreduced, ``[T, B]`` or ``[B]``.
        drift: the largest |number in the second pass - leaf|; None where there was no leaf.
        batch: the batch with the current numbers in it, constant.
    """

    loss: float
    metrics: Tensors
    drift: float | None
    batch: Batch


class _Chunk(NamedTuple):
    """Rows (``k``, ``b``), ``[R]`` each, and the places ``[R, M]`` of their terms."""

    k: Tensor
    b: Tensor
    place: tuple[Tensor, Tensor]


def accumulate(
    view: View, batch: Batch, loss: Loss, columns: Tensor, runtime: Runtime, *,
    separable: bool, rows_per_forward: int, recorded: Tensors | None = None,
) -> Outcome:  # fmt: skip
    """Add the gradient of ``loss`` to the parameters that ``view`` reaches.

    Args:
        view: evaluates this rank's rows.
        batch: the global batch; its ``mask`` and ``valid`` say which rows are trained.
        loss: from the batch to a scalar and unreduced metrics.
        columns: ``[b]`` int64, where this rank's samples stand among the B of the batch.
        runtime: gathers the numbers of the other ranks.
        separable: whether the loss is a sum over terms.
        rows_per_forward: rows in one forward with gradient.
        recorded: ``[K * M, B]`` numbers known to hold under the current weights, if they are.
    """
    chunks = _chunks(view, batch, columns, rows_per_forward)
    if separable:
        return _one_pass(view, batch, loss, chunks, columns, runtime, recorded)
    names = view.blank(batch).keys()
    if recorded is None or recorded.keys() != names:
        recorded = evaluate(view, batch, columns, runtime, rows_per_forward)
    leaf = {name: recorded[name].clone().requires_grad_(True) for name in names}
    return _two_passes(view, batch, loss, chunks, leaf, runtime)


def _one_pass(
    view: View, batch: Batch, loss: Loss, chunks: list[_Chunk], columns: Tensor, runtime: Runtime,
    recorded: Tensors | None,
) -> Outcome:  # fmt: skip
    """Chunk by chunk: fresh numbers in the chunk's places, the whole batch's denominators."""
    fields = view.blank(batch)
    values = {name: blank.clone() for name, blank in fields.items()}
    for k, b, place in chunks:
        fresh = view.evaluate(k, b)
        part = {n: blank.index_put(place, fresh[n].to(blank)) for n, blank in fields.items()}
        inside = torch.zeros_like(batch.mask).index_put(place, torch.tensor(True))
        value, _ = loss(replace(view.insert(batch, part), mask=batch.mask & inside))
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]  # torch's own annotation
        _write(values, fresh, place)
    drift = _drift(values, recorded, chunks) if recorded else None
    values = _share(values, fields, columns, runtime)
    with torch.no_grad():
        whole = view.insert(batch, values)
        total, metrics = loss(whole)
    return Outcome(float(total), metrics, _agree(drift, runtime), whole)


def _two_passes(
    view: View, batch: Batch, loss: Loss, chunks: list[_Chunk], leaf: Tensors, runtime: Runtime
) -> Outcome:
    """The gradient of the leaf, carried through the network chunk by chunk."""
    total, metrics = loss(view.insert(batch, leaf))
    gradients = dict.fromkeys(leaf)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(leaf.values()), allow_unused=True)
        gradients = dict(zip(leaf, found, strict=True))
    constant = {name: matrix.detach() for name, matrix in leaf.items()}
    values = {name: matrix.clone() for name, matrix in constant.items()}
    for k, b, place in chunks:
        fresh = view.evaluate(k, b)
        pairs = [
            (fresh[name], gradient[place].to(fresh[name]))
            for name, gradient in gradients.items()
            if gradient is not None and fresh[name].requires_grad
        ]
        if pairs:
            torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])
        _write(values, fresh, place)
    drift = _agree(_drift(values, constant, chunks), runtime)
    metrics = {name: metric.detach() for name, metric in metrics.items()}
    return Outcome(float(total.detach()), metrics, drift, view.insert(batch, constant))


def evaluate(
    view: View, batch: Batch, columns: Tensor, runtime: Runtime, rows_per_forward: int
) -> Tensors:
    """The numbers of all trained rows without gradient, ``[K * M, B]`` each, on every rank."""
    blank = view.blank(batch)
    values = {name: matrix.clone() for name, matrix in blank.items()}
    with torch.no_grad():
        for k, b, place in _chunks(view, batch, columns, rows_per_forward):
            _write(values, view.evaluate(k, b), place)
    return _share(values, blank, columns, runtime)


def _chunks(view: View, batch: Batch, columns: Tensor, size: int) -> list[_Chunk]:
    """This rank's trained rows, call by call, in pieces of ``size``."""
    mask = batch.mask & batch.valid
    blank = next(iter(view.blank(batch).values()))
    if mask.shape != blank.shape:  # weighted sums over draws: every draw of them is a row
        mask = mask.repeat(len(blank) // len(mask), 1)
    k, b = fold(mask[:, columns], view.calls).any(1).nonzero(as_tuple=True)
    per_call = torch.arange(len(blank) // max(view.calls, 1))
    chunks = []
    for start in range(0, len(k), size):
        ks, bs = k[start : start + size], b[start : start + size]
        place = (ks.unsqueeze(1) * len(per_call) + per_call, columns[bs].unsqueeze(1))
        chunks.append(_Chunk(ks, bs, place))
    return chunks


def _write(values: Tensors, fresh: Tensors, place: tuple[Tensor, Tensor]) -> None:
    for name, matrix in values.items():
        matrix[place] = fresh[name].detach().to(matrix)


def _share(values: Tensors, blank: Tensors, columns: Tensor, runtime: Runtime) -> Tensors:
    """Every rank's own columns, on every rank."""
    if runtime.world_size == 1:
        return values
    total = next(iter(blank.values())).shape[1]
    return {n: runtime.gather(m[:, columns], columns, total) for n, m in values.items()}


def _drift(values: Tensors, leaf: Tensors, chunks: list[_Chunk]) -> float:
    worst = 0.0
    for *_, place in chunks:
        for name in values.keys() & leaf.keys():
            gap = (values[name][place] - leaf[name][place]).abs().max()
            if gap.isnan():
                return float("nan")
            worst = max(worst, float(gap))
    return worst


def _agree(drift: float | None, runtime: Runtime) -> float | None:
    return None if drift is None else runtime.largest(drift)
