"""Unmasking as a Markov chain, and the confidence sampler: MaskGIT with a density for every step.

Mask-GRPO (arXiv 2510.13418) lives here. A rollout is recorded as a commit map: the finished tokens
and the step at which each was released. The canvas of step k is the tokens released before k and
masks elsewhere, so any subset of steps is scored in any order, without replay.

Deviations from the paper and its released code: the threshold of p1 accounts for the Gumbel noise
(``p1_plain`` does not, as printed); it is kept as a number, not as a truth value, which turned p1
into p2; ``release_all`` credits the last position too; densities are recorded, so ratios are real.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrl_core import MarkovSampler, Streams, Tensors, Transition
from genrl_masked import transitions
from genrl_masked.policy import MaskedPolicy, at_positions, guided_outputs
from genrl_masked.schedule import gumbel_temperatures, released_counts

if TYPE_CHECKING:
    from genrl_masked import ConfidenceConfig, UnmaskingConfig


@dataclass(kw_only=True, eq=False)
class UnmaskingTransition(Transition):
    """One unmasking step of R rows, as far as all of them are alike.

    Attributes:
        log_probs: ``[R, N, V]`` of the drawn categoricals, temperature and guidance inside.
        masked: ``[R, N]`` bool.
        counts: ``[R]`` int64, how many positions the step releases.
        num_terms: M.
        released: ``[R, N]`` bool, the positions released by the step that is scored; None when
            drawing. Entropy and KL per token are those of these positions.
        values: ``[R]`` the expected reward of each canvas, where the policy predicts it.
    """

    log_probs: Tensor
    masked: Tensor
    counts: Tensor
    num_terms: int
    released: Tensor | None = None
    values: Tensor | None = None

    def value(self) -> Tensor:
        """The expected reward of the canvas, the same in every term of the step."""
        if self.values is None:
            return super().value()
        return self.values.unsqueeze(1).expand(-1, self.num_terms)


@dataclass(kw_only=True, eq=False)
class ConfidenceTransition(UnmaskingTransition):
    """One unmasking step of R rows: draw codes, rank them, release the most confident.

    An action holds ``codes`` ``[R, N]`` int64 (drawn at every masked position; meaningful at the
    released ones alone where the density needs no more), ``released`` ``[R, N]`` bool, and for p1
    ``thresholds`` ``[R, N]``. Per row there is one term, or one per released token in the order of
    the positions.

    Where the step is scored and the policy can spare positions, N is S, those that the density
    needs: ``log_probs``, ``masked`` and ``released`` are these; an action is that of all positions.

    Attributes:
        noise_scale: ``[R]`` the factor of the Gumbel noise, in nats.
        config: the sampler's.
        positions: ``[R, S]`` int64, or None for all.
    """

    noise_scale: Tensor
    config: "ConfidenceConfig"
    positions: Tensor | None = None

    def sample(self, streams: Streams) -> Tensors:
        codes = transitions.draw_codes(self.log_probs, streams.uniform(self.masked.shape[1]))
        noise = self._noise(streams)
        keys = transitions.code_log_probs(self.log_probs, codes) + noise
        released = transitions.best(keys, self.masked, self.counts)
        action = {"codes": codes, "released": released}
        if self.config.transition == "p1":
            action["thresholds"] = transitions.noise_aware_thresholds(
                self.log_probs, codes, released, noise
            )
        elif self.config.transition == "p1_plain":
            action["thresholds"] = transitions.plain_thresholds(self.log_probs, codes, released)
        return {name: tensor.detach() for name, tensor in action.items()}

    def _noise(self, streams: Streams) -> Tensor:
        if self.config.gumbel_temperature == 0:
            return self.log_probs.new_zeros(self.masked.shape)
        gumbel = streams.gumbel(self.masked.shape[1]).to(self.log_probs.dtype)
        return self.noise_scale.unsqueeze(1) * gumbel

    def log_prob(self, action: Tensors) -> Tensor:
        if self.positions is not None:
            action = {n: at_positions(tensor, self.positions) for n, tensor in action.items()}
        codes, released = action["codes"], action["released"]
        if self.config.granularity == "token":
            found = transitions.code_log_probs(self.log_probs, codes)
            return transitions.per_token(found, released, self.num_terms)
        if self.config.transition == "p2":
            found = transitions.p2(self.log_probs, codes, released)
        elif self.config.transition == "ar":
            found = transitions.ar(self.log_probs, codes, self.masked)
        else:
            remasked = self.masked & ~released
            found = transitions.p1(self.log_probs, codes, released, remasked, action["thresholds"])
        return self._per_step(found)

    def events(self, action: Tensors) -> Tensor:
        """The tokens that a term credits: released ones, or with ``ar`` all that were drawn."""
        if self.config.granularity == "token":
            ones = torch.ones_like(action["codes"])
            return transitions.per_token(ones, action["released"], self.num_terms)
        counted = self.masked if self.config.transition == "ar" else action["released"]
        return self._per_step(counted.sum(-1))

    def kl(self, other: Transition) -> Tensor:
        """KL of everything drawn (``ar``), or of every released token's categorical."""
        assert isinstance(other, ConfidenceTransition)
        return self._closed_form(transitions.divergences(self.log_probs, other.log_probs))

    def entropy(self) -> Tensor:
        """Entropy of everything drawn (``ar``), or of every released token's categorical."""
        return self._closed_form(transitions.entropies(self.log_probs))

    def _closed_form(self, per_position: Tensor) -> Tensor:
        if self.config.transition == "ar":
            return self._per_step(per_position.masked_fill(~self.masked, 0.0).sum(-1))
        if self.config.granularity == "token" and self.released is not None:
            return transitions.per_token(per_position, self.released, self.num_terms)
        raise NotImplementedError(
            f"a step under {self.config.transition} has no closed-form KL or entropy: choose "
            "transition: ar, or p2 with granularity: token"
        )

    def _per_step(self, found: Tensor) -> Tensor:
        """A number per row as one term; 0 where the step releases nothing and has no term."""
        return found.masked_fill(self.counts == 0, 0).unsqueeze(1)


