"""What every view of a rollout has in common: the interface, and what an update starts from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Tensors
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop import gradient
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.weights import WeightSets


@dataclass(frozen=True)
class Context:
    """What views are prepared with: the parts of the run, the same in every iteration."""

    policy: Policy
    sampler: Sampler
    weight_sets: WeightSets
    train: TrainConfig
    advantage: AdvantageConfig
    runtime: Runtime
    rewards: Mapping[str, tuple[float, Reward]]

    @property
    def dtype(self) -> torch.dtype:
        """float32 or better, whatever the network's dtype."""
        parameter = next(self.policy.network.parameters(), None)
        double = parameter is not None and parameter.dtype == torch.float64
        return torch.float64 if double else torch.float32

    def evaluate(self, view: "View", batch: Batch, rollout: Rollout) -> Tensors:
        """The view's numbers of all trained rows without gradient, on every rank."""
        size = self.train.micro_batch_size
        return gradient.evaluate(view, batch, rollout.sample_index, self.runtime, size)

    def log_probs_under(self, name: str, view: "View", batch: Batch, rollout: Rollout) -> Tensor:
        """The view's ``log_probs`` under another weight set."""
        with self.weight_sets.using(name):
            found = self.evaluate(view, batch, rollout)
        return view.with_current(batch, found).log_probs


@dataclass(frozen=True)
class Wanted:
    """What the objectives of a group ask of their view; see ``Objective``."""

    needs: frozenset[str]
    mixtures: tuple[Mapping[str, float], ...] = ()
    backprop: Any = None


@dataclass(frozen=True)
class Prepared:
    """A view at one update: how to evaluate it, and the batch without its current numbers.

    Attributes:
        view, batch: both.
        recorded: numbers of the view that hold under the weights before the first update, if any.
        separable: whether parts of the batch may be evaluated apart where the loss allows it.
    """

    view: "View"
    batch: Batch
    recorded: Tensors | None
    separable: bool = True


class View(ABC):
    """One way to see a rollout as numbers: K evaluations of M terms for this rank's samples.

    A plugin brings another view by a subclass, which its ``ObjectiveConfig.view_wanted`` returns.

    Attributes:
        name: what messages and ``batch.view`` call it.
        capability: what policy and sampler must give for it.
        gives: the optional fields of ``Batch`` that an objective may name in ``needs``.
        compared: what a mismatch under equal weights is about, and why it may be; see ``update``.
        num_evals: K, how many evaluations a sample has, of all ranks' samples.
    """

    name: ClassVar[str]
    capability: ClassVar[Capability]
    gives: ClassVar[frozenset[str]] = frozenset()
    compared: ClassVar[tuple[str, str]] = (
        "log-densities",
        (
            "The sampler does not score what it drew: check that temperature, guidance and every "
            "random choice enter log_prob as they entered sample"
        ),
    )
    num_evals: int

    @classmethod
    @abstractmethod
    def prepare(
        cls, wanted: Wanted, rollout: Rollout, advantage: Tensor, update: int, context: Context
    ) -> Prepared:
        """The view at an update, with all that older weights say of it.

        Args:
            wanted: what the objectives ask for.
            rollout: the iteration's samples.
            advantage: ``[B]`` float64.
            update: the index of the update in the iteration.
            context: the parts of the run.
        """

    @classmethod
    def changes_by_update(cls) -> bool:
        """Whether a later update of the iteration is prepared anew, with other random draws."""
        return True

    @abstractmethod
    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        """The differentiable numbers of rows, ``[R, M]`` each; ``b`` counts local samples."""

    @abstractmethod
    def fill_values(self, batch: Batch) -> Tensors:
        """A constant for every number, ``[K * M, B]``: what entries outside the mask hold."""

    @abstractmethod
    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        """The batch with its current numbers replaced; differentiable in ``values``."""


def filled(batch: Batch, names: Sequence[str], terms: int) -> Tensors:
    """Fill values ``[terms, B]``: 0, and for ``log_probs`` the recorded ones if there are any."""
    zero = batch.log_probs.new_zeros(terms, batch.log_probs.shape[1])
    old = batch.old_log_probs
    known = zero if old is None or old.shape != zero.shape else old
    return {name: known if name == "log_probs" else zero for name in names}


def padded(found: Tensor, terms: int) -> Tensor:
    """``[R, <= M]`` to ``[R, M]``: 0 for the terms that no sample of this rank has."""
    missing = terms - found.shape[1]
    return torch.nn.functional.pad(found, (0, missing)) if missing else found


def make_batch(view: str, rollout: Rollout, advantage: Tensor, ones: Tensor, **own: Any) -> Batch:
    """A batch of terms like ``ones`` (``[T, B]``): every number but ``own`` is 0, or counts 1."""
    zero = torch.zeros_like(ones)
    fields: dict[str, Any] = {
        "view": view, "log_probs": zero, "events": ones.long(), "step": zero.long(),
        "mask": ones.bool(), "denominator_mask": ones.bool(), "weight": ones, "scale": ones,
        "advantage": (ones * advantage).to(ones), "reward": rollout.reward.to(ones),
        "group": rollout.group, "valid": rollout.valid,
    }  # fmt: skip
    return Batch(**fields | own)
