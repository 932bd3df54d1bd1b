"""What an objective sees: numbers. Importing it loads no torch; the letters are in ``records``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from genrl_core.functional import Reduction


@dataclass(frozen=True)
class Metric:
    """What an objective reports.

    Attributes:
        values: ``[T, B]`` or ``[B]``.
        reduce: how entries, and then the optimizer steps of an iteration, become one number.
    """

    values: Tensor
    reduce: Literal["mean", "max"] = "mean"


@dataclass(frozen=True)
class Batch:
    """All that an objective sees: the whole optimizer batch of all ranks, as numbers.

    Shapes are ``[T, B]`` (terms, samples) unless said otherwise; log-densities and KL in nats.
    Entries outside ``mask`` hold the recorded numbers, so that a ratio there is 1 and finite.

    Attributes:
        log_probs: under the current weights, differentiable; 0 in the view ``reward``.
        events, step: how many events a term sums over, and the step that it belongs to; int64.
        mask, denominator_mask: which terms are trained, and which ones denominators count; bool.
        weight, scale: importance of a term, and a factor for objectives that re-weight steps.
        advantage: of the term's sample.
        reward, group, valid: ``[B]``; the one reward that ``advantage.combine`` makes of several.
        view: ``steps``, ``elbo``, ``denoising``, ``reward`` or the name of a plugin's view.
        old_log_probs: under the weights that drew the samples; always there in ``steps``.
        reference: log-densities under the weights before training.
        kl_reference, kl_behavior: KL(current || reference) and KL(behavior || current); the
            behavior weights are those that drew the samples.
        entropy, value, old_value: of the step, the predicted reward, and that when drawn.
        duration: in ``steps``, the share 0 to 1 of the process's time that a step covers.
        errors: in ``denoising``, one matrix for each mixture that the objective asked for.
        error_weights: beside each of them, constant: makes of the error the mean squared error of
            the clean sample over its mean absolute one.
        draw_weight: ``[D, B]``, for an ELBO whose draws are combined into one term.
        differentiable_reward: ``[1, B]``, in ``reward``, of the samples as they are drawn again.
    """

    log_probs: Tensor
    events: Tensor
    step: Tensor
    mask: Tensor
    denominator_mask: Tensor
    weight: Tensor
    scale: Tensor
    advantage: Tensor
    reward: Tensor
    group: Tensor
    valid: Tensor
    view: str = "steps"
    old_log_probs: Tensor | None = None
    reference: Tensor | None = None
    kl_reference: Tensor | None = None
    kl_behavior: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None
    old_value: Tensor | None = None
    duration: Tensor | None = None
    errors: tuple[Tensor, ...] = ()
    error_weights: tuple[Tensor, ...] = ()
    draw_weight: Tensor | None = None
    differentiable_reward: Tensor | None = None

    def reduce(self, x: Tensor, how: Reduction = "sample_mean") -> Tensor:
        """``functional.reduce`` with this batch's mask, weights and denominators."""
        from genrl_core import functional

        return functional.reduce(
            x, how, mask=self.mask, weight=self.weight, denominator_mask=self.denominator_mask,
            valid=self.valid, group=self.group,
        )  # fmt: skip

    def need(self, name: str) -> Tensor:
        """A field that the objective declared in ``needs``.

        Raises:
            ValueError: the field is absent, because the objective did not declare it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"the batch has no {name}: name it in the objective's needs")
        return value
