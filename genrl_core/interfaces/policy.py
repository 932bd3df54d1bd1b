"""The interface of a policy: what a network says about samples, and nothing about how to draw."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrl_core.interfaces.media import Media, Prompt, Reading
from genrl_core.interfaces.records import Denoising, Scored, Tensors
from genrl_core.interfaces.streams import Streams


class Policy(ABC):
    """A network with the glue that turns prompts into conditions and outputs into media.

    What the network predicts is the affair of the paradigm's base class. ``network`` is called
    only through its ``forward``, so that whatever wraps it (autocast, sharding) sees every call,
    and it is looked up at each call, because a weight slot puts another module in its place.
    A policy has no dropout: both passes of an update must compute the same function.

    Attributes:
        network: the module whose parameters are trained.
        combine_draws: whether a bound over several draws is one weighted sum per sample (True) or
            one term per draw (False); with M terms per draw, M sums or ``D * M`` terms.
        lora_targets: names of the modules that LoRA adapts where the recipe is silent.
        predicts_value: whether the network also predicts the expected reward of every state, by a
            method that the paradigm's base names; samplers then record it in ``terms.value``.
        new_modules: names of modules of the network that weights may lack, such as a value head
            on a base without one. They then start as the policy built them, and beside LoRA
            adapters they train in full, shared by all slots.
        precision: what the network computes in. A policy sets it whose network enters autocast by
            itself; else it is that of the weights as loaded, and in bfloat16 the core makes what is
            trained float32 and runs the forward under autocast, see ``precision``.
    """

    network: nn.Module
    combine_draws: bool = False
    lora_targets: Sequence[str] = ()
    predicts_value: bool = False
    new_modules: Sequence[str] = ()
    precision: torch.dtype | None = None

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        """The condition of each prompt: name -> ``[P, ...]``."""

    @abstractmethod
    def decode(self, final: Tensors) -> Media:
        """Finished samples as media; pixels are uint8 ``[B, 3, H, W]``."""

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:  # noqa: ARG002
        """How much of the prompts ``encode`` reads, asked of every prompt before a run begins.

        One for each part of a prompt that has a limit, by tokenizer alone. The default has none.
        """
        return ()

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """Random corruptions of finished samples, drawn once and shared by all weight slots.

        Args:
            final: name -> ``[B, ...]``.
            streams: the B samples' random streams, others in each update;
                ``streams.across_updates`` are the same in all updates of the iteration.
            draws: D.
            update, updates: index and number of the iteration's updates, for schedules over them.

        Returns:
            name -> ``[D, B, ...]``. Two names are reserved. ``weight``: ``[D, B]`` float, the
            importance of each draw; the mean over draws of weight x bound is what one estimates.
            ``events``: ``[D, B, M]`` int64, how many events each of a bound's M terms sums over; 0
            for a term that does not exist. A bound that sums over events says so, since ``over:
            mean`` divides by them. Without it M is 1, and all terms exist and have one event.

        Raises:
            RecipeError: the number of draws does not fit the corruption.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no corruption")

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Scored:
        """A bound on the log-likelihood of finished samples under given corruptions.

        All arguments have one row per (draw, sample); ``log_probs`` is ``[R, M]``, with 0 for terms
        that do not exist (``events`` of the corruption). The default is the negative denoising
        error, ``[R, 1]``.
        """
        denoising = self.denoising(final, cond, corruption)
        return Scored(log_probs=-denoising.error(denoising.prediction).unsqueeze(1))

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        """The prediction on corrupted samples and its error; one row per (draw, sample)."""
        raise NotImplementedError(f"{type(self).__name__} gives no denoising")

    def decode_pixels(self, final: Tensors) -> Tensor:
        """Differentiable pixels in [0, 1]: ``[B, 3, H, W]``, float32 or better."""
        raise NotImplementedError(f"{type(self).__name__} is not differentiable")
