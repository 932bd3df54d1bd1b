"""The confidence sampler: what it draws, what it records, and that both are scored alike."""

import itertools
import math
from collections import Counter

import pytest
import torch

from genrl_core import GenRLError
from genrl_core.loop.views import StepsView
from genrl_core.loop.weights import WeightSets
from genrl_masked import guided_logits

KINDS = ("p1", "p1_plain", "p2", "ar")
LOG_PROBS = frozenset({"log_probs"})
SETTINGS = {
    "plain": {},
    "warm": {"temperature": 0.7},
    "guided": {"guidance_scale": 2.5, "temperature": 1.3},
    "no noise": {"gumbel_temperature": 0.0},
    "keep one": {"final_step": "keep_one", "gumbel_decay": "cumulative"},
    "idle steps": {"num_inference_steps": 5, "schedule": "sigmoid"},
}


def rows_of(trajectory):
    """All rows (k, b), calls and samples mixed in one shuffled batch."""
    calls, samples = trajectory.terms.num_evals, len(trajectory)
    order = torch.randperm(calls * samples, generator=torch.Generator().manual_seed(0))
    return order // samples, order % samples


def rescored(sampler, policy, trajectory, want=LOG_PROBS, weight_sets=None):
    """The numbers of all rows, back in the order ``[T, B]``."""
    k, b = rows_of(trajectory)
    terms, found = trajectory.terms, {}
    view = StepsView(
        policy, sampler, trajectory, weight_sets or WeightSets(policy), want, terms.num_evals,
        len(terms.mask) // terms.num_evals,
    )  # fmt: skip
    for name, values in view.evaluate(k, b).items():
        matrix = values.new_zeros(terms.num_evals, len(trajectory), values.shape[1])
        found[name] = matrix.index_put((k, b), values).transpose(1, 2).flatten(0, 1)
    return found


def canvas_of(state, policy):
    return torch.where(state["masked"], policy.mask_code, state["tokens"])


# --- what is recorded, and the same density in the update as in the rollout ---


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_states_of_the_commit_map_are_the_canvases_of_the_rollout(
    make_policy, make_sampler, make_plan, draw, monkeypatch, setting, kind
):
    policy, sampler = make_policy(), make_sampler(transition=kind, **SETTINGS[setting])
    states, actions, advance = [], [], sampler.advance

    def watch(state, action, k):
        states.append(state)
        actions.append(action)
        return advance(state, action, k)

    monkeypatch.setattr(sampler, "advance", watch)
    plan = make_plan(20)
    trajectory = draw(sampler, policy, plan)
    b = torch.arange(20)
    for step, (state, action) in enumerate(zip(states, actions, strict=True)):
        seen, done = sampler.restore(trajectory.trace, torch.full((20,), step), b)
        assert torch.equal(canvas_of(seen, policy), canvas_of(state, policy))
        released = action["released"]
        assert torch.equal(done["released"], released)
        assert torch.equal(seen["released"], released)
        assert torch.equal(done["codes"][released], action["codes"][released])
        if kind != "p2":
            assert torch.equal(done["codes"], action["codes"])
    assert torch.equal(trajectory.final["tokens"], trajectory.trace["tokens"])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [*KINDS, "token"])
