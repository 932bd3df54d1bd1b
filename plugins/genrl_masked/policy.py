"""The base of masked policies: logits of masked positions, and the bound that they give."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from genrl_core import GenRLError, Matching, Policy, Scored, Streams, Tensors
from genrl_masked import BoundConfig, MaskedPolicyConfig
from genrl_masked.transitions import best, code_log_probs


class MaskedPolicy(Policy):
    """A network that predicts the codes of the masked positions of a canvas.

    A canvas holds N codes ``0 .. V - 1`` or, where a position is masked, the mask code V. A
    subclass gives ``encode``, ``decode`` and ``logits``; the bound and the matching error follow:

        class Tiny(MaskedPolicy):
            def logits(self, canvas, cond):
                return self.network(canvas, cond["label"])      # [R, N, V]

    Attributes:
        num_tokens: N, the positions of a canvas.
        codebook_size: V, the codes of a position, and the mask code.
    """

    def __init__(
        self, config: MaskedPolicyConfig, network: nn.Module, num_tokens: int, codebook_size: int
    ):
        self.config = config
        self.network = network
        self.num_tokens = num_tokens
        self.codebook_size = codebook_size
        self.combine_draws = config.bound.combine

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

    def unconditional(self, cond: Tensors) -> Tensors:  # noqa: ARG002  # for subclasses
        """What takes the place of ``cond`` on the unguided side: same names and shapes.

        Raises:
            GenRLError: by default, since only the policy knows its empty prompt.
        """
        raise GenRLError(
            f"{type(self).__name__} has no unconditional prompt, which a sampler.guidance_scale "
            "other than 1 needs: set guidance_scale: 1, or implement unconditional(cond)"
        )

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int,
        update: int, updates: int,  # noqa: ARG002  # every update masks alike
    ) -> Tensors:  # fmt: skip
        """Which positions of the finished samples are masked: ``masked`` ``[D, B, N]`` bool.

        How many is drawn by ``policy.bound.masking``, at least one; which ones is uniform. The D
        numbers of a sample are spread evenly, ``u + d / D`` modulo 1 with one ``u``: each is
        distributed as if it were alone, and their mean varies less.
        """
        tokens = final["tokens"]
        offset = streams.uniform(1).double()
        spread = torch.arange(draws, device=offset.device) / draws
        levels = (offset + spread) % 1.0
        counts = _levels(levels, tokens.shape[1], self.config.bound)
        keys = streams.uniform(draws, tokens.shape[1])
        masked = best(keys, torch.ones_like(keys, dtype=torch.bool), counts)
        return {"masked": masked.transpose(0, 1)}

    def matching(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Matching:
        """The logits of the re-masked canvas; the error is its mean cross-entropy where masked.

        ``prediction`` is ``[R, N, V]``; ``error`` gives ``[R]``, in nats per masked position.
        """
        tokens, masked = final["tokens"], corruption["masked"]
        canvas = tokens.masked_fill(masked, self.mask_code)

        def error(prediction: Tensor) -> Tensor:
            found = code_log_probs(prediction.log_softmax(-1), tokens)
            mean: Tensor = -found.masked_fill(~masked, 0.0).sum(-1) / masked.sum(-1)
            return mean

        return Matching(self.logits(canvas, cond), error)

    def bound(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Scored:
        """``-N w(n) x`` mean cross-entropy of the n masked positions, in nats: ``[R, 1]``.

        With ``weighting: mean``, w is 1. With ``elbo``, ``w(n) = 1 / (N P(n))`` makes every n in
        1..N count alike, P(n) being the probability that n positions are masked. The expectation
        over corruptions is then that of ``(N / n) sum over masked of log p`` at a uniform n: the
        mean log-density over all orders of generating the positions one at a time, and by Jensen
        a lower bound on the log-likelihood of such generation (arXiv 1310.1757, 2110.02037).
        """
        masked = corruption["masked"]
        matching = self.matching(final, cond, corruption)
        error = matching.error(matching.prediction)
        weight = log_level_weight(masked.sum(-1), masked.shape[-1], self.config.bound).exp()
        return Scored(log_probs=-(masked.shape[-1] * weight.to(error.dtype) * error).unsqueeze(1))


def guided_logits(
    policy: MaskedPolicy, canvas: Tensor, cond: Tensors, guidance_scale: float = 1.0
) -> Tensor:
    """``uncond + guidance_scale (cond - uncond)`` in one call of the network: ``[R, N, V]``.

    The one place where guidance happens, in the rollout, its density and evaluation alike. At 1 it
    is off and costs nothing.
    """
    if guidance_scale == 1:
        return _at_least_float32(policy.logits(canvas, cond))
    uncond = policy.unconditional(cond)
    both = {name: torch.cat([tensor, uncond[name]]) for name, tensor in cond.items()}
    logits = _at_least_float32(policy.logits(torch.cat([canvas, canvas]), both))
    with_prompt, without = logits.chunk(2)
    return without + guidance_scale * (with_prompt - without)


def log_level_weight(counts: Tensor, num_tokens: int, bound: BoundConfig) -> Tensor:
    """``log w(n)``: 0 for ``mean``, ``-log(N P(n))`` for ``elbo``; float64, shaped as ``counts``.

    Under uniform masking P(n) is 1/N. Under cosine masking it is the share of u that ends at n,
    ``2/pi (arccos((n - 1) / N) - arccos(n / N))``, and w is at most pi/2.
    """
    if bound.weighting == "mean" or bound.masking == "uniform":
        return torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    upper = counts.double() / num_tokens
    share = (upper - 1 / num_tokens).acos() - upper.acos()
    return -(num_tokens * 2 / math.pi * share).log()


def _levels(uniform: Tensor, num_tokens: int, bound: BoundConfig) -> Tensor:
    """How many positions are masked, 1 .. N, from uniform numbers on [0, 1)."""
    if bound.masking == "uniform":
        return (uniform * num_tokens).floor().long().clamp(0, num_tokens - 1) + 1
    return ((uniform * math.pi / 2).cos() * num_tokens).ceil().long().clamp(1, num_tokens)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
