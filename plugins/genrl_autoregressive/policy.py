"""The base of autoregressive policies: logits of the next token, and the exact likelihood.

A condition holds ``prompt`` ``[B, P]`` int64 and ``prompt_mask`` ``[B, P]`` bool, true for the
prompt's own tokens; a finished sample ``tokens`` ``[B, T]`` int64 and ``length`` ``[B]`` int64, how
many of them count, the end-of-sequence token included.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from genrl_autoregressive.distribution import token_log_probs
from genrl_core import (
    Capability,
    Denoising,
    GenRLError,
    Policy,
    PolicyConfig,
    Streams,
    Tensors,
)


class AutoregressivePolicy(Policy):
    """A network that reads a prompt and tokens, and predicts what comes next.

    A subclass gives ``encode``, ``decode`` and ``logits``; sampling, densities, the bound and the
    denoising error follow. ``TransformersPolicy`` gives ``logits`` for the models of transformers.

    Attributes:
        num_symbols: V, the symbols that a completion is made of.
        end_tokens: symbols that end a sample; none for images, whose number of tokens is fixed.
        num_tokens: that number; None where a sample ends by an end token or at the sampler's limit.
    """

    def __init__(
        self, config: PolicyConfig, network: nn.Module, num_symbols: int,
        end_tokens: tuple[int, ...] = (), num_tokens: int | None = None,
    ):  # fmt: skip
        self.config = config
        self.network = network
        self.num_symbols = num_symbols
        self.end_tokens = end_tokens
        self.num_tokens = num_tokens
        if Capability.VALUE in config.provides():
            self.predicts_value, self.new_modules = True, ("value_head",)

    @abstractmethod
    def logits(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, cond: Tensors,
        past: Any = None, *, cache: bool = False,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """The logits of what follows the prompt and each of the tokens.

        Args:
            prompt: ``[R, P]`` int64, padded on the left; None where ``past`` holds it.
            tokens: ``[R, S]`` int64, the tokens of the completion that are read now; S may be 0.
            mask: ``[R, L]`` bool over everything read so far, these tokens included: false for
                padding. A token's position is the number of true entries before it.
            cond: everything from ``encode``, for what is no token.
            past: what the call before returned, or None.
            cache: whether another call will follow with what this one returns.

        Returns:
            ``[R, S + 1, V]`` with a prompt, else ``[R, S, V]``; float32, or float64 where the
            network is. And the past for the next call, of any type.
        """

    def logits_and_values(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, cond: Tensors,  # noqa: ARG002
        past: Any = None, *, cache: bool = False,  # noqa: ARG002  # for subclasses
    ) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
        """As ``logits``, with the expected reward given what was read: ``[R, S + 1]``, or S.

        What a policy with ``predicts_value`` implements, for objectives with a critic (ppo): a
        value beside each row of logits, before the token that is drawn from them.

        Raises:
            GenRLError: by default, since only the policy knows its value head.
        """
        raise GenRLError(
            f"{type(self).__name__} sets predicts_value and does not say what it predicts: "
            "implement logits_and_values, or leave policy.value_head out"
        )

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int  # noqa: ARG002
    ) -> Tensors:  # fmt: skip
        """``events`` alone, a sample's tokens: the likelihood is exact, every draw the same number.

        One draw is enough.
        """
        length = final["length"].clamp(min=1)
        return {"events": length.view(1, -1, 1).expand(draws, -1, -1).clone()}

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:  # noqa: ARG002
        """The logits at every token, ``[R, T, V]``; the error is the mean cross-entropy in nats.

        The mean is over the sample's own tokens, the end-of-sequence token included: ``[R]``.
        """
        tokens, length = trimmed(final)
        inside = within(length, tokens.shape[1])

        def error(prediction: Tensor) -> Tensor:
            found = token_log_probs(prediction, tokens).masked_fill(~inside, 0.0)
            return -found.sum(-1) / length.clamp(min=1)

        # Predictions of several weights are subtracted, and of -inf no number would be left.
        return Denoising(teacher_forced(self, tokens, cond).clamp(min=-1e9), error)

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:  # noqa: ARG002
        """``sum over t of log p(token t | prompt, tokens before)``, exact: ``[R, 1]``.

        At temperature 1 and without guidance, whatever drew the sample.
        """
        tokens, length = trimmed(final)
        found = token_log_probs(teacher_forced(self, tokens, cond), tokens)
        inside = within(length, tokens.shape[1])
        return found.masked_fill(~inside, 0.0).sum(-1, keepdim=True)


def teacher_forced(policy: AutoregressivePolicy, tokens: Tensor, cond: Tensors) -> Tensor:
    """The logits from which each of the tokens was drawn, in one call: ``[R, T, V]``."""
    return teacher_forced_outputs(policy, tokens, cond)[0]


def teacher_forced_outputs(
    policy: AutoregressivePolicy, tokens: Tensor, cond: Tensors
) -> tuple[Tensor, Tensor | None]:
    """``teacher_forced`` and, where the policy predicts them, the values before each token."""
    prompt, mask = left_padded(cond["prompt"], cond["prompt_mask"])
    read = tokens[:, :-1]
    whole = torch.cat([mask, torch.ones_like(read, dtype=torch.bool)], 1)
    return outputs(policy, prompt, read, whole, cond)[:2]


def outputs(
    policy: AutoregressivePolicy, prompt: Tensor | None, tokens: Tensor, mask: Tensor,
    cond: Tensors, past: Any = None, *, cache: bool = False,
) -> tuple[Tensor, Tensor | None, Any]:  # fmt: skip
    """Logits, values or None, and the past: what the policy says, whether it predicts values."""
    if policy.predicts_value:
        return policy.logits_and_values(prompt, tokens, mask, cond, past, cache=cache)
    logits, past = policy.logits(prompt, tokens, mask, cond, past, cache=cache)
    return logits, None, past


def left_padded(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same prompts with all padding on the left, and no column that is padding alone.

    Batches that are joined pad shorter prompts at their end; here the order is put right again, so
    that the last column is always the last token of a prompt.

    Args:
        prompt: ``[R, P]`` int64.
        mask: ``[R, P]`` bool, with at least one true entry per row.

    Raises:
        GenRLError: a prompt has no token.
    """
    if not mask.any(1).all():
        raise GenRLError("a prompt has no token: give it at least a beginning-of-sequence token")
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    order = order[:, -int(mask.sum(1).max()) :]
    kept = mask.gather(1, order)
    return prompt.gather(1, order).masked_fill(~kept, 0), kept


def trimmed(final: Tensors) -> tuple[Tensor, Tensor]:
    """Tokens and lengths of finished samples, without columns that no sample fills."""
    length = final["length"]
    longest = max(int(length.max()), 1) if len(length) else 1
    return final["tokens"][:, :longest], length


def within(length: Tensor, width: int) -> Tensor:
    """Which of ``width`` places lie before the length: ``[R, width]`` bool."""
    return torch.arange(width, device=length.device) < length.unsqueeze(1)
