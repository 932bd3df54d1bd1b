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

    ``[T, B]``, always: log_probs, events, step, mask, weight, scale, advantage, and
    ``denominator_mask``, bool: the terms that denominators count. In the view ``steps`` also
    old_log_probs and duration, the share 0 to 1 of the process's time that a step covers (1 where
    unknown). Where asked for: old_log_probs, reference, kl_reference, kl_behavior, entropy, value,
    old_value. ``kl_reference`` is KL(current || reference),
    ``kl_behavior`` KL(behavior || current),
    in nats; the behavior weights are those that drew the samples.
    ``[B]``: reward, group, valid.
    ``view``: the name of the view that filled the batch.
    ``errors``: for the view ``denoising``, one ``[T, B]`` per mixture that the objective asked for.
    ``error_weights``: beside each of them where asked for, constant: what makes of the error the
    mean squared error of the clean sample over its mean absolute one.
    ``draw_weight``: ``[D, B]``, for an ELBO whose draws are combined into one term.
    ``reward`` is the one that ``advantage.combine`` makes of several; so is
    ``differentiable_reward``, ``[1, B]`` for the view ``reward``, of the samples as they are drawn
    again; ``log_probs`` is 0 there.
    ``view``: which view of the rollout the numbers are: steps, elbo, denoising or reward.
    Entries outside ``mask`` hold the recorded numbers, so that a ratio there is 1 and finite.
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
