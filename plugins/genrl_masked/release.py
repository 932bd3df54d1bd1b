"""Random release: unmasking whose positions are chosen by chance, so that its densities are simple.

The "emerge" sampler of MaskGRPO (arXiv 2510.02880). Which positions a step releases does not depend
on the weights, so the density of a step is that of the released codes (p2 of ``genrl_masked``, eq.
15 of arXiv 2510.13418) times a constant, exactly. The price is samples of lower quality before
training, since the network's confidence is not asked.

Deviations from the paper: the schedule is a choice, and so is releasing a fixed number per step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genrl_core import Streams, Tensors, Transition
from genrl_masked import transitions
from genrl_masked.policy import MaskedPolicy
from genrl_masked.sampler import UnmaskingSampler, UnmaskingTransition
from genrl_masked.schedule import release_chances, released_counts

if TYPE_CHECKING:
    from genrl_masked import RandomReleaseConfig


@dataclass(kw_only=True, eq=False)
class RandomReleaseTransition(UnmaskingTransition):
    """One unmasking step of R rows: choose positions by chance, draw their codes.

    With ``release: independent`` each masked position is released with probability q, with
    ``fixed`` a uniformly random set of n:

        log p(step) = sum over released of log p^i[y_i] + a log q + (m - a) log(1 - q),    or
        log p(step) = sum over released of log p^i[y_i] - log binomial(m, n)

    with m positions masked and a of them released. The constants are in the terms of
    ``granularity: step``; a term without a released token does not exist, and its number is its
    constant. Terms per token hold the codes' log-probabilities alone.

    Entropy and KL are those of the released codes: given which positions are released, and on
    average those of the step, whose positions no weight changes.

    Attributes:
        counts: ``[R]`` int64, n.
        chances: ``[R]`` float64, q.
        config: the sampler's; it says which of the two counts.
    """

    chances: Tensor
    config: "RandomReleaseConfig"

    def sample(self, streams: Streams) -> Tensors:
        codes = transitions.draw_codes(self.log_probs, streams.uniform(self.masked.shape[1]))
        keys = streams.uniform(self.masked.shape[1])
        if self.config.release == "fixed":
            released = transitions.best(keys, self.masked, self.counts)
        else:
            released = self.masked & (keys.double() < self.chances.unsqueeze(1))
        return {"codes": codes, "released": released}

    def log_prob(self, action: Tensors) -> Tensor:
        found = transitions.code_log_probs(self.log_probs, action["codes"])
        terms = self._terms(found, action["released"])
        if self.config.granularity == "token":
            return terms
        return terms + self._log_pattern(action["released"]).to(terms.dtype).unsqueeze(1)

    def events(self, action: Tensors) -> Tensor:
        """How many tokens a term credits."""
        return self._terms(torch.ones_like(action["codes"]), action["released"])

    def kl(self, other: Transition) -> Tensor:
        """KL of the released tokens' categoricals."""
        assert isinstance(other, RandomReleaseTransition)
        return self._of_scored(transitions.divergences(self.log_probs, other.log_probs))

    def entropy(self) -> Tensor:
        """Entropy of the released tokens' categoricals."""
        return self._of_scored(transitions.entropies(self.log_probs))

    def _of_scored(self, per_position: Tensor) -> Tensor:
        assert self.released is not None, "a step that is being drawn has not released anything"
        return self._terms(per_position, self.released)

    def _terms(self, per_position: Tensor, released: Tensor) -> Tensor:
        """Numbers of the released positions: summed, or one by one."""
        if self.config.granularity == "token":
            return transitions.per_token(per_position, released, self.num_terms)
        return per_position.masked_fill(~released, 0).sum(-1, keepdim=True)

    def _log_pattern(self, released: Tensor) -> Tensor:
        """The log-probability of releasing these positions, whatever their codes: ``[R]``."""
        masked, taken = self.masked.sum(-1).double(), released.sum(-1).double()
        if self.config.release == "fixed":
            sets = torch.lgamma(masked + 1) - torch.lgamma(taken + 1)
            return torch.lgamma(masked - taken + 1) - sets
        stay = torch.special.xlog1py(masked - taken, -self.chances)
        found: Tensor = torch.special.xlogy(taken, self.chances) + stay
        return found


class RandomReleaseSampler(UnmaskingSampler):
    """Draws and scores by ``RandomReleaseTransition``; the trace is the commit map alone."""

    def __init__(self, config: "RandomReleaseConfig"):
        super().__init__(config)
        self.config: RandomReleaseConfig = config

    def transition(
        self, policy: MaskedPolicy, state: Tensors, k: Tensor, cond: Tensors
    ) -> RandomReleaseTransition:
        config, tokens, steps = self.config, policy.num_tokens, self.steps(policy)
        counts = released_counts(tokens, steps, config.schedule, "release_all", config.power)
        chances = release_chances(steps, config.schedule, config.power)
        most = max(counts) if config.release == "fixed" else tokens
        log_probs, values = self.categoricals(policy, state, cond)
        return RandomReleaseTransition(
            log_probs=log_probs,
            masked=state["masked"],
            chances=torch.tensor(chances, dtype=torch.float64, device=k.device)[k],
            counts=torch.tensor(counts, device=k.device)[k],
            config=config,
            num_terms=most if config.granularity == "token" else 1,
            released=state.get("released"),
            values=values,
        )