def test_the_update_scores_what_the_rollout_recorded(
    make_policy, make_sampler, make_plan, draw, setting, kind
):
    how = {"transition": "p2", "granularity": "token"} if kind == "token" else {"transition": kind}
    policy, sampler = make_policy(), make_sampler(**how, **SETTINGS[setting])
    trajectory = draw(sampler, policy, make_plan(6, prompts=2))
    found = rescored(sampler, policy, trajectory)["log_probs"]
    torch.testing.assert_close(found, trajectory.terms.log_probs, rtol=0, atol=1e-12)
    assert found.requires_grad


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [*KINDS, "token"])
def test_positions_that_the_density_does_not_need_are_spared(
    make_policy, make_sampler, make_plan, draw, monkeypatch, setting, kind
):
    """The same numbers and gradients from the released positions, or from those masked."""
    how = {"transition": "p2", "granularity": "token"} if kind == "token" else {"transition": kind}
    policy, sampler = make_policy(4, 2), make_sampler(**how, **SETTINGS[setting])
    trajectory = draw(sampler, policy, make_plan(6, prompts=2))
    want = LOG_PROBS | ({"entropy"} if kind in {"ar", "token"} else set())
    found, gradients, asked = [], [], []
    pick = policy.logits_at
    monkeypatch.setattr(
        policy, "logits_at", lambda *given: asked.append(given[2].shape[1]) or pick(*given)
    )
    for policy.picks_positions in (False, True):
        scored = []
        for k in range(sampler.num_steps):
            rows = torch.full((12,), k), torch.arange(12)
            densities, action = sampler.densities(policy, trajectory, *rows)
            scored.append({"log_probs": densities.log_prob(action)})
            if "entropy" in want:
                scored[-1]["entropy"] = densities.entropy()
        numbers = [torch.stack([each[name] for each in scored]) for name in sorted(want)]
        found.append(numbers)
        loss = sum((number.sin() * number.cos()).sum() for number in numbers)
        gradients.append(torch.autograd.grad(loss, policy.network.logits)[0])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    counts = sampler.counts(4)
    masked = [4 - sum(counts[:step]) for step in range(len(counts))]
    least = max(counts) if kind == "token" else 1
    needed = counts if kind in {"p2", "token"} else masked
    assert asked == [max(count, least) for count in needed]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_drawn_as_its_samples_one_by_one(
    make_policy, make_sampler, make_plan, draw, kind
):
    policy, sampler = make_policy(), make_sampler(transition=kind, guidance_scale=2.0)
    plan = make_plan(3, prompts=2)
    whole = draw(sampler, policy, plan)
    for row in range(6):
        single = draw(sampler, policy, plan.select(torch.tensor([row])))
        picked = whole.select(torch.tensor([row]))
        for part in ("trace", "final"):
            mine, theirs = getattr(single, part), getattr(picked, part)
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert torch.equal(single.terms.log_probs, picked.terms.log_probs)


def test_the_global_generator_changes_nothing(make_policy, make_sampler, make_plan, draw):
    policy, sampler = make_policy(), make_sampler()
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(draw(sampler, policy, make_plan(8)).final["tokens"])
    assert torch.equal(*drawn)


def test_each_transition_records_what_it_needs_and_no_more(
    make_policy, make_sampler, make_plan, draw
):
    extra = {"p2": set(), "ar": {"codes"}, "p1": {"codes", "thresholds"},
             "p1_plain": {"codes", "thresholds"}}  # fmt: skip
    for kind, names in extra.items():
        trace = draw(make_sampler(transition=kind), make_policy(), make_plan(4)).trace
        assert trace.keys() == {"tokens", "commit_step"} | names
        assert trace["commit_step"].shape == (4, 3)
        assert all(trace[name].shape == (4, 2, 3) for name in names)


@pytest.mark.parametrize("kind", ["p1", "p1_plain"])
def test_thresholds_are_numbers_not_truth_values(make_policy, make_sampler, make_plan, draw, kind):
    """The released code stored bools, and p1 became p2: here they differ by more than 1 nat."""
    sampler, policy = make_sampler(transition=kind), make_policy()
    trajectory = draw(sampler, policy, make_plan(40))
    thresholds = trajectory.trace["thresholds"]
    assert thresholds.dtype == torch.float64
    assert len(thresholds[thresholds.isfinite()].unique()) > 4
    p2 = draw(make_sampler(transition="p2"), policy, make_plan(40))
    gap = (trajectory.terms.log_probs - p2.terms.log_probs)[0]
    assert gap.min() < -1
    assert (gap <= 1e-12).all()


# --- the right distribution, against plain enumeration ---


def guided_probabilities(policy, canvas, scale, temperature):
    """softmax((uncond + s (cond - uncond)) / temperature), by hand from the table."""
    index = sum(code * (policy.codebook_size + 1) ** place for place, code in enumerate(canvas))
    without, given = policy.network.logits[0, index], policy.network.logits[1, index]
    weights = ((without + scale * (given - without)) / temperature).detach().exp()
    return (weights / weights.sum(-1, keepdim=True)).tolist()


def all_rollouts(policy, sampler, outcomes, scale, temperature):
    """P(tokens, commit_step) of a rollout without noise, by recursion over its steps."""
    mask, counts = policy.mask_code, sampler.counts(policy.num_tokens)
    found: Counter = Counter()

    def walk(canvas, commits, step, weight):
        if step == len(counts):
            found[tuple(canvas), tuple(commits)] += weight
            return
        masked = [place for place, code in enumerate(canvas) if code == mask]
        probabilities = guided_probabilities(policy, canvas, scale, temperature)
        no_noise = [0.0] * len(canvas)
        for part, drawn, released in outcomes(probabilities, masked, counts[step], no_noise):
            moved = [drawn[p] if p in released else code for p, code in enumerate(canvas)]
            when = [step if p in released else c for p, c in enumerate(commits)]
            walk(moved, when, step + 1, weight * part)

    start = [mask] * policy.num_tokens
    walk(start, [len(counts)] * policy.num_tokens, 0, 1.0)
    return found


