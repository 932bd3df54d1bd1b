"""The token sampler: one token after the other, each with its exact density.

A sample is drawn with a cache of the past and scored again by one teacher-forced call (K = 1, M = T
terms). The mask of its terms reaches up to and includes the end-of-sequence token. Both ways build
the distribution by the same function, guidance and temperature inside.

Deviations from common practice: guided samples are scored by the guided distribution unless the
recipe says otherwise, and truncated sampling gives no densities; trainers often ignore both.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from genrl_autoregressive import distribution
from genrl_autoregressive.policy import (
    AutoregressivePolicy,
    left_padded,
    outputs,
    teacher_forced_outputs,
    trimmed,
    within,
)
from genrl_core import (
    Plan,
    Policy,
    Prompt,
    Reading,
    RecipeError,
    Sampler,
    Tensors,
    Terms,
    Trajectory,
    Transition,
    select_rows,
)
from genrl_core.functional import guided

if TYPE_CHECKING:
    from genrl_autoregressive import TokenConfig


class TokenSampler(Sampler):
    """Draws ``token_t ~ softmax((uncond + s (cond - uncond)) / temperature)``, t = 1 .. T.

    The trace holds ``tokens`` ``[B, T]`` and ``length`` ``[B]``, as ``final`` does. T is the
    sampler's limit, whatever the samples' lengths; after the end stand zeros.

    ``guidance_density`` says which gradient a guided token has. By enumeration, ``guided`` is that
    of the expected reward; ``guided_detach_uncond`` is its part through the prompted side;
    ``conditional`` (T2I-R1, arXiv 2505.00703) scores a distribution that did not draw the token,
    and points elsewhere from the second token on.
    """

    def __init__(self, config: "TokenConfig"):
        self.config = config
        self.guided = config.guidance_scale != 1
        if self.guided and config.guidance_density == "conditional":
            warnings.warn(
                "guidance_density: conditional scores guided tokens by a distribution that did not "
                "draw them, so the policy gradient is biased; choose guided, or guidance_scale: 1",
                stacklevel=2,
            )

    def limit(self, policy: AutoregressivePolicy) -> int:
        """T, how many tokens a sample has at the most.

        Raises:
            RecipeError: neither sampler nor policy says it, or they disagree.
        """
        asked, fixed = self.config.max_new_tokens, policy.num_tokens
        if asked is None and fixed is None:
            raise RecipeError(
                "sampler.max_new_tokens is missing: this policy's samples have no fixed number of "
                "tokens; add `max_new_tokens: 64` under `sampler`"
            )
        if asked is not None and fixed is not None and asked != fixed:
            raise RecipeError(
                f"sampler.max_new_tokens is {asked}, but a sample of this policy has {fixed} "
                "tokens: leave it out"
            )
        return cast(int, asked if fixed is None else fixed)

    def reading(self, policy: Policy, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """What the policy says, less the room for a sample; negative prompts where guidance is on.

        The last token of a sample is never read.
        """
        room = self.limit(cast(AutoregressivePolicy, policy)) - 1
        return [
            replace(
                each, limit=max(each.limit - room, 0),
                way_out=f"{each.way_out}, or lower sampler.max_new_tokens ({room + 1})",
            )
            for each in policy.reading(prompts)
            if self.guided or each.part != "negative"
        ]  # fmt: skip

    def rollout(
        self, policy: Policy, cond: Tensors, plan: Plan,
        grad_steps: int = 0,  # noqa: ARG002  # tokens have no gradient
    ) -> Trajectory:  # fmt: skip
        known = cast(AutoregressivePolicy, policy)
        limit, count = self.limit(known), len(plan)
        uniform = plan.streams("rollout").uniform(limit)
        ends = torch.tensor(known.end_tokens, dtype=torch.int64, device=uniform.device)
        tokens = torch.zeros(count, limit, dtype=torch.int64, device=uniform.device)
        length = torch.zeros_like(tokens[:, 0])
        running = torch.ones_like(length, dtype=torch.bool)
        found: list[Tensor] = []
        with torch.no_grad():
            reader = _Reader(self, known, cond)
            for step in range(limit):
                pair, value = reader.begin() if step == 0 else reader.read(tokens[:, step - 1])
                allowed = distribution.truncate(pair.drawn, self.config.top_k, self.config.top_p)
                drawn = distribution.draw(allowed, uniform[:, step])
                tokens[:, step] = drawn.masked_fill(~running, 0)
                numbers = [distribution.token_log_probs(pair.scored, tokens[:, step])]
                numbers += [] if value is None else [value]
                found.append(torch.stack(numbers).masked_fill(~running, 0.0))
                length += running
                if known.end_tokens:  # looked at on the host, which waits for the device
                    running &= ~torch.isin(drawn, ends)
                    if not running.any():
                        break
        return self._record(cond, {"tokens": tokens, "length": length}, torch.stack(found, 1))

    def _record(self, cond: Tensors, final: Tensors, numbers: Tensor) -> Trajectory:
        """The trajectory of finished samples; log-densities (and values) ``[1 | 2, <= T, B]``."""
        count, limit = final["tokens"].shape
        if self.config.truncates:
            return Trajectory(cond, {}, final, Terms.empty(count, numbers.device))
        mask = within(final["length"], limit).T
        step = torch.arange(limit, device=mask.device).unsqueeze(1).expand(limit, count)
        padded = torch.nn.functional.pad(numbers, (0, 0, 0, limit - numbers.shape[1]))
        value = padded[1] if len(padded) > 1 else None
        terms = Terms(padded[0], events=mask.long(), step=step, mask=mask, num_evals=1, value=value)
        return Trajectory(cond, dict(final), final, terms)

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor  # noqa: ARG002  # K = 1
    ) -> tuple[Transition, Tensors]:  # fmt: skip
        if self.config.truncates:
            raise NotImplementedError("truncated sampling has no step densities")
        known = cast(AutoregressivePolicy, policy)
        full = select_rows(trajectory.trace, b)
        tokens, length = trimmed(full)
        logits, values = self._scored_by(known, tokens, select_rows(trajectory.cond, b))
        return _TokenDensities(logits, values, length, full["tokens"].shape[1]), {"tokens": tokens}

    def _scored_by(
        self, policy: AutoregressivePolicy, tokens: Tensor, cond: Tensors
    ) -> tuple[Tensor, Tensor | None]:
        """The logits of the density of every token, in one call or two: ``[R, T, V]``.

        Beside them the values of the prompted side, ``[R, T]``, where the policy predicts them.
        """
        if not self.guided or self.config.guidance_density == "conditional":
            given, values = teacher_forced_outputs(policy, tokens, cond)
            return self.combine(given, None).scored, values
        if self.config.guidance_density == "guided_detach_uncond":
            with torch.no_grad():
                without = teacher_forced_outputs(policy, tokens, policy.unconditional(cond))[0]
            given, values = teacher_forced_outputs(policy, tokens, cond)
            return self.combine(given, without).scored, values
        both = policy.both_sides(cond)
        logits, values = teacher_forced_outputs(policy, torch.cat([tokens, tokens]), both)
        given, without = logits.chunk(2)
        return self.combine(given, without).scored, _prompted(values)

    def combine(self, given: Tensor, without: Tensor | None) -> "Pair":
        """The one place where tokens are guided and tempered, in rollout and update alike.

        By the formula of all paradigms (``genrl_core.functional.guided``).
        """
        config = self.config
        plain = given if config.temperature == 1 else given / config.temperature
        if without is None:
            return Pair(plain, plain)
        drawn = guided(given, without, config.guidance_scale) / config.temperature
        return Pair(drawn, plain if config.guidance_density == "conditional" else drawn)


@dataclass(frozen=True)
class _TokenDensities(Transition):
    """The distributions of all tokens of R samples, one term each; 0 behind a sample's end.

    Attributes:
        logits: ``[R, T, V]``, T the longest sample's tokens.
        values: ``[R, T]``, or None.
        length: ``[R]`` int64.
        width: M, the sampler's limit.
    """

    logits: Tensor
    values: Tensor | None
    length: Tensor
    width: int

    def log_prob(self, action: Tensors) -> Tensor:
        return self._terms(distribution.token_log_probs(self.logits, action["tokens"]))

    def entropy(self) -> Tensor:
        return self._terms(distribution.entropies(self.logits))

    def kl(self, other: Transition) -> Tensor:
        assert isinstance(other, _TokenDensities)
        return self._terms(distribution.divergences(self.logits, other.logits))

    def value(self) -> Tensor:
        return super().value() if self.values is None else self._terms(self.values)

    def _terms(self, found: Tensor) -> Tensor:
        outside = ~within(self.length, found.shape[1])
        missing = self.width - found.shape[1]
        return torch.nn.functional.pad(found.masked_fill(outside, 0.0), (0, missing))


class Pair(NamedTuple):
    """Logits ``[..., V]``: what a token is drawn from, and what its density is taken of."""

    drawn: Tensor
    scored: Tensor


class _Reader:
    """Reads a batch token by token and keeps the past; with guidance both sides in one batch."""

    def __init__(self, sampler: TokenSampler, policy: AutoregressivePolicy, cond: Tensors):
        self._sampler, self._policy = sampler, policy
        self._cond = policy.both_sides(cond) if sampler.guided else cond
        self._mask, self._past = torch.empty(0), cast(Any, None)

    def begin(self) -> tuple[Pair, Tensor | None]:
        """The distributions of the first token, and the value before it: ``[B]`` or None."""
        prompt, self._mask = left_padded(self._cond["prompt"], self._cond["prompt_mask"])
        return self._call(prompt, prompt[:, :0])

    def read(self, tokens: Tensor) -> tuple[Pair, Tensor | None]:
        """The same of the token after these, ``[B]``."""
        column = (torch.cat([tokens, tokens]) if self._sampler.guided else tokens).unsqueeze(1)
        self._mask = torch.cat([self._mask, torch.ones_like(column, dtype=torch.bool)], 1)
        return self._call(None, column)

    def _call(self, prompt: Tensor | None, tokens: Tensor) -> tuple[Pair, Tensor | None]:
        logits, values, self._past = outputs(
            self._policy, prompt, tokens, self._mask, self._cond, self._past, cache=True
        )
        last, value = logits[:, -1], None if values is None else values[:, -1]
        if not self._sampler.guided:
            return self._sampler.combine(last, None), value
        given, without = last.chunk(2)
        return self._sampler.combine(given, without), _prompted(value)


def _prompted(values: Tensor | None) -> Tensor | None:
    """Of values of both sides, those of the prompted one."""
    return None if values is None else values.chunk(2)[0]
