"""The step densities against brute force over every vector of codes, in float64."""

import itertools
import math

import pytest
import torch

from genrl_masked import transitions

N, V = 3, 3
NOISES = {"none": [0.0, 0.0, 0.0], "some": [0.4, -0.3, 0.1], "much": [-0.6, 0.9, 0.4]}
STATES = {"all masked, one released": ([0, 1, 2], 1), "all masked, two released": ([0, 1, 2], 2),
          "two masked, one released": ([0, 2], 1)}  # fmt: skip


@pytest.fixture(params=range(3))
def logits(request) -> torch.Tensor:
    generator = torch.Generator().manual_seed(request.param)
    return (1.2 * torch.randn(N, V, dtype=torch.float64, generator=generator)).requires_grad_()


class Enumerated:
    """Every transition of one step: its true probability given the noise, and what leads to it."""

    def __init__(self, outcomes, logits, state, noise):
        masked, count = STATES[state]
        probabilities = logits.detach().softmax(-1).tolist()
        self.masked = torch.tensor([position in masked for position in range(N)])
        self.noise = torch.tensor(noise, dtype=torch.float64)
        self.log_probs = logits.log_softmax(-1)
        self.found: dict[tuple, list[tuple[float, torch.Tensor]]] = {}
        for weight, drawn, released in outcomes(probabilities, masked, count, noise):
            codes = torch.tensor([drawn.get(position, 0) for position in range(N)])
            key = (released, tuple(drawn[position] for position in sorted(released)))
            self.found.setdefault(key, []).append((weight, codes))

    def __iter__(self):
        for (released, _), leading in self.found.items():
            truth = sum(weight for weight, _ in leading)
            yield truth, torch.tensor([p in released for p in range(N)]), leading

    def p1(self, codes, released, plain=False):
        """The density as the sampler computes it, one row."""
        rows = self.log_probs.unsqueeze(0), codes.unsqueeze(0), released.unsqueeze(0)
        if plain:
            thresholds = transitions.plain_thresholds(*rows)
        else:
            thresholds = transitions.noise_aware_thresholds(*rows, self.noise.unsqueeze(0))
        return transitions.p1(*rows, (self.masked & ~released).unsqueeze(0), thresholds.detach())[0]

    def p2(self, codes, released):
        rows = self.log_probs.unsqueeze(0), codes.unsqueeze(0), released.unsqueeze(0)
        return transitions.p2(*rows)[0]

    def ar(self, codes):
        rows = self.log_probs.unsqueeze(0), codes.unsqueeze(0), self.masked.unsqueeze(0)
        return transitions.ar(*rows)[0]


@pytest.fixture
def enumerate_step(outcomes, logits):
    return lambda state, noise: Enumerated(outcomes, logits, state, NOISES[noise])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("noise", NOISES)
def test_p1_is_the_probability_of_the_step_given_the_noise(enumerate_step, state, noise):
    step, total = enumerate_step(state, noise), 0.0
    for truth, released, leading in step:
        for _, codes in leading:
            assert step.p1(codes, released).exp().item() == pytest.approx(truth, abs=1e-12)
        total += step.p1(leading[0][1], released).exp().item()
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("state", STATES)
def test_p1_plain_is_exact_without_noise(enumerate_step, state):
    step = enumerate_step(state, "none")
    for truth, released, leading in step:
        found = step.p1(leading[0][1], released, plain=True).exp().item()
        assert found == pytest.approx(truth, abs=1e-12)


