"""The bound of a finished sample, against every order of generating it one position at a time."""

import itertools
import math
from collections import Counter

import pytest
import torch

from genrl_core import Streams
from genrl_masked import log_level_weight

SAMPLES = torch.tensor(list(itertools.product(range(2), repeat=3)))
N, MASK = 3, 2


class Prescribed(Streams):
    """Streams whose first uniform numbers are given, one per sample; the rest stay random."""

    first: torch.Tensor | None

    def uniform(self, *shape):
        given, self.first = self.first, None
        return super().uniform(*shape) if given is None else given.unsqueeze(1)


def streams(samples: int, first: torch.Tensor | None = None) -> Streams:
    keys = [f"masks/{sample}" for sample in range(samples)]
    made = Prescribed(keys, keys)
    made.first = first
    return made


def order_log_likelihoods(policy) -> torch.Tensor:
    """``[orders, samples]``: log-density of each sample, generated in each order, by the table."""
    rows = []
    for order in itertools.permutations(range(N)):
        total = torch.zeros(len(SAMPLES), dtype=torch.float64)
        canvas = torch.full_like(SAMPLES, MASK)
        for place in order:
            index = (canvas * torch.tensor([1, 3, 9])).sum(1)
            log_probs = policy.network.logits[1, index, place].log_softmax(-1)
            total = total + log_probs.gather(1, SAMPLES[:, place : place + 1]).squeeze(1)
            canvas[:, place] = SAMPLES[:, place]
        rows.append(total.detach())
    return torch.stack(rows)


def level_probabilities(policy) -> torch.Tensor:
    """P(n positions are masked), n = 1 .. N, from what ``corrupt`` does on a grid of levels."""
    grid = ((torch.arange(6_000, dtype=torch.float64) + 0.5) / 6_000).float()
    final = {"tokens": torch.zeros(len(grid), N, dtype=torch.int64)}
    masked = policy.corrupt(final, streams(len(grid), grid), 1, 0, 1)["masked"][0]
    return torch.bincount(masked.sum(1), minlength=N + 1)[1:].double() / len(grid)


def expected_bound(policy) -> torch.Tensor:
    """``[samples]``: the bound averaged over every set of masked positions."""
    final, cond = {"tokens": SAMPLES}, {"prompt": torch.ones(len(SAMPLES), dtype=torch.int64)}
    total = torch.zeros(len(SAMPLES), dtype=torch.float64)
    for count, probability in enumerate(level_probabilities(policy).tolist(), start=1):
        for places in itertools.combinations(range(N), count):
            masked = torch.zeros_like(SAMPLES, dtype=torch.bool)
            masked[:, list(places)] = True
            found = policy.elbo(final, cond, {"masked": masked})
            assert found.shape == (len(SAMPLES), 1)
            total += probability / math.comb(N, count) * found.detach().squeeze(1)
    return total


@pytest.mark.parametrize("masking", ["uniform", "cosine"])
def test_elbo_is_a_lower_bound_on_the_log_likelihood(make_policy, masking):
    """It is the mean over orders of the log-density, so below the log of the mean density."""
    policy = make_policy(codebook_size=2, masking=masking, weighting="elbo")
    orders = order_log_likelihoods(policy)
    likelihood = orders.logsumexp(0) - math.log(len(orders))
    assert likelihood.exp().sum().item() == pytest.approx(1, abs=1e-12)
    found = expected_bound(policy)
    torch.testing.assert_close(found, orders.mean(0), rtol=0, atol=2e-3)
    assert (found < likelihood - 0.01).all()


def test_elbo_is_exact_where_the_order_does_not_matter(make_policy):
    """Independent positions: every order gives the same density, and the bound is tight."""
    policy = make_policy(codebook_size=2, masking="uniform", weighting="elbo")
    with torch.no_grad():
        policy.network.logits.copy_(policy.network.logits[:, :1])
    orders = order_log_likelihoods(policy)
    torch.testing.assert_close(orders[0], orders[-1])
    torch.testing.assert_close(expected_bound(policy), orders[0], rtol=0, atol=1e-10)


def test_mean_weighting_under_cosine_masking_is_not_the_bound(make_policy):
    mean = expected_bound(make_policy(codebook_size=2, masking="cosine", weighting="mean"))
    elbo = expected_bound(make_policy(codebook_size=2, masking="cosine", weighting="elbo"))
    assert (mean - elbo).abs().max() > 0.05


