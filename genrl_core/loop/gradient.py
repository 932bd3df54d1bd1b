"""How the gradient travels: an objective differentiates numbers, chunks carry that to the network.

This is gradient caching (GradCache, arXiv 2101.06983) with the denominators of the whole batch. A
view turns rows (evaluation, sample) into differentiable numbers. The rule:

1. Evaluate the numbers of all rows without gradient, or take the recorded ones where the rollout
   was drawn under the same weights.
2. Call the loss once on the whole matrix and take the gradient with respect to every number.
3. Run the network chunk by chunk and call ``torch.autograd.backward(numbers, gradients)``.

By the chain rule this is exact for any loss, with the memory of one chunk. A separable loss skips
step 1: a chunk's fresh numbers are put into the matrix and reduced with the whole batch's
denominators, so that the chunks add up to the same loss. That they do is checked at every pass.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch, Metric
from genrl_core.interfaces.records import Tensors, split_evals
from genrl_core.loop.distributed import Runtime

Metrics = dict[str, Metric]
Loss = Callable[[Batch], tuple[Tensor, Metrics]]


class Evaluated(Protocol):
    """What is differentiated; ``genrl_core.View`` says what each part means."""

    @property
    def num_evals(self) -> int: ...
    def evaluate(self, k: Tensor, b: Tensor) -> Tensors: ...
    def fill_values(self, batch: Batch) -> Tensors: ...
    def with_current(self, batch: Batch, values: Tensors) -> Batch: ...


@dataclass(frozen=True)
class Outcome:
    """What one pass found.

    Attributes:
        loss: its value, for the whole batch.
        metrics: unreduced and constant.
        drift: the largest |number in the second pass - the first|; None where none was recorded.
        batch: the batch with the current numbers in it, constant.
        moves: whether the gradient of any trained number is not 0, on any rank.
    """

    loss: float
    metrics: Metrics
    drift: float | None
    batch: Batch
    moves: bool


class _Chunk(NamedTuple):
    """Rows (``k``, ``b``), ``[R]`` each, and the places ``[R, M]`` of their terms."""

    k: Tensor
    b: Tensor
    place: tuple[Tensor, Tensor]


def accumulate(
    view: Evaluated, batch: Batch, loss: Loss, sample_index: Tensor, runtime: Runtime, *,
    separable: bool, micro_batch_size: int, recorded: Tensors | None = None,
) -> Outcome:  # fmt: skip
    """Add the gradient of ``loss`` to the parameters that ``view`` reaches.

    Args:
        view: evaluates this rank's rows.
        batch: the global batch; its ``mask`` and ``valid`` say which rows are trained.
        loss: from the batch to a scalar and unreduced, constant metrics.
        sample_index: ``[b]`` int64, where this rank's samples stand among the B of the batch.
        runtime: gathers the numbers of the other ranks.
        separable: whether the loss is a sum over terms.
        micro_batch_size: rows in one forward with gradient.
        recorded: ``[K * M, B]`` numbers known to hold under the current weights, if they are.

    Raises:
        GenRLError: the loss is said to be separable, and its chunks do not add up to it.
    """
    chunks = _chunks(view, batch, sample_index, micro_batch_size)
    if separable:
        return _one_pass(view, batch, loss, chunks, sample_index, runtime, recorded)
    names = view.fill_values(batch).keys()
    if recorded is None or recorded.keys() != names:
        recorded = evaluate(view, batch, sample_index, runtime, micro_batch_size)
    leaf = {name: recorded[name].clone().requires_grad_(True) for name in names}
    return _two_passes(view, batch, loss, chunks, leaf, runtime)


def _one_pass(
    view: Evaluated, batch: Batch, loss: Loss, chunks: list[_Chunk], sample_index: Tensor,
    runtime: Runtime, recorded: Tensors | None,
) -> Outcome:  # fmt: skip
    """Chunk by chunk: fresh numbers in the chunk's places, the whole batch's denominators."""
    fields = view.fill_values(batch)
    values = {name: blank.clone() for name, blank in fields.items()}
    parts, slopes = [], []
    for k, b, place in chunks:
        fresh = view.evaluate(k, b)
        for number in fresh.values():
            if number.requires_grad:
                number.retain_grad()
        part = {n: blank.index_put(place, fresh[n].to(blank)) for n, blank in fields.items()}
        inside = torch.zeros_like(batch.mask).index_put(place, torch.tensor(True))
        value, metrics = loss(replace(view.with_current(batch, part), mask=batch.mask & inside))
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]  # torch's own annotation
        parts.append(float(value.detach()))
        slopes.append(_slopes(fresh, {n: each.grad for n, each in fresh.items()}))
        _write(values, fresh, place)
    drift = _drift(values, recorded, chunks) if recorded else None
    values = _share(values, fields, sample_index, runtime)
    every = [part for rank in runtime.collect(parts) for part in rank]
    moves = _moves(slopes, runtime)
    if len(chunks) != 1 or runtime.world_size > 1:  # a chunk that is alone has said all of it
        leaf = {name: matrix.clone().requires_grad_(moves) for name, matrix in values.items()}
        value, metrics = loss(view.with_current(batch, leaf))
        if moves:
            _check_parts(value, every, leaf, chunks, slopes, runtime)
    drift = _agree(drift, runtime)
    return Outcome(float(value.detach()), metrics, drift, view.with_current(batch, values), moves)


def _slopes(fresh: Tensors, gradients: Mapping[str, Tensor | None]) -> Tensors:
    """The gradient of a chunk's numbers, ``[R, M]`` each, where they reach the network."""
    found = {}
    for name, number in fresh.items():
        if number.requires_grad:
            slope = gradients[name]
            found[name] = torch.zeros_like(number) if slope is None else slope
    return found


