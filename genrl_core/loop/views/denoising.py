"""The view ``denoising``: how wrong predictions on corrupted samples are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Denoising, Tensors, Trajectory, select_rows
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views.common import Context, Prepared, View, Wanted, filled
from genrl_core.loop.views.elbo import corrupted, corruption_rows, draw_terms, draws_batch
from genrl_core.loop.weights import WeightSets


@dataclass(frozen=True)
class DenoisingView(View):
    """The errors of combinations of the weight sets' predictions on shared corruptions.

    Attributes:
        corruption: of ``Policy.corrupt``, name -> ``[D, b, ...]``.
        num_evals: D.
        mixtures: the combinations, see ``Objective.mixtures``.
        weighted: whether each comes with the weight that the policy's ``Denoising`` gives it.
    """

    name = "denoising"
    capability = Capability.DENOISING
    gives = frozenset({"error_weights"})

    policy: Policy
    trajectory: Trajectory
    corruption: Tensors
    num_evals: int
    mixtures: tuple[Mapping[str, float], ...]
    weight_sets: WeightSets
    weighted: bool = False

    @classmethod
    def prepare(
        cls, wanted: Wanted, rollout: Rollout, advantage: Tensor, update: int, context: Context
    ) -> Prepared:
        # The streams are named as in older runs, so that these can be repeated.
        corruption, weights, _ = corrupted("corrupt/matching", rollout, update, context)
        view = cls(
            context.policy, rollout.trajectory, corruption, context.train.draws, wanted.mixtures,
            context.weight_sets, weighted="error_weights" in wanted.needs,
        )  # fmt: skip
        one = torch.ones(len(weights), 1, weights.shape[1], dtype=torch.int64)
        terms = draw_terms(one, weights, combined=False)
        return Prepared(view, draws_batch(cls.name, rollout, advantage, terms, weights), None)

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        corruption = corruption_rows(self.corruption, k, b)
        final, cond = select_rows(self.trajectory.final, b), select_rows(self.trajectory.cond, b)
        predictions: Tensors = {}
        for name in sorted({name for mix in self.mixtures for name in mix} - {"current"}):
            with self.weight_sets.using(name), torch.no_grad():
                predictions[name] = self.policy.denoising(final, cond, corruption).prediction
        denoising = self.policy.denoising(final, cond, corruption)
        predictions["current"] = denoising.prediction
        errors: Tensors = {}
        for index, mixture in enumerate(self.mixtures):
            mixed = sum(factor * predictions[name] for name, factor in mixture.items())
            assert isinstance(mixed, Tensor)
            errors[f"error_{index}"] = denoising.error(mixed).unsqueeze(1)
            if self.weighted:
                errors[f"weight_{index}"] = self._weight(denoising, mixed.detach()).unsqueeze(1)
        return errors

    def _weight(self, denoising: Denoising, prediction: Tensor) -> Tensor:
        if denoising.weight is None:
            raise GenRLError(
                f"{type(self.policy).__name__}.denoising gives its errors no weight: give "
                "Denoising one, or do not ask for it (normalize of the objective nft)"
            )
        return denoising.weight(prediction)

    def fill_values(self, batch: Batch) -> Tensors:
        return filled(batch, [*self._names("error"), *self._names("weight")], self.num_evals)

    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        errors = tuple(values[name] for name in self._names("error"))
        weights = tuple(values[name] for name in self._names("weight"))
        return replace(batch, errors=errors, error_weights=weights)

    def _names(self, kind: str) -> list[str]:
        count = len(self.mixtures) if kind == "error" or self.weighted else 0
        return [f"{kind}_{index}" for index in range(count)]
