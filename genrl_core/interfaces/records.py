"""The frozen records that flow through the loop, and the letters of their shapes.

    B  samples                          T = K * M  terms of a sample, index k * M + m
    G  samples per prompt               D  corruption draws of a bound
    K  network evaluations of a sample  R  rows: pairs (evaluation, sample) or (draw, sample)
    M  terms of one evaluation          N  positions   V  vocabulary   C H W F  image and frames

The sample axis of ``cond``, ``trace`` and ``final`` comes first, so one rule selects and pads them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.streams import Streams

Tensors = dict[str, Tensor]
"""Named tensors with the sample axis first."""


@dataclass(frozen=True)
class Plan:
    """Which samples to draw: a pure function of (seed, iteration, attempt), equal on every rank.

    Attributes:
        seed, iteration, attempt: the coordinates of the plan; ``attempt`` counts resampling.
        prompts: the prompt of every group.
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
        num_evals: K, how many network evaluations score a sample; ``T = K * M``.
        weight: importance of the term; ones where None.
        scale: scale for objectives that re-weight steps; ones where None.
        duration: how much of the process's time, 0 to 1, the term's step covers; ones where None.
        value: the predicted expected reward when drawn, or None.
    """

    log_probs: Tensor
    events: Tensor
    step: Tensor
    mask: Tensor
    num_evals: int
    weight: Tensor | None = None
    scale: Tensor | None = None
    duration: Tensor | None = None
    value: Tensor | None = None

    @staticmethod
    def empty(samples: int, device: torch.device | str = "cpu") -> "Terms":
        """No terms at all: for samplers that return data or are deterministic."""
        zero = torch.zeros(0, samples, device=device)
        return Terms(zero, zero.long(), zero.long(), zero.bool(), num_evals=0)

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
            select_rows(self.cond, b), select_rows(self.trace, b), select_rows(self.final, b),
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


def select_rows(tensors: Tensors, rows: Tensor) -> Tensors:
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


def split_evals(matrix: Tensor, num_evals: int) -> Tensor:
    """``[T, B]`` to ``[K, M, B]``; without evaluations, ``[1, 0, B]``."""
    num_evals = max(num_evals, 1)
    return matrix.reshape(num_evals, len(matrix) // num_evals, matrix.shape[1])


def _concat_terms(parts: Sequence[Terms]) -> Terms:
    num_evals = max(part.num_evals for part in parts)
    joined: dict[str, Tensor] = {}
    for name, _ in parts[0].matrices():
        # [T, B] -> [B, K, M], so that padding keeps a term in its evaluation.
        folded = [split_evals(getattr(part, name), part.num_evals).movedim(-1, 0) for part in parts]
        joined[name] = torch.cat(_pad_alike(folded, 1)).flatten(1).T
    return replace(parts[0], num_evals=num_evals).with_matrices(joined)


@dataclass(frozen=True)
class Denoising:
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
