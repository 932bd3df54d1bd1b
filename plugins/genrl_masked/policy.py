"""The base of masked policies: logits of masked positions, and the bound that they give."""

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from genrl_core import (
    Capability,
    Denoising,
    GenRLError,
    Policy,
    RecipeError,
    Streams,
    Tensors,
)
from genrl_masked import MaskedPolicyConfig
from genrl_masked.corruption import log_level_weight, remasked
from genrl_masked.transitions import code_log_probs


class MaskedPolicy(Policy):
    """A network that predicts the codes of the masked positions of a canvas.

    A canvas holds N codes ``0 .. V - 1`` or, where a position is masked, the mask code V. A
    subclass gives ``encode``, ``decode`` and ``logits``; the bound and the denoising error follow:

        class Tiny(MaskedPolicy):
            def logits(self, canvas, cond):
                return self.network(canvas, cond["label"])      # [R, N, V]

    Attributes:
        num_tokens: N, the positions of a canvas.
        codebook_size: V, the codes of a position, and the mask code.
        num_prompt_tokens: P, the tokens of a prompt that ``mask_prompt`` can hide.
        picks_positions: whether ``logits_at`` is cheaper than ``logits``.
    """

    num_prompt_tokens: int = 0
    picks_positions: bool = False

    def __init__(
        self, config: MaskedPolicyConfig, network: nn.Module, num_tokens: int, codebook_size: int
    ):
        self.config = config
        self.network = network
        self.num_tokens = num_tokens
        self.codebook_size = codebook_size
        self.combine_draws = config.elbo.combine
        if Capability.VALUE in config.provides():
            self.predicts_value, self.new_modules = True, ("value_head",)

    @property
    def mask_code(self) -> int:
        """The code of a masked position: ``codebook_size``."""
        return self.codebook_size

    @abstractmethod
    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        """The logits of every position: ``[R, N, V]`` float32, or float64 where the network is.

        Args:
            canvas: ``[R, N]`` int64, codes and mask codes.
            cond: name -> ``[R, ...]``, from ``encode``.
        """

    def logits_at(self, canvas: Tensor, cond: Tensors, positions: Tensor) -> Tensor:
        """The logits of some positions, by default picked from all: ``[R, S, V]``.

        A policy whose last layer and head are worth saving sets ``picks_positions`` and computes
        no others; a step's update then asks for those that its density needs.

        Args:
            canvas, cond: as for ``logits``.
            positions: ``[R, S]`` int64.
        """
        return at_positions(self.logits(canvas, cond), positions)

    def logits_and_values(self, canvas: Tensor, cond: Tensors) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """``logits`` and, by the same call of the network, the expected reward of the canvas: [R].

        What a policy with ``predicts_value`` implements, for objectives with a critic (ppo).

        Raises:
            GenRLError: by default, since only the policy knows its value head.
        """
        raise GenRLError(
            f"{type(self).__name__} sets predicts_value and does not say what it predicts: "
            "implement logits_and_values(canvas, cond), or leave policy.value_head out"
        )

    def mask_prompt(self, cond: Tensors, where: Tensor) -> Tensors:  # noqa: ARG002  # for subclasses
        """``cond`` with tokens of the prompt hidden: same names and shapes.

        Args:
            cond: name -> ``[R, ...]``.
            where: ``[R, num_prompt_tokens]`` bool, the tokens to hide.

        Raises:
            GenRLError: by default, since only the policy knows what hides a token.
        """
        raise GenRLError(
            f"{type(self).__name__} cannot hide tokens of its prompt, which "
            "policy.elbo.prompt_masking asks for: leave it out, or implement "
            "mask_prompt(cond, where) and set num_prompt_tokens"
        )

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """Which positions are masked, by ``policy.elbo.masking``: ``masked`` ``[D, B, N]`` bool.

        Beside it stand what ``genrl_masked.remasked`` says, ``prompt_masked`` ``[D, B, P]`` bool
        with ``prompt_masking``, and the ``events``: the masked positions one by one with
        ``granularity: token``, else all N, since the bound of a draw speaks for the whole sample.
        """
        config = self.config.elbo
        if problem := config.draws_problem(draws):
            raise RecipeError(f"train.draws: {problem}")
        source = streams.shared if config.shared_by_group else streams
        found = remasked(config, source, draws, final["tokens"].shape[1], update, updates)
        if config.prompt_masking:
            keys = source.uniform(draws, self.num_prompt_tokens).transpose(0, 1)
            found["prompt_masked"] = keys < config.prompt_masking
        events = found["masked"].long()
        if config.granularity == "sample":
            events = torch.full_like(events[:, :, :1], events.shape[2])
        return found | {"events": events}

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        """The logits of the re-masked canvas; the error is its mean cross-entropy where masked.

        ``prediction`` is ``[R, N, V]``; ``error`` gives ``[R]``, in nats per masked position, and 0
        where none is.
        """
        tokens, masked = final["tokens"], corruption["masked"]
        canvas = tokens.masked_fill(masked, self.mask_code)
        if "prompt_masked" in corruption:
            cond = self.mask_prompt(cond, corruption["prompt_masked"])

        def error(prediction: Tensor) -> Tensor:
            found = code_log_probs(prediction.log_softmax(-1), tokens)
            mean: Tensor = -found.masked_fill(~masked, 0.0).sum(-1) / masked.sum(-1).clamp(min=1)
            return mean

        return Denoising(_at_least_float32(self.logits(canvas, cond)), error)

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        """The log-probabilities of the n masked positions, as a sum or one by one: ``[R, M]``.

        With ``granularity: sample`` M is 1: ``-N w(n) x`` their mean cross-entropy, of N events.
        With ``weighting: mean``, w is 1. With ``elbo``, ``w(n) = 1 / (N P(n))`` makes every n in
        1..N count alike, P(n) being the probability that n positions are masked. The expectation
        over corruptions is then that of ``(N / n) sum over masked of log p`` at a uniform n: the
        mean log-density over all orders of generating the positions one at a time, and by Jensen a
        lower bound on the log-likelihood of such generation (arXiv 1310.1757, 2110.02037). Where
        every position is masked with probability t, the sum over the masked ones is divided by t
        instead.

        With ``granularity: token`` M is N: the log-probability of each masked position, 0
        elsewhere (UniGRPO, arXiv 2505.15809; diffu-GRPO, 2504.12216). Where the terms make a sum,
        the factor ``N w(n) / n``, or ``1 / t``, is inside (coupled-GRPO, arXiv 2506.20639): summed
        over positions they are what ``granularity: sample`` gives.
        """
        masked, config = corruption["masked"], self.config.elbo
        denoising = self.denoising(final, cond, corruption)
        importance = self._importance(corruption)
        if config.granularity == "sample":
            error = denoising.error(denoising.prediction)
            scale = (masked.sum(-1) * importance).to(error.dtype)
            return -(scale * error).unsqueeze(1)
        log_probs = denoising.prediction.log_softmax(-1)
        terms = code_log_probs(log_probs, final["tokens"]).masked_fill(~masked, 0.0)
        if config.combine or config.weighting == "elbo" or "ratio" in corruption:
            terms = importance.to(terms.dtype).unsqueeze(1) * terms
        return terms

    def _importance(self, corruption: Tensors) -> Tensor:
        """What the sum over the masked positions is multiplied with: ``[R]`` float64."""
        if "ratio" in corruption:
            return 1 / corruption["ratio"]
        counts, total = corruption["masked"].sum(-1), corruption["masked"].shape[-1]
        return total / counts * log_level_weight(counts, total, self.config.elbo).exp()