def chi_square(observed: Counter, expected: dict) -> float:
    """The p-value; cells that are expected fewer than five times are put together."""
    from scipy.stats import chisquare

    total = sum(observed.values())
    assert set(observed) <= set(expected)
    large = [key for key in expected if expected[key] * total >= 5]
    counts = [observed[key] for key in large]
    means = [expected[key] * total for key in large]
    if total - sum(means) > 1e-6:
        counts.append(total - sum(counts))
        means.append(total - sum(means))
    return float(chisquare(counts, means).pvalue)


def test_trajectory_densities_are_the_enumerated_probabilities(
    make_policy, make_sampler, make_plan, draw, outcomes
):
    """Temperature and guidance inside; a density that forgets either fails, and so does a draw."""
    policy = make_policy(codebook_size=2)
    sampler = make_sampler(temperature=0.7, guidance_scale=2.0, gumbel_temperature=0.0)
    expected = all_rollouts(policy, sampler, outcomes, scale=2.0, temperature=0.7)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
    trajectory = draw(sampler, policy, make_plan(20_000))
    keys = [
        (tuple(tokens), tuple(commits))
        for tokens, commits in zip(
            trajectory.trace["tokens"].tolist(), trajectory.trace["commit_step"].tolist(),
            strict=True,
        )
    ]  # fmt: skip
    found = trajectory.terms.log_probs.sum(0).exp()
    truth = torch.tensor([expected[key] for key in keys], dtype=torch.float64)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
    assert chi_square(Counter(keys), expected) > 1e-3


def test_noise_ranks_positions_by_plackett_luce(make_policy, make_sampler, make_plan, draw):
    """One released of three: P(i, y) is the mean over codes of softmax(log p / tau), tau = 0.4."""
    policy, sampler = make_policy(codebook_size=2), make_sampler(gumbel_temperature=0.8)
    assert sampler.counts(3) == (1, 2)
    probabilities = guided_probabilities(policy, [2, 2, 2], 1.0, 1.0)
    expected: Counter = Counter()
    for codes in itertools.product(range(2), repeat=3):
        confidence = [probabilities[place][code] for place, code in enumerate(codes)]
        ranks = [value ** (1 / 0.4) for value in confidence]
        for place, code in enumerate(codes):
            expected[place, code] += math.prod(confidence) * ranks[place] / sum(ranks)
    trace = draw(sampler, policy, make_plan(20_000)).trace
    place = (trace["commit_step"] == 0).int().argmax(1, keepdim=True)
    code = trace["tokens"].gather(1, place)
    observed = Counter(map(tuple, torch.cat([place, code], 1).tolist()))
    assert chi_square(observed, expected) > 1e-3


def test_given_the_noise_frequencies_are_p1(make_policy, make_sampler, fixed_noise):
    policy, sampler = make_policy(), make_sampler(gumbel_temperature=1.0)
    samples = 20_000
    streams = fixed_noise(torch.tensor([0.8, -0.7, 0.2]), samples)
    cond = {"prompt": torch.ones(samples, dtype=torch.int64)}
    state, first = sampler.start(policy, cond, streams), torch.zeros(samples, dtype=torch.int64)
    with torch.no_grad():
        transition = sampler.transition(policy, state, first, cond)
        action = transition.sample(streams)
        densities = transition.log_prob(action).squeeze(1).exp().tolist()
    codes = torch.where(action["released"], action["codes"], -1).tolist()
    keys = [tuple(row) for row in codes]
    expected = dict(zip(keys, densities, strict=True))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-9)
    assert chi_square(Counter(keys), expected) > 1e-3


def test_four_transitions_from_one_seed_give_four_gradients(
    make_policy, make_sampler, make_plan, draw
):
    """One rollout, four densities: apart by .36 to .64 of their length, p1 and p2 by .55."""
    policy, gradients, tokens = make_policy(), {}, []
    advantage = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for kind in KINDS:
        sampler = make_sampler(transition=kind, num_inference_steps=3)
        trajectory = draw(sampler, policy, make_plan(64))
        tokens.append(trajectory.final["tokens"])
        loss = (rescored(sampler, policy, trajectory)["log_probs"] * advantage).sum()
        gradients[kind] = torch.autograd.grad(loss, policy.network.logits)[0]
    assert all(torch.equal(tokens[0], other) for other in tokens)
    for one, other in itertools.combinations(KINDS, 2):
        apart = (gradients[one] - gradients[other]).norm()
        length = max(gradients[one].norm(), gradients[other].norm())
        assert apart > (0.5 if (one, other) == ("p1", "p2") else 0.3) * length, (one, other)


