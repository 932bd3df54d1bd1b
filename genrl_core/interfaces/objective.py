"""The interface of an objective: what to change, given how likely and how good samples were.

Importing it loads no torch, so that an entry module may hold objectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from genrl_core.interfaces.batch import Batch, Metric

if TYPE_CHECKING:
    from torch import Tensor

ViewName = Literal["steps", "elbo", "denoising", "reward"]
"""The views that GenRL has; a plugin may bring another, a subclass of ``genrl_core.View``."""


@dataclass(frozen=True)
class SamplerBackprop:
    """For the view ``reward``: how the sampler is run again, and which of its steps have a graph.

    Attributes:
        steps: K, how many steps before the end carry the gradient (DRaFT-K, arXiv 2309.17400); all
            where there are fewer.
        random_steps: whether K is drawn for every sample and update, uniform on ``1 .. steps``
            (AlignProp, arXiv 2310.03739).
        stop: ``(first, end)``: every sample ends at a step drawn from ``first .. end - 1``, counted
            from 0, with what the network there takes the finished sample for (ReFL, arXiv
            2304.05977). None: at the sampler's end.
    """

    steps: int = 1
    random_steps: bool = False
    stop: tuple[int, int] | None = None


class Objective(ABC):
    """A loss on matrices of terms. It never sees a token, a latent or a network.

    Which view of the rollout it reads, and which weights draw for it, its config declares
    (``ObjectiveConfig.view_wanted``, ``draws_with``); ``batch.view`` says it again.

    Attributes:
        needs: optional fields of ``Batch`` that it reads. In the views ``steps`` and ``elbo``
            ``reference`` and ``old_log_probs``, in ``steps`` also ``kl_reference``,
            ``kl_behavior`` (KL of the drawing weights from the current ones), ``entropy`` and
            ``value``; in the view ``denoising`` ``error_weights``.
        separable: whether the loss is a sum over terms, so that the parts of a chunked batch add
            up to it, which saves a forward where no recorded numbers hold. False is right for any
            loss; True where terms or samples are coupled stops the run.
        mixtures: for the view ``denoising``: each entry maps weight sets to coefficients; the batch
            then holds the error of that combination of their predictions in ``errors``.
        backprop: for the view ``reward``: how the samples are drawn again with gradient.
    """

    needs: frozenset[str] = frozenset()
    separable: bool = False
    mixtures: tuple[Mapping[str, float], ...] = ()
    backprop: SamplerBackprop | None = None

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor | Metric]]:
        """The loss, a scalar made by ``batch.reduce``, and metrics.

        A metric is a matrix ``[T, B]`` or a number per sample ``[B]``, of which the mean over the
        trained entries is logged; ``Metric(values, reduce="max")`` logs the largest.
        """