@pytest.mark.parametrize("masking", ["uniform", "cosine"])
@pytest.mark.parametrize("tokens", [3, 16])
def test_level_weights_are_the_inverse_of_the_level_probabilities(make_policy, masking, tokens):
    bound = make_policy(masking=masking, weighting="elbo").config.elbo
    counts = torch.arange(1, tokens + 1)
    grid = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    drawn = (tokens * (grid if masking == "uniform" else (math.pi / 2 * grid).cos())).ceil().long()
    share = torch.bincount(drawn, minlength=tokens + 1)[1:].double() / len(grid)
    weight = log_level_weight(counts, tokens, bound).exp()
    torch.testing.assert_close(weight, 1 / (tokens * share), rtol=1e-3, atol=0)
    assert weight.max() <= math.pi / 2


@pytest.mark.parametrize("masking", ["uniform", "cosine"])
def test_masks_hide_at_least_one_position_and_any_equally(make_policy, masking):
    policy = make_policy(masking=masking)
    final = {"tokens": torch.zeros(6000, N, dtype=torch.int64)}
    masked = policy.corrupt(final, streams(6000), 2, 0, 1)["masked"]
    assert masked.shape == (2, 6000, N)
    assert masked.dtype == torch.bool
    assert masked.any(-1).all()
    for draw in masked:
        sets = Counter(map(tuple, draw.tolist()))
        for count in (1, 2):
            alike = [seen for places, seen in sets.items() if sum(places) == count]
            assert len(alike) == 3
            assert max(alike) < 1.2 * min(alike)


def test_the_draws_of_a_sample_spread_over_the_levels(make_policy):
    """Three draws under uniform masking of three positions: each number is masked once."""
    policy = make_policy(masking="uniform")
    final = {"tokens": torch.zeros(50, N, dtype=torch.int64)}
    counts = policy.corrupt(final, streams(50), 3, 0, 1)["masked"].sum(-1)
    assert counts.sort(0).values.T.tolist() == [[1, 2, 3]] * 50


def test_corruption_belongs_to_the_sample_not_to_the_batch(make_policy):
    policy = make_policy()
    final = {"tokens": torch.zeros(5, N, dtype=torch.int64)}
    whole = policy.corrupt(final, streams(5), 4, 0, 1)["masked"]
    first = policy.corrupt({"tokens": final["tokens"][:2]}, streams(2), 4, 0, 1)["masked"]
    assert torch.equal(whole[:, :2], first)


def test_matching_error_is_the_mean_cross_entropy_of_the_masked(make_policy):
    policy = make_policy(codebook_size=2)
    masked = torch.tensor([[True, False, True], [False, True, False]])
    final, cond = {"tokens": SAMPLES[[5, 3]]}, {"prompt": torch.tensor([1, 2])}
    denoising = policy.denoising(final, cond, {"masked": masked})
    table = policy.network.logits
    first = table[1, 2 + 3 * 0 + 9 * 2].log_softmax(-1)
    second = table[2, 0 + 3 * 2 + 9 * 1].log_softmax(-1)
    assert denoising.prediction.shape == (2, N, 2)
    expected = torch.stack([-(first[0, 1] + first[2, 1]) / 2, -second[1, 1]])
    torch.testing.assert_close(denoising.error(denoising.prediction), expected)
    bound = policy.elbo(final, cond, {"masked": masked})
    torch.testing.assert_close(bound, -N * expected.unsqueeze(1))
    gradient = torch.autograd.grad(bound.sum(), table)[0]
    assert gradient[:, 0].abs().max() == 0
    assert gradient.abs().max() > 0


def test_draws_are_combined_where_the_config_says_so(make_policy):
    assert make_policy(combine=True).combine_draws
    assert not make_policy().combine_draws


def test_logits_in_half_precision_are_normalised_in_float32(make_policy):
    """As in the rollout: a network under autocast may answer in bfloat16."""
    policy = make_policy(codebook_size=2, scale=2.0)
    final, cond = {"tokens": SAMPLES}, {"prompt": torch.ones(len(SAMPLES), dtype=torch.int64)}
    masked = torch.ones_like(SAMPLES, dtype=torch.bool)
    canvas = torch.full_like(SAMPLES, MASK)
    half = policy.logits(canvas, cond).detach().bfloat16()
    policy.logits = lambda canvas, cond: half
    found = policy.elbo(final, cond, {"masked": masked})
    exact = half.double().log_softmax(-1).gather(-1, SAMPLES.unsqueeze(-1)).sum((1, 2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.squeeze(1).double(), exact, rtol=1e-6, atol=0)
    assert policy.denoising(final, cond, {"masked": masked}).prediction.dtype == torch.float32