def test_p1_plain_is_wrong_with_noise(enumerate_step):
    """By 0.14 to 0.66 in the probability of a single step here; the sum is off by 0.016 to 0.17."""
    step = enumerate_step("all masked, two released", "much")
    errors, total = [], 0.0
    for truth, released, leading in step:
        found = step.p1(leading[0][1], released, plain=True).exp().item()
        errors.append(abs(found - truth))
        total += found
    assert 0.13 < max(errors) < 0.67
    assert 0.015 < abs(total - 1) < 0.18


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("noise", NOISES)
def test_p2_is_not_normalised(enumerate_step, state, noise):
    """They sum to 1.5 to 2.9 here: p2 leaves out that the others stayed masked."""
    step = enumerate_step(state, noise)
    total = sum(step.p2(leading[0][1], released).exp().item() for _, released, leading in step)
    assert 1.5 < total < 3


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("noise", NOISES)
def test_the_expected_score_of_ar_is_that_of_p1(enumerate_step, logits, state, noise):
    """``E[grad log p_AR | s, s'] = grad log p1``: p1 averages over the codes thrown away."""
    step = enumerate_step(state, noise)
    for truth, released, leading in step:
        mean = sum(weight * step.ar(codes) for weight, codes in leading) / truth
        of_ar = torch.autograd.grad(mean, logits, retain_graph=True)[0]
        of_p1 = torch.autograd.grad(
            step.p1(leading[0][1], released), logits, retain_graph=True
        )[0]  # fmt: skip
        torch.testing.assert_close(of_ar, of_p1, rtol=0, atol=1e-10)


def test_ar_has_the_larger_score(enumerate_step, logits):
    """Same mean, larger second moment: p1 is the Rao-Blackwellised estimator."""
    step = enumerate_step("all masked, one released", "some")
    moments = {"ar": 0.0, "p1": 0.0}
    for _, released, leading in step:
        for weight, codes in leading:
            for name, value in {"ar": step.ar(codes), "p1": step.p1(codes, released)}.items():
                score = torch.autograd.grad(value, logits, retain_graph=True)[0]
                moments[name] += weight * score.square().sum().item()
    assert moments["ar"] > 1.1 * moments["p1"]


@pytest.mark.parametrize("released", [[False] * 3, [True] * 3])
def test_steps_without_a_choice_have_p1_equal_to_p2(logits, released):
    """Nothing released: the others' staying masked is certain. Everything: nobody stayed."""
    log_probs = logits.log_softmax(-1).unsqueeze(0)
    codes, released = torch.tensor([[0, 2, 1]]), torch.tensor([released])
    noise = torch.tensor([NOISES["some"]], dtype=torch.float64)
    thresholds = transitions.noise_aware_thresholds(log_probs, codes, released, noise)
    found = transitions.p1(log_probs, codes, released, ~released, thresholds)
    torch.testing.assert_close(found, transitions.p2(log_probs, codes, released))
    assert found.isfinite().all()


def test_a_truth_value_as_threshold_turns_p1_into_p2(logits):
    """The released code's bug: as a bool the threshold is 1, and every code is below it."""
    log_probs = logits.log_softmax(-1).unsqueeze(0)
    codes, released = torch.tensor([[1, 0, 2]]), torch.tensor([[True, False, False]])
    thresholds = transitions.plain_thresholds(log_probs, codes, released)
    assert thresholds.dtype == torch.float64
    broken = transitions.p1(log_probs, codes, released, ~released, thresholds.bool())
    p2 = transitions.p2(log_probs, codes, released)
    torch.testing.assert_close(broken, p2)
    sound = transitions.p1(log_probs, codes, released, ~released, thresholds)
    assert (sound - p2).item() < -2.4


