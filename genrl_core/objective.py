"""The interface of an objective: what to change, given how likely and how good samples were.

Importing it loads no torch, so that an entry module may hold objectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from genrl_core.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

View = Literal["steps", "bound", "matching", "reward"]


class Objective(ABC):
    """A loss on matrices of terms. It never sees a token, a latent or a network.

    Attributes:
        view: which numbers of the rollout it wants; an instance may set it, and None takes the view
            of the other objectives of the recipe.
        needs: optional fields of ``Batch`` that it reads: ``reference``, ``kl_reference``,
            ``kl_old``, ``entropy``, ``value``, and ``old`` where an earlier evaluation of a bound
            or a matching error is wanted.
        separable: whether the loss is a sum over terms, so that the parts of a chunked batch add
            up to it. False for whatever couples terms or samples inside the gradient.
        draw_with: the weight slot whose samples it learns from.
        mixtures: for the view ``matching``: each entry maps slots to coefficients; the batch then
            holds the error of that combination of the slots' predictions in ``errors``.
    """

    view: View | None = "steps"
    needs: frozenset[str] = frozenset()
    separable: bool = True
    draw_with: Literal["current", "old"] = "current"
    mixtures: tuple[Mapping[str, float], ...] = ()

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar made by ``batch.reduce``, and metrics, ``[T, B]`` or ``[B]``."""
