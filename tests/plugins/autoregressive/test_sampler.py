"""The token sampler: what it draws, what it records, and that both are scored alike."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from genrl_autoregressive import TokenConfig, left_padded, teacher_forced
from genrl_core import GenRLError, Plan, Prompt, RecipeError, Trajectory
from genrl_core.testing import check_sampler

from .conftest import NETWORKS, PROMPTS, SYMBOLS

SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "guided": {"guidance_scale": 2.5, "temperature": 1.3},
    "detached": {"guidance_scale": 2.5, "guidance_density": "guided_detach_uncond"},
    "negative": {"guidance_scale": 0.0},
}


def plan_of(samples: int) -> Plan:
    group = torch.arange(len(PROMPTS)).repeat_interleave(samples)
    return Plan(3, 0, 0, tuple(PROMPTS), group, torch.arange(samples).repeat(len(PROMPTS)))


def densities_of(sampler, policy, trajectory):
    """The distributions of all samples, from last to first, and what was drawn."""
    b = torch.arange(len(trajectory)).flip(0)
    return sampler.densities(policy, trajectory, torch.zeros_like(b), b)


def rescored(sampler, policy, trajectory):
    """The log-densities, back in the order ``[T, B]``."""
    densities, action = densities_of(sampler, policy, trajectory)
    return densities.log_prob(action).flip(0).T


# --- one teacher-forced forward equals the cached rollout ---


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_cache_equals_teacher_forcing(make_ids, draw, kind, setting, double, tolerance):
    policy = make_ids(kind, double=double)
    sampler, drawn = draw(policy, plan_of(6), max_new_tokens=10, **SETTINGS[setting])
    found = rescored(sampler, policy, drawn)
    assert found.requires_grad
    assert found.dtype == (torch.float64 if double else torch.float32)
    torch.testing.assert_close(found, drawn.terms.log_probs, rtol=0, atol=tolerance)
    assert len(drawn.final["length"].unique()) > 2
    assert drawn.terms.log_probs[drawn.terms.mask].max() < 0


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_conformance(make_ids, kind, setting):
    """Drift, chunks of rows, and samples drawn alone, prompts of three lengths."""
    sampler = TokenConfig(max_new_tokens=8, **SETTINGS[setting]).build()
    check_sampler(make_ids(kind), sampler, PROMPTS, samples=4, tolerance=1e-5)


def test_samples_drawn_alone_are_the_same_tokens(make_ids, draw):
    policy, plan = make_ids("gpt2", double=True), plan_of(3)
    _, whole = draw(policy, plan, max_new_tokens=8)
    for row in range(len(plan)):
        _, single = draw(policy, plan.select(torch.tensor([row])), max_new_tokens=8)
        assert torch.equal(single.final["tokens"][0], whole.final["tokens"][row])


def test_the_cache_is_used(make_ids, draw, monkeypatch):
    policy = make_ids("gpt2", end=None)
    widths = []
    forward = policy.network.forward
    monkeypatch.setattr(
        policy.network, "forward",
        lambda **given: widths.append(given["input_ids"].shape[1]) or forward(**given),
    )  # fmt: skip
    draw(policy, plan_of(2), max_new_tokens=6)
    assert widths == [5, 1, 1, 1, 1, 1]


# --- padding ---


@pytest.mark.parametrize("kind", NETWORKS)
def test_padding_on_either_side_changes_nothing(make_ids, kind):
    policy = make_ids(kind, double=True)
    cond = policy.encode(PROMPTS[1:2])
    tokens = torch.tensor([[4, 2, 5, 1]])
    alone = teacher_forced(policy, tokens, cond)
    for left, right in ((6, 0), (0, 6), (3, 2)):
        wide = {
            "prompt": torch.nn.functional.pad(cond["prompt"], (left, right), value=7),
            "prompt_mask": torch.nn.functional.pad(cond["prompt_mask"], (left, right)),
        }
        assert torch.equal(teacher_forced(policy, tokens, wide), alone)
    long = policy.encode(PROMPTS[:1])
    both = {n: torch.cat([long[n], torch.nn.functional.pad(cond[n], (0, 4))]) for n in cond}
    found = teacher_forced(policy, tokens.expand(2, -1), both)[1:]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)


def test_left_padded_keeps_order_and_refuses_empty_prompts():
    ids = torch.tensor([[0, 5, 6, 0, 0], [7, 8, 9, 0, 0]])
    found, mask = left_padded(ids, ids > 0)
    assert found.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert mask.tolist() == [[False, True, True], [True] * 3]
    with pytest.raises(GenRLError, match="has no token"):
        left_padded(ids, torch.zeros_like(ids, dtype=torch.bool))


def test_parts_of_a_rollout_join(make_ids, draw):
    """Prompts of other lengths are padded at their end by ``Trajectory.concat``; scores stay."""
    policy, plan = make_ids("gpt2", double=True), plan_of(2)
    parts = [draw(policy, plan.select(torch.tensor(r)), max_new_tokens=7) for r in ([2, 3], [0, 5])]
    joined = Trajectory.concat([part for _, part in parts])
    found = rescored(parts[0][0], policy, joined)
    torch.testing.assert_close(found, joined.terms.log_probs, rtol=0, atol=1e-10)


# --- the end of a sequence ---


def test_the_mask_reaches_up_to_and_including_the_end(make_ids, draw):
    policy = make_ids("gpt2")
    _, drawn = draw(policy, plan_of(20), max_new_tokens=6)
    tokens, length, terms = drawn.final["tokens"], drawn.final["length"], drawn.terms
    assert terms.log_probs.shape == (6, 60)
    assert terms.num_evals == 1
    for row in range(60):
        ids, n = tokens[row].tolist(), int(length[row])
        first = ids[:n].index(0) + 1 if 0 in ids[:n] else 6
        assert n == first
        assert ids[n:] == [0] * (6 - n)
        assert terms.mask[:, row].tolist() == [True] * n + [False] * (6 - n)
    assert torch.equal(terms.events, terms.mask.long())
    assert (terms.log_probs[~terms.mask] == 0).all()
    assert torch.equal(terms.step[:, 0], torch.arange(6))
    assert {1, 6} <= set(length.tolist())


def test_several_end_tokens_and_none(make_ids, draw):
    policy = make_ids("gpt2")
    policy.end_tokens = (0, 3, 5)
    _, drawn = draw(policy, plan_of(20), max_new_tokens=6)
    last = drawn.final["tokens"].gather(1, drawn.final["length"].unsqueeze(1) - 1)
    short = drawn.final["length"] < 6
    assert set(last[short].flatten().tolist()) == {0, 3, 5}
    policy.end_tokens = ()
    _, drawn = draw(policy, plan_of(5), max_new_tokens=6)
    assert drawn.terms.mask.all()


def test_the_number_of_tokens_must_be_known_and_agree(make_table, make_ids):
    fixed, free = make_table(num_tokens=2), make_ids("gpt2")
    assert TokenConfig().build().limit(fixed) == 2
    with pytest.raises(RecipeError, match="max_new_tokens is missing"):
        TokenConfig().build().limit(free)
    with pytest.raises(RecipeError, match="is 5, but a sample of this policy has 2"):
        TokenConfig(max_new_tokens=5).build().limit(fixed)


def test_too_many_positions_are_refused(make_ids, draw):
    with pytest.raises(GenRLError, match="the 24 positions of the network"):
        draw(make_ids("gpt2", end=None), plan_of(1), max_new_tokens=30)


# --- the right distribution, against plain enumeration ---


def probabilities(policy, scale=1.0, temperature=1.0, prompt=1):
    """P(completion) by plain Python from the table, for 2 tokens of 3 symbols."""
    table = policy.network.logits.detach()
    end = policy.end_tokens[0] if policy.end_tokens else None

    def step(history):
        row = [table[0, history, s] + scale * (table[prompt, history, s] - table[0, history, s])
               for s in range(3)]  # fmt: skip
        weights = [math.exp(float(value) / temperature) for value in row]
        return [weight / sum(weights) for weight in weights]

    found = {}
    for first, chance in enumerate(step(0)):
        if first == end:
            found[str(first)] = chance
            continue
        for second, after in enumerate(step(first + 1)):
            found[f"{first} {second}"] = chance * after
    return found


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"guidance_scale": 2.0, "temperature": 1.5}]
)
def test_frequencies_match_probabilities(make_table, make_plan, draw, fields, end):
    policy = make_table(end=end)
    limit = {} if end is None else {"max_new_tokens": 2}
    _, drawn = draw(policy, make_plan(4000), **fields, **limit)
    seen = Counter(policy.decode(drawn.final).texts)
    expected = probabilities(
        policy, fields.get("guidance_scale", 1.0), fields.get("temperature", 1.0)
    )
    assert seen.keys() <= expected.keys()
    counts = [seen[key] for key in expected]
    assert chisquare(counts, [4000 * value for value in expected.values()]).pvalue > 1e-3
    totals = drawn.terms.log_probs.sum(0)
    for text, total in zip(policy.decode(drawn.final).texts, totals, strict=True):
        assert float(total) == pytest.approx(math.log(expected[text]), abs=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_leaves_impossible_tokens_impossible(scale):
    """Tokens at minus infinity on either side, or on both, where the formula says NaN."""
    sampler = TokenConfig(max_new_tokens=4, guidance_scale=scale).build()
    inf = torch.inf
    given = torch.tensor([[0.0, -inf, -inf, 1.0, 2.0]], requires_grad=True)
    without = torch.tensor([[1.0, -inf, 3.0, -inf, 0.5]], requires_grad=True)
    pair = sampler.combine(given, without)
    assert torch.isneginf(pair.drawn).tolist() == [[False, True, True, True, False]]
    possible = [0, 4]
    exact = (without + scale * (given - without))[0, possible]
    assert torch.equal(pair.drawn[0, possible], exact)
    pair.scored[0].log_softmax(-1)[0].backward()
    assert given.grad.isfinite().all() and without.grad.isfinite().all()


def test_guidance_is_two_sides_in_one_call(make_table, make_plan, draw):
    policy = make_table()
    draw(policy, make_plan(3), guidance_scale=3.0)
    assert policy.calls == 2
    _, off = draw(policy, make_plan(8), guidance_scale=1.0)
    _, plain = draw(policy, make_plan(8))
    assert torch.equal(off.terms.log_probs, plain.terms.log_probs)


@pytest.mark.parametrize(("fields", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.01}, 1)])
def test_truncation_draws_from_the_head_and_has_no_densities(
    make_ids, make_table, make_plan, draw, fields, kept
):
    sampler, drawn = draw(make_table(), make_plan(200), **fields)
    assert len(drawn.final["tokens"][:, 0].unique()) == kept
    assert drawn.terms.num_evals == 0
    with pytest.raises(NotImplementedError, match="no step densities"):
        rescored(sampler, make_table(), drawn)


# --- closed forms ---


@pytest.mark.parametrize("setting", ["cold", "guided", "detached"])
def test_entropy_and_kl_are_those_of_the_distributions(make_ids, draw, setting):
    policy, other = make_ids("gpt2", double=True), make_ids("llama", double=True)
    sampler, drawn = draw(policy, plan_of(1), max_new_tokens=4, **SETTINGS[setting])
    mine, _ = densities_of(sampler, policy, drawn)
    with torch.no_grad():
        theirs, _ = densities_of(sampler, other, drawn)
    numbers = {"entropy": mine.entropy(), "kl": mine.kl(theirs)}
    found = {name: number.flip(0).T for name, number in numbers.items()}
    every = {}
    for name, known in (("p", policy), ("q", other)):
        tokens = drawn.final["tokens"]
        columns = []
        for symbol in range(SYMBOLS):
            changed = []
            for place in range(4):  # the density of every symbol at every place, one by one
                what = tokens.clone()
                what[:, place] = symbol
                given = {"tokens": what, "length": torch.full((3,), 4)}
                row = Trajectory(drawn.cond, given, given, drawn.terms)
                changed.append(rescored(sampler, known, row)[place])
            columns.append(torch.stack(changed))
        every[name] = torch.stack(columns, -1)
    p, q = every["p"], every["q"]
    torch.testing.assert_close(p.exp().sum(-1), torch.ones(4, 3, dtype=torch.float64))
    inside = drawn.terms.mask
    for name, exact in (("entropy", -(p.exp() * p)), ("kl", p.exp() * (p - q))):
        expected = exact.sum(-1).masked_fill(~inside, 0.0)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-9)
        assert found[name].requires_grad


def test_the_bound_is_the_exact_likelihood(make_ids, draw):
    policy = make_ids("gpt2", double=True)
    _, drawn = draw(policy, plan_of(6), max_new_tokens=7)
    corruption = policy.corrupt(drawn.final, plan_of(6).streams("x"), 1, 0, 1)
    assert corruption.keys() == {"events"}  # a term is a sum over all tokens of its sample
    assert torch.equal(corruption["events"], drawn.final["length"].view(1, 18, 1))
    found = policy.elbo(drawn.final, drawn.cond, {})
    assert found.shape == (18, 1)
    torch.testing.assert_close(found[:, 0], drawn.terms.log_probs.sum(0), rtol=0, atol=1e-10)
    denoising = policy.denoising(drawn.final, drawn.cond, {})
    error = denoising.error(denoising.prediction)
    torch.testing.assert_close(-error * drawn.final["length"], found[:, 0], rtol=0, atol=1e-10)


def test_likelihoods_of_all_completions_sum_to_one(make_table):
    policy = make_table()
    tokens = torch.tensor(list(itertools.product(range(3), repeat=2)))
    cond = {k: v.expand(9, -1) for k, v in policy.encode([Prompt("1", "1")]).items()}
    final = {"tokens": tokens, "length": torch.full((9,), 2)}
    total = policy.elbo(final, cond, {}).detach().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-12)
