"""The interface of a policy: what a network says about samples, and nothing about how to draw."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genrl_core.errors import GenRLError
from genrl_core.functional import guided
from genrl_core.interfaces.media import Media, Prompt, Reading
from genrl_core.interfaces.records import Denoising, Tensors, concat
from genrl_core.interfaces.streams import Streams

Predict = Callable[..., tuple[Tensor, Tensor | None]]
"""``predict(*inputs, cond)``: a prediction ``[R, ...]`` and the values ``[R, ...]`` or None."""


@dataclass(frozen=True)
class ExportReport:
    """What ``Policy.export`` wrote.

    Attributes:
        files: what was written, below the folder.
        loads_with: the library and class that loads it, ``transformers AutoModelForCausalLM``.
        snippet: the lines of Python that load it.
        note: what whoever uses it should know; empty for nothing.
    """

    files: tuple[str, ...]
    loads_with: str
    snippet: str
    note: str = ""


class Policy(ABC):
    """A network with the glue that turns prompts into conditions and outputs into media.

    What the network predicts is the affair of the paradigm's base class. ``network`` is called
    only through its ``forward``, so that whatever wraps it (autocast, sharding) sees every call,
    and it is looked up at each call, because a weight set may put another module in its place.
    A policy has no dropout: both passes of an update must compute the same function.

    Attributes:
        network: the module whose parameters are trained.
        combine_draws: whether an ELBO over several draws is one weighted sum per sample (True) or
            one term per draw (False); with M terms per draw, M sums or ``D * M`` terms.
        lora_targets: names of the modules that LoRA adapts where the recipe is silent.
        predicts_value: whether the network also predicts the expected reward of every state, by a
            method that the paradigm's base names; samplers then record it in ``terms.value``.
        new_modules: names of modules of the network that weights may lack, such as a value head
            on a base without one. They then start as the policy built them, and beside LoRA
            adapters they train in full, shared by all weight sets.
        precision: what the network computes in. A policy sets it whose network enters autocast by
            itself; else it is that of the weights as loaded, and in bfloat16 the core makes what is
            trained float32 and runs the forward under autocast, see ``loop.precision``.
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

    def prefill(self, cond: Tensors) -> AbstractContextManager[object]:  # noqa: ARG002
        """The scope of one rollout without gradient: ``with policy.prefill(cond): ...``.

        Prompts and weights do not change inside it, so a policy may keep there what it computes of
        the prompts (keys and values of a prefix), and must drop it at the end. The default keeps
        nothing.

        Args:
            cond: name -> ``[B, ...]`` of the samples that are drawn.
        """
        return nullcontext()

    def unconditional(self, cond: Tensors) -> Tensors:  # noqa: ARG002  # for subclasses
        """What takes the place of ``cond`` on the unguided side: R rows each.

        It has the names of ``cond`` that the network reads; it may leave out those that it is made
        of alone, such as a negative prompt.

        Raises:
            GenRLError: by default, since only the policy knows its empty prompt.
        """
        raise GenRLError(
            f"{type(self).__name__} has no unconditional prompt, which a sampler.guidance_scale "
            "other than 1 needs: set guidance_scale: 1, or implement unconditional(cond)"
        )

    def both_sides(self, cond: Tensors) -> Tensors:
        """``cond`` and below it ``unconditional(cond)``, in its names: name -> ``[2 R, ...]``."""
        without = self.unconditional(cond)
        return concat([{name: cond[name] for name in without}, without])

    def guide(
        self, predict: Predict, inputs: Sequence[Tensor | None], cond: Tensors, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """A prediction under classifier-free guidance, both sides in one call of the network.

        The formula is ``functional.guided``. At scale 1 guidance is off and costs nothing.

        Args:
            predict: called as ``predict(*inputs, cond)``.
            inputs: what both sides share, ``[R, ...]`` each, or None.
            cond: name -> ``[R, ...]``.
            scale: the guidance scale.

        Returns:
            The guided prediction, and the values of the prompted side where there are any.
        """
        if scale == 1:
            return predict(*inputs, cond)
        twice = [None if each is None else torch.cat([each, each]) for each in inputs]
        prediction, values = predict(*twice, self.both_sides(cond))
        given, without = prediction.chunk(2)
        return guided(given, without, scale), None if values is None else values.chunk(2)[0]

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """Random corruptions of finished samples, drawn once and shared by all weight sets.

        Args:
            final: name -> ``[B, ...]``.
            streams: the B samples' random streams, others in each update;
                ``streams.across_updates`` are the same in all updates of the iteration.
            draws: D.
            update, updates: index and number of the iteration's updates, for schedules over them.

        Returns:
            name -> ``[D, B, ...]``. Two names are reserved. ``weight``: ``[D, B]`` float, the
            importance of each draw; the mean over draws of weight x ELBO is what one estimates.
            ``events``: ``[D, B, M]`` int64, how many events each of an ELBO's M terms sums over; 0
            for a term that does not exist. An ELBO that sums over events says so, since ``over:
            mean`` divides by them. Without it M is 1, and all terms exist and have one event.

        Raises:
            RecipeError: the number of draws does not fit the corruption.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no corruption")

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        """A lower bound on the log-likelihood of finished samples under given corruptions.

        All arguments have one row per (draw, sample). The default is the negative denoising error.

        Returns:
            ``[R, M]`` nats, 0 for terms that do not exist (``events`` of the corruption).
        """
        denoising = self.denoising(final, cond, corruption)
        return -denoising.error(denoising.prediction).unsqueeze(1)

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        """The prediction on corrupted samples and its error; one row per (draw, sample)."""
        raise NotImplementedError(f"{type(self).__name__} gives no denoising error")

    def decode_pixels(self, final: Tensors) -> Tensor:
        """Differentiable pixels in [0, 1]: ``[B, 3, H, W]``, float32 or better."""
        raise NotImplementedError(f"{type(self).__name__} is not differentiable")

    def export(self, folder: Path, *, merge: bool, adapter: str | None) -> ExportReport:  # noqa: ARG002
        """Write the network in the published format of its kind, for other programs.

        Args:
            folder: an empty folder.
            merge: whether adapters are folded into the weights, or written by themselves.
            adapter: the name of the adapter that is written; None where there is none.

        Raises:
            GenRLError: by default, since only the policy knows its format.
        """
        raise GenRLError(
            f"{type(self).__name__} does not know how to export its network: implement "
            "export(folder, merge=..., adapter=...), or use the run's checkpoints"
        )
