"""Random release: its densities against those of all trajectories, written down from the table."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from genrl_core import Media, Prompt
from genrl_core.testing import AdvantageConfig, ToyReward, check_sampler, expected_update
from genrl_masked import RandomReleaseConfig, transitions
from genrl_masked.schedule import released_counts
from genrl_objectives import KlConfig, ReinforceConfig

N, V, STEPS, MASK = 3, 2, 3, 2
ALONE = AdvantageConfig(baseline="none", scale="none")
RELEASES = ("independent", "fixed")


def sampler_of(steps=STEPS, **fields):
    return RandomReleaseConfig(num_inference_steps=steps, **fields).build()


@pytest.fixture
def make(make_policy):
    """A policy whose samples are texts, so that the toys' reward judges them."""

    def policy_of(seed=0, scale=1.0):
        policy = make_policy(num_tokens=N, codebook_size=V, scale=scale, seed=seed)
        policy.decode = lambda final: Media(
            "text", texts=tuple(" ".join(map(str, row)) for row in final["tokens"].tolist())
        )
        return policy

    return policy_of


def patterns(release: str) -> dict[tuple[int, ...], float]:
    """Every way to choose the step of each position, and its probability, by the definition."""
    every = itertools.product(range(STEPS), repeat=N)
    if release == "independent":  # a position is still masked after step k with cos(pi k / 2K)
        left = [math.cos(math.pi / 2 * step / STEPS) for step in range(STEPS)] + [0.0]
        share = [before - after for before, after in itertools.pairwise(left)]
        return {steps: math.prod(share[step] for step in steps) for steps in every}
    counts = released_counts(N, STEPS)
    alike = [s for s in every if tuple(s.count(step) for step in range(STEPS)) == counts]
    return {steps: 1 / len(alike) for steps in alike}


