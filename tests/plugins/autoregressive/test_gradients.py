"""Expected gradients of a policy of two tokens and three symbols, against plain enumeration."""

import itertools
import warnings

import pytest
import torch

from genrl_autoregressive import TokenConfig
from genrl_core import Prompt, Terms, Trajectory
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.testing import ToyReward, expected_update
from genrl_objectives import ReinforceConfig

NO_BASELINE = AdvantageConfig(baseline="none", scale="none")
GUIDED = {"guidance_scale": 5.0, "temperature": 1.2}


def brute_force(policy, scale=1.0, temperature=1.0, detach=False):
    """P(completion), differentiable, from the table alone; prompt 1 against the empty prompt 0."""
    table, end = policy.network.logits, (*policy.end_tokens, None)[0]
    without = table[0].detach() if detach else table[0]
    p = ((without + scale * (table[1] - without)) / temperature).softmax(-1)
    found = {}
    for first in range(3):
        if first == end:
            found[first,] = p[0, first]
            continue
        for second in range(3):
            found[first, second] = p[0, first] * p[first + 1, second]
    return found


def every_sample(policy, probability):
    """All completions as one trajectory, their densities as any sampler would record them."""
    rows = list(probability)
    tokens = torch.tensor([[*row, *[0] * (2 - len(row))] for row in rows])
    length = torch.tensor([len(row) for row in rows])
    final = {"tokens": tokens, "length": length}
    mask = (torch.arange(2) < length.unsqueeze(1)).T
    step = torch.arange(2).unsqueeze(1).expand_as(mask)
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    cond = {n: t.expand(len(rows), -1) for n, t in policy.encode([Prompt("1", "")]).items()}
    terms = Terms(zero, mask.long(), step, mask, num_evals=1)
    chance = torch.stack(list(probability.values())).detach()
    return Trajectory(cond, dict(final), final, terms), chance


def reward(policy, drawn):
    return torch.tensor(ToyReward()(policy.decode(drawn.final), []), dtype=torch.float64)


def both_gradients(policy, detach=False, **fields):
    """What reinforce finds on average, and the derivative of the expected reward."""
    scale, temperature = fields.get("guidance_scale", 1.0), fields.get("temperature", 1.0)
    probability = brute_force(policy, scale, temperature, detach)
    drawn, chance = every_sample(policy, probability)
    expected = (torch.stack(list(probability.values())) * reward(policy, drawn)).sum()
    (exact,) = torch.autograd.grad(expected, policy.network.logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        limit = {"max_new_tokens": 2} if policy.end_tokens else {}
        sampler = TokenConfig(**fields, **limit).build()
    found = expected_update(
        policy, sampler, {"reinforce": (1.0, ReinforceConfig(reduce="sum").build())},
        advantage=NO_BASELINE, drawn=(drawn, chance),
    )  # fmt: skip
    return -found["logits"], exact


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}, GUIDED])
def test_the_gradient_is_exact(make_table, fields, end):
    found, exact = both_gradients(make_table(end=end), **fields)
    assert exact.abs().max() > 0.02
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


def test_detached_guidance_is_exact_for_the_prompted_side(make_table):
    policy = make_table()
    found, exact = both_gradients(
        policy, detach=True, guidance_density="guided_detach_uncond", **GUIDED
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    assert (found[0] == 0).all()
    _, full = both_gradients(policy, **GUIDED)
    assert full[0].abs().max() > 0.01
    torch.testing.assert_close(found[1], full[1], rtol=0, atol=1e-10)


def test_conditional_densities_are_biased(make_table):
    """Not a matter of scale: the direction itself is wrong, even on the prompted side."""
    found, exact = both_gradients(make_table(), guidance_density="conditional", **GUIDED)
    cosine = torch.nn.functional.cosine_similarity(found[1].flatten(), exact[1].flatten(), dim=0)
    assert cosine < 0.9
    with pytest.warns(UserWarning, match="gradient is biased; choose guided"):
        TokenConfig(guidance_density="conditional", guidance_scale=2.0).build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TokenConfig(guidance_density="conditional").build()


def test_conditional_densities_are_those_of_the_prompted_side(make_table):
    policy = make_table()
    probability = brute_force(policy)
    drawn, chance = every_sample(policy, probability)
    with pytest.warns(UserWarning, match="biased"):
        sampler = TokenConfig(guidance_density="conditional", guidance_scale=2.0).build()
    rows = torch.arange(len(chance))
    densities, action = sampler.densities(policy, drawn, rows * 0, rows)
    scored = densities.log_prob(action)
    torch.testing.assert_close(scored.sum(1).exp(), chance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("detach", [False, True])
def test_backprop_steps_guidance_equals_autograd_through_the_guided_distribution(make_ids, detach):
    """On a real network in float64: by hand, with two forwards and a softmax."""
    policy = make_ids("llama", double=True)
    tokens = torch.tensor(list(itertools.product(range(3), repeat=3)))[5:9]
    length = torch.full((4,), 3)
    cond = {n: t.expand(4, -1) for n, t in policy.encode([Prompt("x", "3 1 4")]).items()}
    trace = {"tokens": tokens, "length": length}
    drawn = Trajectory(cond, trace, trace, Terms.empty(4))
    how = "guided_detach_uncond" if detach else "guided"
    sampler = TokenConfig(max_new_tokens=3, guidance_density=how, **GUIDED).build()
    rows = torch.arange(4)
    densities, action = sampler.densities(policy, drawn, rows * 0, rows)
    found = densities.log_prob(action)
    parameters = list(policy.network.parameters())
    weights = torch.linspace(-1, 2, 12, dtype=torch.float64).view(4, 3)
    ours = torch.autograd.grad((found * weights).sum(), parameters)

    def logits(prompt):
        ids = torch.cat([torch.tensor(prompt).expand(4, -1), tokens[:, :2]], 1)
        return policy.network(input_ids=ids).logits[:, -3:, : policy.num_symbols]

    given, without = logits([3, 1, 4]), logits([1])
    without = without.detach() if detach else without
    p = ((without + 5.0 * (given - without)) / 1.2).softmax(-1)
    by_hand = p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log()
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-10)
    theirs = torch.autograd.grad((by_hand * weights).sum(), parameters)
    assert max(float(g.abs().max()) for g in theirs) > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