# --- terms ---


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_tokens_as_terms_add_up_to_the_step(make_policy, make_sampler, make_plan, draw, steps):
    policy, plan = make_policy(), make_plan(10)
    step = draw(make_sampler(steps, transition="p2"), policy, plan).terms
    sampler = make_sampler(steps, transition="p2", granularity="token")
    token = draw(sampler, policy, plan).terms
    most = max(sampler.counts(3))
    assert token.log_probs.shape == (steps * most, 10)
    folded = token.log_probs.unflatten(0, (steps, most))
    torch.testing.assert_close(folded.sum(1), step.log_probs, rtol=0, atol=1e-12)
    assert torch.equal(token.events.unflatten(0, (steps, most)).sum(1), step.events)
    assert token.mask.sum(0).tolist() == [3] * 10
    assert ((token.log_probs != 0) == token.mask).all()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_release_nothing_have_no_term(make_policy, make_sampler, make_plan, draw, kind):
    sampler = make_sampler(5, transition=kind)
    assert sampler.counts(3) == (1, 1, 0, 0, 1)
    terms = draw(sampler, make_policy(), make_plan(7)).terms
    assert terms.mask[:, 0].tolist() == [True, True, False, False, True]
    assert (terms.log_probs[~terms.mask] == 0).all()
    expected = [3, 2, 0, 0, 1] if kind == "ar" else [1, 1, 0, 0, 1]
    assert terms.events[:, 0].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_keep_one_credits_one_token_less_for_the_same_samples(
    make_policy, make_sampler, make_plan, draw, kind
):
    policy, plan = make_policy(), make_plan(30)
    every = draw(make_sampler(3, transition=kind), policy, plan)
    sampler = make_sampler(3, transition=kind, final_step="keep_one")
    one_left = draw(sampler, policy, plan)
    assert sampler.counts(3) == (1, 1, 0)
    assert torch.equal(every.final["tokens"], one_left.final["tokens"])
    assert (one_left.trace["commit_step"] == 3).sum(1).tolist() == [1] * 30
    assert (every.trace["commit_step"] < 3).all()
    assert not one_left.terms.mask[2].any()


# --- guidance, KL, entropy ---


def test_guidance_costs_nothing_when_off_and_one_call_when_on(
    make_policy, make_sampler, make_plan, draw
):
    policy, plan = make_policy(), make_plan(3)
    for scale in (1.0, 3.0):
        policy.calls = 0
        draw(make_sampler(4, guidance_scale=scale), policy, plan)
        assert policy.calls == 4


def test_guided_logits_extrapolate_from_the_empty_prompt(make_policy):
    policy = make_policy()
    canvas = torch.tensor([[3, 3, 3], [0, 3, 2]])
    cond = {"prompt": torch.tensor([1, 2])}
    given = policy.logits(canvas, cond)
    without = policy.logits(canvas, {"prompt": torch.tensor([0, 0])})
    torch.testing.assert_close(guided_logits(policy, canvas, cond, 1.0), given)
    torch.testing.assert_close(guided_logits(policy, canvas, cond, 0.0), without)
    torch.testing.assert_close(guided_logits(policy, canvas, cond, 6.0), 6 * given - 5 * without)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_leaves_impossible_codes_impossible(make_policy, make_sampler, make_plan, scale):
    """Codes at minus infinity on either side, or on both, where the formula says NaN."""
    policy, plan = make_policy(), make_plan(4)
    given, without = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 0.0, 1.0])
    inf = torch.inf

    def logits(canvas, cond):
        sides = torch.where((cond["prompt"] == 0)[:, None], without, given)
        return sides[:, None].expand(-1, canvas.shape[1], -1)

    policy.logits = logits
    canvas, cond = torch.full((1, 3), policy.mask_code), {"prompt": torch.tensor([1])}
    for places in (((1, -inf, -inf),), ((1, -inf, 0.0),), ((1, 1.0, -inf),)):
        for code, one, other in places:
            given, without = given.clone(), without.clone()
            given[code], without[code] = one, other
            found = guided_logits(policy, canvas, cond, scale)[0, 0]
            exact = without + scale * (given - without)
            assert found[code] == -inf
            assert torch.equal(found[[0, 2]], exact[[0, 2]])
    sampler = make_sampler(3, guidance_scale=scale)
    trajectory = sampler.rollout(policy, policy.encode(plan.sample_prompts()), plan)
    assert (trajectory.final["tokens"] != 1).all()


