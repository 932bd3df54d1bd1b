"""Random streams: one per sample, keyed by where it stands, the only randomness there is."""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor


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
