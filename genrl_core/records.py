"""The frozen records that flow through the loop, and the letters of their shapes.

    B  samples                          T = K * M  terms of a sample, index k * M + m
    G  samples per prompt               D  corruption draws of a bound
    K  network calls that score one     R  rows: pairs (call, sample) or (draw, sample)
    M  terms scored by one call         N  positions   V  vocabulary   C H W F  image and frames

The sample axis of ``cond``, ``trace`` and ``final`` comes first, so one rule selects and pads them.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

from genrl_core.batch import Batch
from genrl_core.media import Media, Prompt

__all__ = [
    "Batch", "Matching", "Media", "Others", "Plan", "Prompt", "Scored", "Streams", "Tensors",
    "Terms", "Trajectory", "concat", "fold", "take",
]  # fmt: skip

Tensors = dict[str, Tensor]
"""Named tensors with the sample axis first."""

Others = Mapping[str, Callable[[], AbstractContextManager[Any]]]
"""Weight slots other than the current one: name -> what activates the slot inside a ``with``."""


class Streams:
    """One random stream per sample: the only randomness there is.

    A stream is a counter-based generator (Philox) keyed by a hash of the sample's coordinates, so
    what a sample draws depends neither on the batch it stands in nor on the device or the number of
    processes. Draws are float32 on ``device``; successive calls continue the stream. Generators are
    made by the first draw: streams that nothing draws from cost nothing.
    """

    def __init__(
        self, keys: Sequence[str], shared_keys: Sequence[str], device: torch.device | str = "cpu",
        across_updates: "Streams | None" = None,
    ):  # fmt: skip
        self._keys = tuple(keys)
        self._shared_keys = tuple(shared_keys)
        self._device = torch.device(device)
        self._across_updates = across_updates

    @property
    def shared(self) -> "Streams":
        """Streams that give every sample of a group the same draw."""
        across = self._across_updates
        return Streams(
            self._shared_keys, self._shared_keys, self._device,
            None if across is None else across.shared,
        )  # fmt: skip

    @property
    def across_updates(self) -> "Streams":
        """Fresh streams that are the same in every update of an iteration.

        Raises:
            ValueError: these streams do not belong to an update; ``joined`` makes them.
        """
        if self._across_updates is None:
            raise ValueError("these streams belong to no update: make them with joined(others)")
        return Streams(self._across_updates._keys, self._across_updates._shared_keys, self._device)

    def joined(self, across_updates: "Streams") -> "Streams":
        """These streams, fresh, with others of the same samples as their ``across_updates``."""
        return Streams(self._keys, self._shared_keys, self._device, across_updates)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def device(self) -> torch.device:
        """Where the draws are put."""
        return self._device

    @staticmethod
    def concat(parts: Sequence["Streams"]) -> "Streams":
        """Fresh streams of the samples of several plans, side by side."""
        keys = [key for part in parts for key in part._keys]
        shared = [key for part in parts for key in part._shared_keys]
        return Streams(keys, shared, parts[0]._device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1): ``[B, *shape]`` float32."""
        return self._draw(shape, lambda g, row: g.random(dtype=np.float32, out=row))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: ``[B, *shape]`` float32."""
        return self._draw(shape, lambda g, row: g.standard_normal(dtype=np.float32, out=row))

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel, drawn in float64 so that it is finite: ``[B, *shape]`` float32."""
        return self._draw(shape, lambda g, row: np.copyto(row, g.gumbel(size=len(row)), "unsafe"))

    @cached_property
    def _generators(self) -> dict[str, np.random.Generator]:
        return {key: _generator(key) for key in dict.fromkeys(self._keys)}

    def _draw(
        self, shape: Sequence[int], fill: Callable[[np.random.Generator, NDArray[Any]], object]
    ) -> Tensor:
        """``fill`` draws a generator's numbers into a row; samples of the same key share them."""
        drawn = np.empty((len(self._generators), math.prod(shape)), np.float32)
        for generator, row in zip(self._generators.values(), drawn, strict=True):
            fill(generator, row)
        if len(drawn) < len(self._keys):
            place = {key: index for index, key in enumerate(self._generators)}
            drawn = drawn[[place[key] for key in self._keys]]
        return torch.from_numpy(drawn).view(len(self._keys), *shape).to(self._device)


