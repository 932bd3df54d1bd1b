"""Markov samplers: how long a chain is, and what must be alike at every step."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from genrl_core import MarkovSampler, Media, Policy, Prompt, Streams, Tensors, Transition
from genrl_core.loop.plan import plan_of
from genrl_core.testing import check_sampler

PROMPTS = [Prompt("a", "a"), Prompt("b", "b")]


class Coins(Policy):
    """As many flips as it has logits."""

    def __init__(self, horizon: int):
        self.network = nn.ParameterList([torch.linspace(-1, 1, horizon)])

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        return {"length": torch.zeros(len(prompts))}

    def decode(self, final: Tensors) -> Media:
        return Media("text", texts=("",) * len(final["flips"]))


class Flip(Transition):
    def __init__(self, logit: Tensor, terms: int = 1):
        self._flip = torch.distributions.Bernoulli(logits=logit)
        self._terms = terms

    def sample(self, streams: Streams) -> Tensors:
        return {"side": (streams.uniform() < self._flip.probs).float()}

    def log_prob(self, action: Tensors) -> Tensor:
        return self._flip.log_prob(action["side"])[:, None].expand(-1, self._terms)

    def events(self, action: Tensors) -> Tensor:
        return torch.ones(len(action["side"]), self._terms, dtype=torch.int64)


class Flips(MarkovSampler[Coins]):
    num_steps = 1

    def steps(self, policy: Coins) -> int:
        return len(policy.network[0])

    def start(self, policy: Coins, cond: Tensors, streams: Streams) -> Tensors:
        return {"flips": torch.zeros(len(streams), len(policy.network[0]))}

    def transition(self, policy: Coins, state: Tensors, k: Tensor, cond: Tensors) -> Transition:
        return Flip(policy.network[0][k])

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        return {"flips": state["flips"].scatter(1, k[:, None], action["side"][:, None])}


@pytest.mark.parametrize("horizon", [3, 5, 2])
def test_a_chain_is_as_long_as_the_policy_makes_it(horizon: int) -> None:
    """The log-densities are those of all the flips, by hand."""
    policy, sampler, plan = Coins(horizon), Flips(), plan_of(0, 0, 0, PROMPTS, 3)
    cond = {"length": torch.zeros(6)}
    found = sampler.rollout(policy, cond, plan)
    assert found.terms.num_evals == horizon
    chance = policy.network[0].detach().sigmoid()
    exact = torch.where(found.final["flips"] == 1, chance, 1 - chance).log().T
    torch.testing.assert_close(found.terms.log_probs, exact)
    check_sampler(policy, sampler, PROMPTS)


class Growing(Flips):
    """A state that grows; its own record would hide it."""

    def start(self, policy: Coins, cond: Tensors, streams: Streams) -> Tensors:
        return {"flips": torch.zeros(len(streams), 0)}

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        return {"flips": torch.cat([state["flips"], action["side"][:, None]], 1)}

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:
        return {"flips": states[-1]["flips"]}


class Uneven(Flips):
    """Two terms at the second step, which a broadcast of the first would hide."""

    def transition(self, policy: Coins, state: Tensors, k: Tensor, cond: Tensors) -> Transition:
        return Flip(policy.network[0][k], terms=1 + int(k[0] == 1))


@pytest.mark.parametrize(
    ("sampler", "words"),
    [(Growing(), "Growing: the states change"), (Uneven(), "Uneven: the numbers of a step change")],
)
def test_what_changes_from_step_to_step_is_refused(sampler: Flips, words: str) -> None:
    said = ""
    try:
        Flips.rollout(sampler, Coins(3), {"length": torch.zeros(6)}, plan_of(0, 0, 0, PROMPTS, 3))
    except Exception as error:  # noqa: BLE001  # whichever: it must be ours
        said = f"{type(error).__name__}: {error}"
    assert said.startswith(f"GenRLError: {words} their shapes at step ")