def test_guidance_without_an_empty_prompt_is_refused(
    make_policy, make_sampler, make_plan, draw, monkeypatch
):
    policy = make_policy()
    monkeypatch.delattr(type(policy), "unconditional")
    with pytest.raises(GenRLError, match=r"guidance_scale: 1"):
        draw(make_sampler(guidance_scale=2.0), policy, make_plan(2))


@pytest.fixture
def reference(make_policy):
    """The weight sets of a policy whose reference are other weights."""
    other = make_policy(seed=5).network

    def make(policy):
        weight_sets = WeightSets(policy)
        weight_sets.snapshot("reference")
        with weight_sets.using("reference"):
            policy.network.load_state_dict(other.state_dict())
        return weight_sets

    return make


def test_kl_of_ar_is_the_mean_log_ratio_of_everything_drawn(
    make_policy, make_sampler, make_plan, draw, reference
):
    policy, sampler = make_policy(), make_sampler(1, transition="ar", temperature=0.8)
    trajectory = draw(sampler, policy, make_plan(1))
    want = frozenset({"kl_reference", "entropy"})
    weight_sets = reference(policy)
    found = rescored(sampler, policy, trajectory, want, weight_sets)
    mine = (policy.network.logits[1, -1] / 0.8).log_softmax(-1)
    with weight_sets.using("reference"):
        theirs = (policy.network.logits[1, -1] / 0.8).log_softmax(-1)
    divergence = entropy = 0.0
    for codes in itertools.product(range(3), repeat=3):
        place = torch.arange(3), torch.tensor(codes)
        log_p, log_q = mine[place].sum(), theirs[place].sum()
        divergence += (log_p.exp() * (log_p - log_q)).item()
        entropy -= (log_p.exp() * log_p).item()
    assert found["kl_reference"].item() == pytest.approx(divergence, abs=1e-12)
    assert found["entropy"].item() == pytest.approx(entropy, abs=1e-12)
    gradient = torch.autograd.grad(found["kl_reference"].sum(), policy.network.logits)[0]
    assert gradient.abs().max() > 0


def test_kl_of_a_token_is_that_of_its_position(
    make_policy, make_sampler, make_plan, draw, reference
):
    policy = make_policy()
    sampler = make_sampler(2, transition="p2", granularity="token")
    trajectory = draw(sampler, policy, make_plan(5))
    want = frozenset({"kl_reference", "entropy"})
    weight_sets = reference(policy)
    found = rescored(sampler, policy, trajectory, want, weight_sets)
    assert sampler.counts(3) == (1, 2)
    mine = policy.network.logits[1, -1].log_softmax(-1)
    with weight_sets.using("reference"):
        theirs = policy.network.logits[1, -1].log_softmax(-1)
    position = (trajectory.trace["commit_step"] == 0).int().argmax(1)
    expected = (mine.exp() * (mine - theirs)).sum(-1)[position]
    torch.testing.assert_close(found["kl_reference"][0], expected)
    torch.testing.assert_close(found["entropy"][0], -(mine.exp() * mine).sum(-1)[position])
    mask = trajectory.terms.mask
    assert (found["kl_reference"][~mask] == 0).all()
    assert (found["kl_reference"][mask] > 0).all()


def test_kl_at_the_reference_is_zero_with_zero_gradient(make_policy, make_sampler, make_plan, draw):
    policy, sampler = make_policy(), make_sampler(transition="ar")
    trajectory = draw(sampler, policy, make_plan(4))
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    want = frozenset({"kl_reference"})
    found = rescored(sampler, policy, trajectory, want, weight_sets)["kl_reference"]
    gradient = torch.autograd.grad(found.sum(), policy.network.logits)[0]
    assert found.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["p1", "p1_plain", "p2"])
def test_whole_steps_have_no_closed_forms(make_policy, make_sampler, make_plan, draw, kind):
    policy, sampler = make_policy(), make_sampler(transition=kind)
    trajectory = draw(sampler, policy, make_plan(2))
    with pytest.raises(NotImplementedError, match="no closed-form"):
        rescored(sampler, policy, trajectory, frozenset({"entropy"}))