def test_an_empty_set_below_falls_back_on_the_drawn_code(logits):
    """A changed network can lift every code above the recorded threshold: never log 0."""
    log_probs = logits.log_softmax(-1).unsqueeze(0)
    codes = torch.tensor([[0, 2, 1]])
    thresholds = torch.full((1, 3), -50.0, dtype=torch.float64)
    found = transitions.log_mass_below(log_probs, codes, thresholds)
    torch.testing.assert_close(found, transitions.code_log_probs(log_probs, codes))
    gradient = torch.autograd.grad(found.sum(), logits)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_codes_of_probability_zero_leave_no_nan():
    logits = torch.tensor([[[0.0, -torch.inf, 1.0]]], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    for threshold in (-5.0, -1.0, 5.0):
        thresholds = torch.full((1, 1), threshold, dtype=torch.float64)
        found = transitions.log_mass_below(log_probs, torch.tensor([[0]]), thresholds)
        assert found.isfinite().all()
        gradient = torch.autograd.grad(found.sum(), logits, retain_graph=True)[0]
        assert gradient[..., [0, 2]].isfinite().all()
    assert transitions.entropies(log_probs).isfinite().all()
    assert transitions.divergences(log_probs, log_probs).item() == 0


def test_centred_thresholds_keep_the_set_and_bear_rounding():
    """Positions alike put raw thresholds on a code's very log-probability: rounding flips it."""
    generator = torch.Generator().manual_seed(0)
    row = 1.5 * torch.randn(1, 1, 16, generator=generator)
    log_probs = row.expand(1, 8, 16).log_softmax(-1)
    codes = torch.randint(16, (1, 8), generator=generator)
    released = transitions.best(
        transitions.code_log_probs(log_probs, codes), torch.ones(1, 8).bool(), torch.tensor([3])
    )
    confidence = transitions.code_log_probs(log_probs, codes)
    raw = confidence.masked_fill(~released, math.inf).amin(-1, keepdim=True).expand(1, 8)
    kept = transitions.centred(log_probs, raw)
    raw_set, kept_set = (log_probs < t.unsqueeze(-1) for t in (raw, kept))
    assert torch.equal(raw_set, kept_set)
    rounded = log_probs + 1e-6 * torch.randn(log_probs.shape, generator=generator)

    def change(thresholds):
        return (
            transitions.p1(rounded, codes, released, ~released, thresholds)
            - transitions.p1(log_probs, codes, released, ~released, thresholds)
        ).abs().item()  # fmt: skip

    assert change(kept) < 1e-4
    assert change(raw) > 1e-2


def test_codes_are_drawn_by_inversion():
    probabilities = torch.tensor([[[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]], dtype=torch.float64)
    edges = {0.0: 1, 0.24: 1, 0.26: 2, 0.74: 2, 0.76: 4, 1 - 2**-24: 4}
    for uniform, code in edges.items():
        drawn = transitions.draw_codes(probabilities.log(), torch.tensor([[uniform]]))
        assert drawn.item() == code


def test_every_code_gets_its_share_of_the_unit_interval():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(1, 1, 7, dtype=torch.float64, generator=generator).log_softmax(-1)
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = transitions.draw_codes(log_probs.expand(100_000, 1, 7), grid.unsqueeze(1))
    share = torch.bincount(drawn.flatten(), minlength=7) / 100_000
    torch.testing.assert_close(
        share, log_probs.exp().flatten(), rtol=0, atol=2e-5, check_dtype=False
    )


def test_best_takes_exactly_the_count_and_breaks_ties_by_index():
    keys = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.1, 0.4, 0.3, 0.2], [5.0, 1.0, 1.0, 2.0]])
    masked = torch.tensor([[True] * 4, [True] * 4, [False, True, True, True]])
    found = transitions.best(keys, masked, torch.tensor([2, 0, 2]))
    expected = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]).bool()
    assert torch.equal(found, expected)


def test_closed_forms_equal_sums_over_everything_drawn(logits):
    """KL and entropy of all codes drawn are sums over positions, as enumeration finds them."""
    generator = torch.Generator().manual_seed(9)
    other = torch.randn(N, V, dtype=torch.float64, generator=generator).log_softmax(-1)
    log_probs = logits.detach().log_softmax(-1)
    divergence = entropy = 0.0
    for codes in itertools.product(range(V), repeat=N):
        mine = sum(log_probs[i, code].item() for i, code in enumerate(codes))
        theirs = sum(other[i, code].item() for i, code in enumerate(codes))
        divergence += math.exp(mine) * (mine - theirs)
        entropy -= math.exp(mine) * mine
    assert transitions.divergences(log_probs, other).sum().item() == pytest.approx(divergence)
    assert transitions.entropies(log_probs).sum().item() == pytest.approx(entropy)


def test_a_code_at_the_threshold_is_not_below_it(logits):
    """Strict: the least confident released code is not counted in the set that stayed below it."""
    log_probs = logits.detach().log_softmax(-1).unsqueeze(0)
    middle, least = log_probs.median(-1), log_probs.min(-1).values
    found = transitions.log_mass_below(log_probs, middle.indices, middle.values)
    torch.testing.assert_close(found, least)


def test_needed_positions_come_first_and_in_their_order():
    needed = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert transitions.first_needed(needed).tolist() == [[1, 3, 4], [0, 1, 2], [0, 1, 2]]
    assert transitions.first_needed(needed, 4)[0].tolist() == [1, 3, 4, 0]
    assert transitions.first_needed(needed[2:]).tolist() == [[0]]