class _Key(ISeedSequence):
    """A key of 128 bits as numpy wants it; ``Philox(key=...)`` asks the system for entropy too."""

    def __init__(self, text: str):
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).digest()

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> NDArray[Any]:
        """The two words of the key."""
        assert (n_words, dtype) == (2, np.uint64), "only Philox reads this key"
        return np.frombuffer(self._digest, "<u8")


def _generator(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(_Key(key)))  # type: ignore[arg-type]  # their stub


@dataclass(frozen=True)
class Plan:
    """Which samples to draw: a pure function of (seed, iteration, attempt), equal on every rank.

    Attributes:
        seed, iteration, attempt: the coordinates of the plan; ``attempt`` counts resampling.
        prompts: the distinct prompts, one per group slot.
        group: ``[B]`` int64, index into ``prompts``.
        sample: ``[B]`` int64, which sample of its prompt in this iteration.
    """

    seed: int
    iteration: int
    attempt: int
    prompts: tuple[Prompt, ...]
    group: Tensor
    sample: Tensor
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.group)

    def streams(self, purpose: str) -> Streams:
        """Fresh random streams for ``purpose``; the same purpose always starts the same streams."""
        base = f"{self.seed}/{self.iteration}/{self.attempt}/{purpose}"
        shared = [f"{base}/{self.prompts[g].id}" for g in self.group.tolist()]
        keys = [f"{s}/{j}" for s, j in zip(shared, self.sample.tolist(), strict=True)]
        return Streams(keys, shared, self.device)

    def select(self, rows: Tensor) -> "Plan":
        """The plan of some of its samples; their streams are unchanged."""
        return replace(self, group=self.group[rows.cpu()], sample=self.sample[rows.cpu()])

    def sample_prompts(self) -> list[Prompt]:
        """The prompt of every sample: length B."""
        return [self.prompts[g] for g in self.group.tolist()]


@dataclass(frozen=True)
class Terms:
    """What the sampler knows of the density of what it drew; every matrix is ``[T, B]``.

    Attributes:
        log_probs: float32 or better, summed over the term's events, as sampled.
        events: int64, how many events (tokens, elements) the sum runs over.
        step: int64, which step of the process the term belongs to.
        mask: bool, which terms exist and were decided by the policy.
        calls: K, the number of network calls that score a sample; ``T = K * M``.
        weight: importance of the term; ones where None.
        scale: scale for objectives that re-weight steps; ones where None.
        duration: how much of the process's time, 0 to 1, the term's step covers; ones where None.
        value: the predicted expected reward when drawn, or None.
    """

    log_probs: Tensor
    events: Tensor
    step: Tensor
    mask: Tensor
    calls: int
    weight: Tensor | None = None
    scale: Tensor | None = None
    duration: Tensor | None = None
    value: Tensor | None = None

    @staticmethod
    def empty(samples: int, device: torch.device | str = "cpu") -> "Terms":
        """No terms at all: for samplers that return data or are deterministic."""
        zero = torch.zeros(0, samples, device=device)
        return Terms(zero, zero.long(), zero.long(), zero.bool(), calls=0)

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                yield item.name, value

    def with_matrices(self, matrices: Tensors) -> "Terms":
        """The same terms with some matrices replaced."""
        return replace(self, **matrices)  # type: ignore[arg-type]  # every name is a matrix's