def _moves(slopes: list[Tensors], runtime: Runtime) -> bool:
    """Whether any of the gradients is not 0, on any rank."""
    mine = any(bool((slope != 0).any()) for chunk in slopes for slope in chunk.values())
    return runtime.largest(float(mine)) > 0


def _check_parts(
    total: Tensor, parts: list[float], leaf: Tensors, chunks: list[_Chunk], slopes: list[Tensors],
    runtime: Runtime,
) -> None:  # fmt: skip
    """Losses and gradients of all chunks must be those of the whole batch, but for rounding.

    Gradients are compared number by number, up to the root of the precision times the largest:
    there nothing cancels. What cancels in the sum of the losses is bounded by the gradients times
    their numbers, or times 1 where these are small, as they are for ratios.

    Raises:
        GenRLError: they are not, with both sums; alike on every rank.
    """
    gradients = {n: torch.zeros_like(matrix) for n, matrix in leaf.items()}
    if total.requires_grad:
        found = torch.autograd.grad(total, list(leaf.values()), materialize_grads=True)
        gradients = dict(zip(leaf, found, strict=True))
    numbers = [each for chunk in slopes for each in chunk.values()]
    precision = max([torch.finfo(n.dtype).eps for n in (*leaf.values(), *numbers)]) ** 0.5
    gap = 0.0
    for (*_, place), chunk in zip(chunks, slopes, strict=True):
        for name, slope in chunk.items():
            apart = float((gradients[name][place] - slope.to(leaf[name])).abs().max())
            gap = max(gap, apart)
    gap, precision = runtime.largest(gap), runtime.largest(precision)
    steepest = max(float(each.abs().max()) for each in gradients.values())
    whole, added = float(total.detach()), math.fsum(parts)
    size = abs(whole) + math.fsum(map(abs, parts))
    for name, gradient in gradients.items():
        size += float((gradient.abs() * (1 + leaf[name].detach().abs())).sum())
    if gap > precision * steepest or abs(added - whole) > precision * size:
        raise GenRLError(
            f"the losses of {len(parts)} chunks add up to {added:.6g}, and that of the whole batch "
            f"is {whole:.6g}; their gradients differ by up to {gap:.3g}, of {steepest:.3g}. An "
            "objective that says separable = True couples terms or samples, so that its gradient "
            "would depend on train.micro_batch_size: leave separable at False there, or build the "
            "loss from batch.reduce of a number per term alone"
        )