def outcomes(release: str) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(steps, codes, probability of the steps) of every trajectory."""
    codes = list(itertools.product(range(V), repeat=N))
    return [(s, c, chance) for s, chance in patterns(release).items() for c in codes]


def probabilities(logits, release: str, temperature=1.0, scale=1.0) -> torch.Tensor:
    """``[B]`` of ``outcomes``, differentiable in the table; shares no line with the sampler."""
    found = []
    for steps, codes, chance in outcomes(release):
        log_p = torch.tensor(math.log(chance), dtype=torch.float64)
        for step in range(STEPS):
            canvas = [c if s < step else MASK for s, c in zip(steps, codes, strict=True)]
            place = sum(code * 3**position for position, code in enumerate(canvas))
            guided = logits[0, place] + scale * (logits[1, place] - logits[0, place])
            row = (guided / temperature).log_softmax(-1)
            log_p = log_p + sum(row[i, codes[i]] for i in range(N) if steps[i] == step)
        found.append(log_p.exp())
    return torch.stack(found)


def every_trajectory(policy, sampler, make_plan):
    """The trajectories of ``outcomes``, scored by the sampler."""
    rows = outcomes(sampler.config.release)
    steps = torch.tensor([steps for steps, _, _ in rows])
    codes = torch.tensor([codes for _, codes, _ in rows])
    actions = [{"codes": codes, "released": steps == step} for step in range(STEPS)]
    cond = {"prompt": torch.ones(len(rows), dtype=torch.int64)}
    with torch.no_grad():
        return sampler.walk(policy, cond, make_plan(len(rows)), actions)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "guidance_scale": 2.0}], ids=str)
def test_densities_are_those_of_the_definition_and_sum_to_one(make, make_plan, release, fields):
    policy, sampler = make(), sampler_of(release=release, **fields)
    found = every_trajectory(policy, sampler, make_plan).terms.log_probs.sum(0).exp()
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    truth = probabilities(policy.network.logits.detach(), release, *(fields.values() or ()))
    # The schedule's cosine is in float32, as in Show-o's code.
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)
    assert len(found) == (216 if release == "independent" else 48)


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
@pytest.mark.parametrize("release", RELEASES)
def test_densities_sum_to_one_under_any_schedule(make, make_plan, release, schedule):
    policy, sampler = make(), sampler_of(release=release, schedule=schedule)
    rows = [
        (steps, codes)
        for steps in itertools.product(range(STEPS), repeat=N)
        for codes in itertools.product(range(V), repeat=N)
    ]
    counts = released_counts(N, STEPS, schedule)
    if release == "fixed":
        rows = [row for row in rows if tuple(row[0].count(k) for k in range(STEPS)) == counts]
    steps, codes = (torch.tensor(part) for part in zip(*rows, strict=True))
    actions = [{"codes": codes, "released": steps == step} for step in range(STEPS)]
    cond = {"prompt": torch.ones(len(rows), dtype=torch.int64)}
    with torch.no_grad():
        terms = sampler.walk(policy, cond, make_plan(len(rows)), actions).terms
    assert terms.log_probs.sum(0).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("granularity", ["step", "token"])
@pytest.mark.parametrize("release", RELEASES)
def test_the_expected_update_is_the_gradient_of_the_expected_reward(
    make, make_plan, release, granularity
):
    """Terms left out because they release nothing, and constants, cost no exactness."""
    policy = make()
    sampler = sampler_of(release=release, granularity=granularity)
    trajectory = every_trajectory(policy, sampler, make_plan)
    chance = probabilities(policy.network.logits, release)
    reward = torch.tensor([ToyReward.of([float(c) for c in codes]) for _, codes, _ in
                           outcomes(release)], dtype=torch.float64)  # fmt: skip
    (exact,) = torch.autograd.grad((chance * reward).sum(), policy.network.logits)
    objective = ReinforceConfig(reduce="sum").build()
    found = expected_update(
        policy, sampler, {"it": (1.0, objective)}, advantage=ALONE,
        drawn=(trajectory, chance.detach()),
    )["logits"]  # fmt: skip
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(found, -exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("release", RELEASES)
def test_frequencies_are_the_probabilities(make, make_plan, draw, release):
    policy, sampler = make(), sampler_of(release=release)
    trace = draw(sampler, policy, make_plan(8_000)).trace
    assert trace.keys() == {"tokens", "commit_step"}
    keys = zip(map(tuple, trace["commit_step"].tolist()), map(tuple, trace["tokens"].tolist()),
               strict=True)  # fmt: skip
    seen = Counter(keys)
    rows = outcomes(release)
    assert set(seen) <= {(steps, codes) for steps, codes, _ in rows}
    expected = probabilities(policy.network.logits.detach(), release) * 8_000
    large = expected >= 5
    counts = torch.tensor([seen[steps, codes] for steps, codes, _ in rows], dtype=torch.float64)
    observed = [*counts[large].tolist(), counts[~large].sum().item()]
    means = [*expected[large].tolist(), expected[~large].sum().item()]
    assert means[-1] < 200
    keep = slice(None) if means[-1] else slice(-1)
    total = sum(means[keep])
    means = [mean * 8_000 / total for mean in means[keep]]
    assert chisquare(observed[keep], means).pvalue > 1e-3


@pytest.mark.parametrize("granularity", ["step", "token"])
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("steps", [2, 6])
def test_it_scores_what_it_drew(make, release, granularity, steps):
    sampler = sampler_of(steps, release=release, granularity=granularity,
                         temperature=0.8, guidance_scale=1.5)  # fmt: skip
    found = check_sampler(make(), sampler, [Prompt("1", "a"), Prompt("2", "b")], tolerance=1e-12)
    assert max(found.drift, found.chunks, found.batches) < 1e-12


@pytest.mark.parametrize("granularity", ["step", "token"])
@pytest.mark.parametrize("release", RELEASES)
def test_every_token_is_credited_once_and_idle_steps_have_no_term(
    make, make_plan, draw, release, granularity
):
    sampler = sampler_of(6, release=release, granularity=granularity)
    trajectory = draw(sampler, make(), make_plan(200))
    terms, per_call = trajectory.terms, len(trajectory.terms.mask) // 6
    events = terms.events.unflatten(0, (6, per_call)).sum(1)
    steps = torch.arange(6).view(6, 1, 1)
    assert torch.equal(events, (trajectory.trace["commit_step"] == steps).sum(-1))
    assert torch.equal(terms.mask, terms.events > 0)
    assert (events == 0).any(), "six steps for three tokens, and none was idle"
    if granularity == "token":
        assert (terms.events <= 1).all()
        assert (terms.log_probs[~terms.mask] == 0).all()


@pytest.mark.parametrize("release", RELEASES)
def test_steps_are_tokens_and_a_constant(make, make_plan, draw, release):
    """The ratio of a step between two weight sets is the product of its tokens'."""
    plan, gaps = make_plan(50), []
    for seed in (0, 1):
        policy = make()
        step = draw(sampler_of(release=release), policy, plan)
        sampler = sampler_of(release=release, granularity="token")
        token = draw(sampler, policy, plan)
        assert torch.equal(step.final["tokens"], token.final["tokens"])
        if seed:
            other = make(seed=1)
            policy.network.logits.data.copy_(other.network.logits.data)
        k, b = torch.arange(STEPS).repeat_interleave(50), torch.arange(50).repeat(STEPS)
        scores = []
        for scoring, drawn in ((sampler_of(release=release), step), (sampler, token)):
            densities, action = scoring.densities(policy, drawn, k, b)
            scores.append(densities.log_prob(action).detach().sum(1))
        gaps.append(scores[0] - scores[1])
    assert gaps[0].abs().max() > 0.1
    torch.testing.assert_close(gaps[0], gaps[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("granularity", ["step", "token"])
@pytest.mark.parametrize("release", RELEASES)
def test_kl_and_entropy_add_up_to_those_of_whole_trajectories(
    make, make_plan, release, granularity
):
    """By the chain rule, on average; of the entropy, that of the positions is left out."""
    policy, other = make(), make(seed=4)
    sampler = sampler_of(release=release, granularity=granularity)
    trajectory = every_trajectory(policy, sampler, make_plan)
    count = len(trajectory)
    k, b = torch.arange(STEPS).repeat_interleave(count), torch.arange(count).repeat(STEPS)
    state, _ = sampler.restore(trajectory.trace, k, b)
    cond = {"prompt": torch.ones(len(k), dtype=torch.int64)}
    transition, reference = (sampler.transition(p, state, k, cond) for p in (policy, other))
    chance = probabilities(policy.network.logits, release)
    theirs = probabilities(other.network.logits, release)
    weight = chance.repeat(STEPS).unsqueeze(1)
    kl = (weight * transition.kl(reference)).sum()
    exact = (chance * (chance / theirs).log()).sum()
    torch.testing.assert_close(kl, exact, rtol=0, atol=1e-10)
    assert exact > 0.1
    positions = torch.tensor([share for _, _, share in outcomes(release)], dtype=torch.float64)
    entropy = -(chance * (chance / positions).log()).sum()
    found = (weight * transition.entropy()).sum()
    torch.testing.assert_close(found, entropy, rtol=0, atol=1e-6)


def test_the_last_step_releases_all_whatever_was_left(make, make_plan, draw):
    for steps in (1, 2):
        sampler = sampler_of(steps)
        trajectory = draw(sampler, make(), make_plan(100))
        assert (trajectory.trace["commit_step"] < steps).all()
        assert trajectory.terms.log_probs.isfinite().all()


def test_values_per_token_stand_first_to_last():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    released = torch.tensor([[False, True, False, True], [False, False, False, False]])
    found = transitions.per_token(values, released, 3)
    assert found.tolist() == [[2, 4, 0], [0, 0, 0]]


def test_analytic_kl_joins_random_release():
    assert (
        KlConfig(estimator="analytic").needs()
        <= RandomReleaseConfig(num_inference_steps=2).provides()
    )