def guided_logits(
    policy: MaskedPolicy, canvas: Tensor, cond: Tensors, guidance_scale: float = 1.0
) -> Tensor:
    """``uncond + guidance_scale (cond - uncond)`` in one call of the network: ``[R, N, V]``.

    The logits of ``guided_outputs``, for whoever wants them alone.
    """
    return guided_outputs(policy, canvas, cond, guidance_scale)[0]


def guided_outputs(
    policy: MaskedPolicy, canvas: Tensor, cond: Tensors, guidance_scale: float = 1.0,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``guided_logits``; and the values of the prompted side, ``[R]``, where predicted.

    Rollout, density and evaluation of masked policies all come through here, and the formula is
    that
    of ``Policy.guide``. At 1 guidance is off and costs nothing.

    Args:
        policy, canvas, cond, guidance_scale: as there.
        positions: ``[R, S]`` int64, the positions whose logits are wanted; None for all.
    """
    predict = partial(_outputs, policy)
    return policy.guide(predict, (canvas, positions), cond, guidance_scale)


def _outputs(
    policy: MaskedPolicy, canvas: Tensor, positions: Tensor | None, cond: Tensors
) -> tuple[Tensor, Tensor | None]:
    if policy.predicts_value:
        logits, values = policy.logits_and_values(canvas, cond)
        picked = logits if positions is None else at_positions(logits, positions)
        return _at_least_float32(picked), _at_least_float32(values)
    if positions is None:
        return _at_least_float32(policy.logits(canvas, cond)), None
    return _at_least_float32(policy.logits_at(canvas, cond, positions)), None


def at_positions(found: Tensor, positions: Tensor) -> Tensor:
    """``[R, N, ...]`` at ``positions`` ``[R, S]``: ``[R, S, ...]``."""
    index = positions.reshape(*positions.shape, *[1] * (found.dim() - 2))
    return found.gather(1, index.expand(*positions.shape, *found.shape[2:]))


def _at_least_float32(found: Tensor) -> Tensor:
    return found if found.dtype == torch.float64 else found.float()