def _two_passes(
    view: Evaluated, batch: Batch, loss: Loss, chunks: list[_Chunk], leaf: Tensors, runtime: Runtime
) -> Outcome:
    """The gradient of the leaf, carried through the network chunk by chunk."""
    total, metrics = loss(view.with_current(batch, leaf))
    gradients = dict.fromkeys(leaf)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(leaf.values()), allow_unused=True)
        gradients = dict(zip(leaf, found, strict=True))
    constant = {name: matrix.detach() for name, matrix in leaf.items()}
    values = {name: matrix.clone() for name, matrix in constant.items()}
    slopes = []
    for k, b, place in chunks:
        fresh = view.evaluate(k, b)
        slopes.append({
            name: gradient[place]
            for name, gradient in gradients.items()
            if gradient is not None and fresh[name].requires_grad
        })  # fmt: skip
        pairs = [(fresh[name], slope.to(fresh[name])) for name, slope in slopes[-1].items()]
        if pairs:
            torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])
        _write(values, fresh, place)
    drift = _agree(_drift(values, constant, chunks), runtime)
    moves = _moves(slopes, runtime)
    return Outcome(float(total.detach()), metrics, drift, view.with_current(batch, constant), moves)


def evaluate(
    view: Evaluated, batch: Batch, sample_index: Tensor, runtime: Runtime, micro_batch_size: int
) -> Tensors:
    """The numbers of all trained rows without gradient, ``[K * M, B]`` each, on every rank."""
    blank = view.fill_values(batch)
    values = {name: matrix.clone() for name, matrix in blank.items()}
    with torch.no_grad():
        for k, b, place in _chunks(view, batch, sample_index, micro_batch_size):
            _write(values, view.evaluate(k, b), place)
    return _share(values, blank, sample_index, runtime)


def _chunks(view: Evaluated, batch: Batch, sample_index: Tensor, size: int) -> list[_Chunk]:
    """This rank's trained rows, call by call, in pieces of ``size``."""
    mask = batch.mask & batch.valid
    blank = next(iter(view.fill_values(batch).values()))
    if mask.shape != blank.shape:  # weighted sums over draws: every draw of them is a row
        mask = mask.repeat(len(blank) // len(mask), 1)
    k, b = split_evals(mask[:, sample_index], view.num_evals).any(1).nonzero(as_tuple=True)
    per_eval = torch.arange(len(blank) // max(view.num_evals, 1))
    chunks = []
    for start in range(0, len(k), size):
        ks, bs = k[start : start + size], b[start : start + size]
        place = (ks.unsqueeze(1) * len(per_eval) + per_eval, sample_index[bs].unsqueeze(1))
        chunks.append(_Chunk(ks, bs, place))
    return chunks


def _write(values: Tensors, fresh: Tensors, place: tuple[Tensor, Tensor]) -> None:
    for name, matrix in values.items():
        matrix[place] = fresh[name].detach().to(matrix)


def _share(values: Tensors, blank: Tensors, sample_index: Tensor, runtime: Runtime) -> Tensors:
    """Every rank's own columns, on every rank."""
    if runtime.world_size == 1:
        return values
    total = next(iter(blank.values())).shape[1]
    return {n: runtime.gather(m[:, sample_index], sample_index, total) for n, m in values.items()}


def _drift(values: Tensors, leaf: Tensors, chunks: list[_Chunk]) -> float:
    worst = 0.0
    for *_, place in chunks:
        for name in values.keys() & leaf.keys():
            gap = float((values[name][place] - leaf[name][place]).abs().max())
            if math.isnan(gap):
                return gap
            worst = max(worst, gap)
    return worst


def _agree(drift: float | None, runtime: Runtime) -> float | None:
    return None if drift is None else runtime.largest(drift)
