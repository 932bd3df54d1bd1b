"""The views of a rollout: sampled steps, a bound on the finished sample, and denoising errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import (
    Denoising,
    Others,
    Tensors,
    Trajectory,
    select_rows,
    split_evals,
)
from genrl_core.interfaces.sampler import Sampler


def _blank(batch: Batch, names: Sequence[str], rows: int) -> Tensors:
    zero = batch.log_probs.new_zeros(rows, batch.log_probs.shape[1])
    known = (
        zero
        if batch.old_log_probs is None or batch.old_log_probs.shape != zero.shape
        else batch.old_log_probs
    )
    return {name: known if name == "log_probs" else zero for name in names}


def _padded(found: Tensor, terms: int) -> Tensor:
    """``[R, <= M]`` to ``[R, M]``: 0 for the terms that no sample of this rank has."""
    missing = terms - found.shape[1]
    return torch.nn.functional.pad(found, (0, missing)) if missing else found


def _rows(corruption: Tensors, k: Tensor, b: Tensor) -> Tensors:
    """The rows (draw, sample) of what the policy itself reads of a corruption."""
    return {n: t[k, b] for n, t in corruption.items() if n not in ("weight", "events")}


@dataclass(frozen=True)
class StepsView:
    """Log-densities of the sampled trajectory, with KL, entropy and value where asked for.

    Attributes:
        num_evals, per_call: K and M of all ranks' samples; this rank's may have fewer terms.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    want: frozenset[str]
    others: Others
    num_evals: int
    per_call: int

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        device = self.trajectory.terms.log_probs.device
        k, b = k.to(device), b.to(device)
        scored = self.sampler.score(self.policy, self.trajectory, k, b, self.want, self.others)
        return {name: _padded(found, self.per_call) for name, found in scored.named().items()}

    def blank(self, batch: Batch) -> Tensors:
        return _blank(batch, sorted(self.want), batch.log_probs.shape[0])

    def insert(self, batch: Batch, values: Tensors) -> Batch:
        return replace(batch, **values)  # type: ignore[arg-type]  # fields of Scored are of Batch


@dataclass(frozen=True)
class ElboView:
    """A bound on the log-likelihood of the finished samples, on draws shared by all slots.

    The M terms of the draws are all separate, ``[D * M, B]``, or with ``policy.combine_draws`` M
    weighted means over the draws, ``[M, B]``; a term that a draw lacks counts as 0 in its mean.
    ``per_draw`` is M of all ranks' samples.
    """

    policy: Policy
    trajectory: Trajectory
    corruption: Tensors
    draws: int
    per_draw: int

    @property
    def num_evals(self) -> int:
        return self.draws

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        corruption = _rows(self.corruption, k, b)
        final, cond = select_rows(self.trajectory.final, b), select_rows(self.trajectory.cond, b)
        found = self.policy.elbo(final, cond, corruption).log_probs
        if found is None:
            raise ValueError(f"{type(self.policy).__name__}.elbo gave no log_probs")
        return {"log_probs": _padded(found, self.per_draw)}

    def blank(self, batch: Batch) -> Tensors:
        return _blank(batch, ["log_probs"], self.draws * self.per_draw)

    def insert(self, batch: Batch, values: Tensors) -> Batch:
        draws = values["log_probs"]
        if not self.policy.combine_draws:
            return replace(batch, log_probs=draws)
        weighted = split_evals(draws, self.draws) * batch.need("draw_weight").unsqueeze(1)
        return replace(batch, log_probs=weighted.mean(0))


@dataclass(frozen=True)
class DenoisingView:
    """The errors of combinations of the slots' predictions on shared corruptions.

    Attributes:
        weighted: whether each comes with the weight that the policy's ``Denoising`` gives it.
    """

    policy: Policy
    trajectory: Trajectory
    corruption: Tensors
    draws: int
    mixtures: tuple[Mapping[str, float], ...]
    others: Others
    weighted: bool = False

    @property
    def num_evals(self) -> int:
        return self.draws

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        corruption = _rows(self.corruption, k, b)
        final, cond = select_rows(self.trajectory.final, b), select_rows(self.trajectory.cond, b)
        predictions: Tensors = {}
        for slot in sorted({s for mix in self.mixtures for s in mix} - {"current"}):
            with self.others[slot](), torch.no_grad():
                predictions[slot] = self.policy.denoising(final, cond, corruption).prediction
        denoising = self.policy.denoising(final, cond, corruption)
        predictions["current"] = denoising.prediction
        errors: Tensors = {}
        for index, mixture in enumerate(self.mixtures):
            mixed = sum(factor * predictions[slot] for slot, factor in mixture.items())
            assert isinstance(mixed, Tensor)
            errors[f"error_{index}"] = denoising.error(mixed).unsqueeze(1)
            if self.weighted:
                errors[f"weight_{index}"] = self._weight(denoising, mixed.detach()).unsqueeze(1)
        return errors

    def _weight(self, denoising: Denoising, prediction: Tensor) -> Tensor:
        if denoising.weight is None:
            raise GenRLError(
                f"{type(self.policy).__name__}.denoising gives its errors no weight: give "
                f"Denoising "
                "one, or do not ask for it (normalize of the objective nft)"
            )
        return denoising.weight(prediction)

    def blank(self, batch: Batch) -> Tensors:
        return _blank(batch, [*self._names("error"), *self._names("weight")], self.draws)

    def insert(self, batch: Batch, values: Tensors) -> Batch:
        errors = tuple(values[name] for name in self._names("error"))
        weights = tuple(values[name] for name in self._names("weight"))
        return replace(batch, errors=errors, error_weights=weights)

    def _names(self, kind: str) -> list[str]:
        count = len(self.mixtures) if kind == "error" or self.weighted else 0
        return [f"{kind}_{index}" for index in range(count)]