@dataclass(frozen=True)
class Trajectory:
    """One rollout of B samples.

    Attributes:
        cond: what the network was conditioned on, name -> ``[B, ...]``.
        trace: private to the sampler: enough to score every term again, name -> ``[B, ...]``.
        final: the finished samples in the model's own space, name -> ``[B, ...]``.
        terms: the densities as sampled, ``[T, B]``.
    """

    cond: Tensors
    trace: Tensors
    final: Tensors
    terms: Terms

    def __len__(self) -> int:
        return int(self.terms.log_probs.shape[1])

    def select(self, b: Tensor) -> "Trajectory":
        """The trajectory of the samples ``b`` (``[R]`` int64)."""
        picked = {name: matrix[:, b] for name, matrix in self.terms.matrices()}
        return Trajectory(
            take(self.cond, b), take(self.trace, b), take(self.final, b),
            self.terms.with_matrices(picked),
        )  # fmt: skip

    @staticmethod
    def concat(parts: Sequence["Trajectory"]) -> "Trajectory":
        """The samples of several trajectories side by side, padded at the end where they differ."""
        if len(parts) == 1:
            return parts[0]
        terms = _concat_terms([part.terms for part in parts])
        return Trajectory(
            concat([part.cond for part in parts]), concat([part.trace for part in parts]),
            concat([part.final for part in parts]), terms,
        )  # fmt: skip


def take(tensors: Tensors, rows: Tensor) -> Tensors:
    """The rows of every tensor."""
    return {name: tensor[rows.to(tensor.device)] for name, tensor in tensors.items()}


def concat(parts: Sequence[Tensors]) -> Tensors:
    """Row-wise concatenation; trailing axes that differ are padded with zeros at the end."""
    names = parts[0].keys()
    return {name: torch.cat(_pad_alike([part[name] for part in parts], 1)) for name in names}


def _pad_alike(tensors: Sequence[Tensor], first: int) -> list[Tensor]:
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [(0, shape[d] - tensor.shape[d]) for d in range(tensor.dim() - 1, first - 1, -1)]
        if any(extra for _, extra in missing):
            padded.append(torch.nn.functional.pad(tensor, [n for pair in missing for n in pair]))
        else:
            padded.append(tensor)
    return padded


def fold(matrix: Tensor, calls: int) -> Tensor:
    """``[T, B]`` to ``[K, M, B]``; without calls, ``[1, 0, B]``."""
    calls = max(calls, 1)
    return matrix.reshape(calls, len(matrix) // calls, matrix.shape[1])


def _concat_terms(parts: Sequence[Terms]) -> Terms:
    calls = max(part.calls for part in parts)
    joined: dict[str, Tensor] = {}
    for name, _ in parts[0].matrices():
        # [T, B] -> [B, K, M], so that padding keeps a term in its call.
        folded = [fold(getattr(part, name), part.calls).movedim(-1, 0) for part in parts]
        joined[name] = torch.cat(_pad_alike(folded, 1)).flatten(1).T
    return replace(parts[0], calls=calls).with_matrices(joined)


@dataclass(frozen=True)
class Scored:
    """Differentiable numbers of some rows: the leaf of the two-pass gradient; each ``[R, M]``.

    ``kl_reference`` is KL(current || reference), what a penalty wants; ``kl_old`` is KL(old ||
    current), what a trust region around the weights that drew wants. In nats.
    """

    log_probs: Tensor | None = None
    kl_reference: Tensor | None = None
    kl_old: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None

    def named(self) -> Tensors:
        """The fields that are given."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Matching:
    """A prediction on corrupted samples and how wrong any prediction of that shape is.

    Attributes:
        prediction: ``[R, ...]``, differentiable.
        error: maps a prediction of that shape to ``[R]``, differentiable.
        weight: where a prediction implies a clean sample, whose error is a square: maps a
            prediction to the factor, ``[R]`` and constant, that makes of ``error`` the mean squared
            error of the clean sample over its mean absolute one (arXiv 2509.16117).
    """

    prediction: Tensor
    error: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor] | None = None