class UnmaskingSampler(MarkovSampler[MaskedPolicy]):
    """The chain that every unmasking has in common, recorded as a commit map.

    An action holds ``codes`` ``[R, N]`` int64 and ``released`` ``[R, N]`` bool. The trace holds
    ``tokens`` ``[B, N]`` (the finished sample) and ``commit_step`` ``[B, N]`` (the step that
    released each position; K for one that was left over). A subclass gives ``transition``.
    """

    def __init__(self, config: "UnmaskingConfig"):
        self.config = config
        self.num_steps = config.num_inference_steps

    def start(self, policy: MaskedPolicy, cond: Tensors, streams: Streams) -> Tensors:  # noqa: ARG002
        shape = (len(streams), policy.num_tokens)
        tokens = torch.zeros(shape, dtype=torch.int64, device=streams.device)
        return {"tokens": tokens, "masked": torch.ones_like(tokens, dtype=torch.bool)}

    def categoricals(
        self, policy: MaskedPolicy, state: Tensors, cond: Tensors, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities that codes are drawn from, guided and tempered: ``[R, N, V]``.

        Beside them the value of every canvas, ``[R]``, where the policy predicts it. With
        ``positions`` ``[R, S]`` only theirs: ``[R, S, V]``.
        """
        config = self.config
        canvas = state["tokens"].masked_fill(state["masked"], policy.mask_code)
        logits, values = guided_outputs(policy, canvas, cond, config.guidance_scale, positions)
        tempered = logits if config.temperature == 1 else logits / config.temperature
        return tempered.log_softmax(-1), values

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:  # noqa: ARG002
        """Codes are written where the canvas was masked; where it stays so, the mask hides them.

        A position that the last step leaves over so has that step's code in the sample. It stays
        masked in the books: it is in no released set.
        """
        return {
            "tokens": torch.where(state["masked"], action["codes"], state["tokens"]),
            "masked": state["masked"] & ~action["released"],
        }

    def finish(self, state: Tensors) -> Tensors:
        return {"tokens": state["tokens"]}

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:
        released = torch.stack([action["released"] for action in actions], 1)
        never = torch.full_like(released[:, 0], len(actions), dtype=torch.int64)
        first = released.to(torch.int8).argmax(1)
        return {
            "tokens": states[-1]["tokens"],
            "commit_step": torch.where(released.any(1), first, never),
        }

    def restore(self, trace: Tensors, k: Tensor, b: Tensor) -> tuple[Tensors, Tensors]:
        """The rollout's state before step k, with the ``released`` set of the step beside it."""
        tokens, committed = trace["tokens"][b], trace["commit_step"][b]
        masked, released = committed >= k.unsqueeze(1), committed == k.unsqueeze(1)
        state = {
            "tokens": tokens.masked_fill(masked, 0), "masked": masked, "released": released,
        }  # fmt: skip
        return state, {"codes": tokens, "released": released}


class ConfidenceSampler(UnmaskingSampler):
    """Draws by confidence; scores by the transition of ``config``.

    Beyond what p2 needs, the trace holds ``codes`` ``[B, K, N]`` int32 for ar, p1 and p1_plain,
    and ``thresholds`` ``[B, K, N]`` for the latter two.
    """

    def __init__(self, config: "ConfidenceConfig"):
        super().__init__(config)
        self.config: ConfidenceConfig = config

    def counts(self, num_tokens: int, num_steps: int | None = None) -> tuple[int, ...]:
        """How many positions each step releases: K numbers; silent: in the config's steps."""
        config, steps = self.config, self.num_steps if num_steps is None else num_steps
        return released_counts(num_tokens, steps, config.schedule, config.final_step, config.power)

    def transition(
        self, policy: MaskedPolicy, state: Tensors, k: Tensor, cond: Tensors
    ) -> ConfidenceTransition:
        config, steps = self.config, self.steps(policy)
        counts = self.counts(policy.num_tokens, steps)
        num_terms = max(counts) if config.granularity == "token" else 1
        positions = self._needed(policy, state, num_terms)
        log_probs, values = self.categoricals(policy, state, cond, positions)
        if positions is not None:
            state = {n: at_positions(tensor, positions) for n, tensor in state.items()}
        taus = gumbel_temperatures(config.gumbel_temperature, steps, config.gumbel_decay)
        noise_scale = torch.tensor(taus, dtype=log_probs.dtype, device=k.device)[k]
        return ConfidenceTransition(
            log_probs=log_probs,
            masked=state["masked"],
            counts=torch.tensor(counts, device=k.device)[k],
            noise_scale=noise_scale,
            config=config,
            num_terms=num_terms,
            released=state.get("released"),
            values=values,
            positions=positions,
        )

    def _needed(self, policy: MaskedPolicy, state: Tensors, num_terms: int) -> Tensor | None:
        """What the density of a recorded step needs: the released, or all that were masked."""
        if "released" not in state or not policy.picks_positions:
            return None
        needed = state["released"] if self.config.transition == "p2" else state["masked"]
        return transitions.first_needed(needed, num_terms)

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:
        trace = super().pack(states, actions)
        if self.config.transition != "p2":
            trace["codes"] = torch.stack([action["codes"] for action in actions], 1).int()
        if "thresholds" in actions[0]:
            trace["thresholds"] = torch.stack([action["thresholds"] for action in actions], 1)
        return trace

    def restore(self, trace: Tensors, k: Tensor, b: Tensor) -> tuple[Tensors, Tensors]:
        state, action = super().restore(trace, k, b)
        if "codes" in trace:
            action["codes"] = trace["codes"][b, k].long()
        if "thresholds" in trace:
            action["thresholds"] = trace["thresholds"][b, k]
        return state, action
