"""The view ``steps``: a rollout as a matrix of log-densities, one for each step that was taken."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Tensors, Trajectory
from genrl_core.interfaces.sampler import Sampler, Transition
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.steps import choose_evals
from genrl_core.loop.views.common import (
    Context,
    Prepared,
    View,
    Wanted,
    filled,
    make_batch,
    padded,
)
from genrl_core.loop.weights import LAGGING, REFERENCE, WeightSets

SCORED = frozenset({"kl_reference", "kl_behavior", "entropy", "value"})
"""Numbers of a step beside its log-density, differentiable."""


@dataclass(frozen=True)
class StepsView(View):
    """Log-densities of the sampled trajectory, with KL, entropy and value where asked for.

    Attributes:
        want: the fields of ``Batch`` to evaluate.
        num_evals, per_eval: K and M of all ranks' samples; this rank's may have fewer terms.
    """

    name = "steps"
    capability = Capability.STEP_LOGP
    gives = SCORED | {"old_log_probs", "reference"}

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    weight_sets: WeightSets
    want: frozenset[str]
    num_evals: int
    per_eval: int

    @classmethod
    def changes_by_update(cls) -> bool:
        return False

    @classmethod
    def prepare(
        cls, wanted: Wanted, rollout: Rollout, advantage: Tensor,
        update: int, context: Context,  # noqa: ARG003  # every update has the same steps
    ) -> Prepared:  # fmt: skip
        terms, train = rollout.terms, context.train
        chosen, weight = choose_evals(train.steps, terms.num_evals, rollout.streams("steps"))
        per_eval = len(terms.mask) // max(terms.num_evals, 1)
        per_term = partial(torch.repeat_interleave, repeats=per_eval, dim=0)
        gather = partial(
            context.runtime.gather, sample_index=rollout.sample_index, total=len(rollout.reward)
        )
        selected = terms.mask & per_term(gather(chosen.cpu()))
        weight = per_term(gather(weight.cpu())).to(terms.log_probs)
        ones = torch.ones_like(terms.log_probs)
        batch = make_batch(
            cls.name, rollout, advantage, ones, log_probs=terms.log_probs,
            old_log_probs=terms.log_probs, events=terms.events, step=terms.step, mask=selected,
            denominator_mask=terms.mask if train.steps.importance else selected,
            weight=weight if terms.weight is None else weight * terms.weight,
            scale=ones if terms.scale is None else terms.scale,
            duration=ones if terms.duration is None else terms.duration, old_value=terms.value,
        )  # fmt: skip
        want = frozenset({"log_probs"}) | (wanted.needs & SCORED)
        view = cls(
            context.policy, context.sampler, rollout.trajectory, context.weight_sets, want,
            terms.num_evals, per_eval,
        )  # fmt: skip
        if "reference" in wanted.needs:
            plain = replace(view, want=frozenset({"log_probs"}))
            reference = context.log_probs_under(REFERENCE, plain, batch, rollout)
            batch = replace(batch, reference=reference)
        recorded = {"log_probs": terms.log_probs}
        if terms.value is not None and "value" in want:
            recorded["value"] = terms.value
        return Prepared(view, batch, recorded)

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        device = self.trajectory.terms.log_probs.device
        rows = (k.to(device), b.to(device))
        # Other weights run first: none may change between a forward with gradient and its backward.
        behavior, reference = (
            self._under(name, rows) if field in self.want else None
            for name, field in ((LAGGING, "kl_behavior"), (REFERENCE, "kl_reference"))
        )
        current, action = self.sampler.densities(self.policy, self.trajectory, *rows)
        found = {"log_probs": current.log_prob(action)}
        if "entropy" in self.want:
            found["entropy"] = current.entropy()
        if "value" in self.want:
            found["value"] = current.value()
        if behavior is not None:  # KL(behavior || current), the direction that trust regions bound
            found["kl_behavior"] = behavior.kl(current)
        if reference is not None:
            found["kl_reference"] = current.kl(reference)
        return {name: padded(number, self.per_eval) for name, number in found.items()}

    def _under(self, name: str, rows: tuple[Tensor, Tensor]) -> Transition:
        with self.weight_sets.using(name), torch.no_grad():
            return self.sampler.densities(self.policy, self.trajectory, *rows)[0]

    def fill_values(self, batch: Batch) -> Tensors:
        return filled(batch, sorted(self.want), batch.log_probs.shape[0])

    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        return replace(batch, **values)  # type: ignore[arg-type]  # every name is a matrix's
