"""The bounds of the published algorithms: their masks, their weights, and their gradients."""

import importlib.util
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from genrl_core import Plan, Prompt, RecipeError, Streams
from genrl_core.loop.generate import generate
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.check import find_problems
from genrl_core.recipe.recipe import load_recipe
from genrl_core.registry import Registry
from genrl_core.testing import AdvantageConfig, learner_for, rollout_of
from genrl_masked import ConfidenceConfig, ElboConfig, MaskedPolicyConfig
from genrl_objectives import OBJECTIVES, KlConfig

N, MASK = 3, 2
SAMPLES = torch.tensor(list(itertools.product(range(2), repeat=N)))
TRUE = [True] * N


def streams_of(samples: int, update: int = 0, groups: int = 1) -> Streams:
    prompts = tuple(Prompt(str(index), "a prompt") for index in range(groups))
    group = torch.arange(groups).repeat_interleave(samples)
    plan = Plan(0, 0, 0, prompts, group, torch.arange(samples).repeat(groups))
    return plan.streams(f"corrupt/{update}").joined(plan.streams("corrupt"))


def corruption_of(policy, draws: int, samples=8, update=0, updates=1, groups=1):
    final = {"tokens": SAMPLES.repeat(samples // 8 + 1, 1)[:samples].repeat(groups, 1)}
    if policy.num_tokens != N:
        final = {"tokens": torch.zeros(samples * groups, policy.num_tokens, dtype=torch.int64)}
    return policy.corrupt(final, streams_of(samples, update, groups), draws, update, updates)


def token_log_prob(policy, tokens, masked, place) -> torch.Tensor:
    """``log p`` of one position of one sample under one mask, straight from the table."""
    canvas = [MASK if m else t for t, m in zip(tokens, masked, strict=True)]
    index = sum(code * 3**position for position, code in enumerate(canvas))
    return policy.network.logits[1, index, place].log_softmax(-1)[tokens[place]].detach()


def scored(policy, corruption) -> torch.Tensor:
    """What the policy says of all rows: ``[D, 8, M]`` for the 8 samples of ``SAMPLES``."""
    rows = {n: t.flatten(0, 1) for n, t in corruption.items() if n not in ("weight", "events")}
    draws = len(corruption["masked"])
    final = {"tokens": SAMPLES.repeat(draws, 1)}
    cond = {"prompt": torch.ones(8 * draws, dtype=torch.int64)}
    found = policy.elbo(final, cond, rows).detach()
    return found.unflatten(0, (draws, 8))


def estimate(policy, corruption) -> torch.Tensor:
    """The mean over draws of weight x term: ``[8, M]``."""
    weight = corruption.get("weight", torch.ones(len(corruption["masked"]), 8))
    return (weight.unsqueeze(2) * scored(policy, corruption)).mean(0)


def subsets():
    return [list(mask) for mask in itertools.product([False, True], repeat=N)]


def order_mean(policy) -> torch.Tensor:
    """``[8]``: the mean log-density over all orders of generating the positions one by one."""
    total = torch.zeros(8, dtype=torch.float64)
    for order in itertools.permutations(range(N)):
        masked = list(TRUE)
        for place in order:
            for row, tokens in enumerate(SAMPLES.tolist()):
                total[row] += token_log_prob(policy, tokens, masked, place)
            masked[place] = False
    return total / math.factorial(N)


def at_ratio(policy, ratio: float) -> torch.Tensor:
    """``[8]``: the mean of ``sum over masked of log p / t`` when each is masked with chance t."""
    total = torch.zeros(8, dtype=torch.float64)
    for mask in subsets():
        chance = math.prod(ratio if m else 1 - ratio for m in mask)
        for row, tokens in enumerate(SAMPLES.tolist()):
            for place in range(N):
                if mask[place]:
                    total[row] += chance / ratio * token_log_prob(policy, tokens, mask, place)
    return total


def expected(policy, corruption) -> torch.Tensor:
    """``[8]``: the estimate averaged over all sets at the ratios of a corruption of one sample."""
    total = torch.zeros(8, dtype=torch.float64)
    for ratio, weight in zip(corruption["ratio"][:, 0], corruption["weight"][:, 0], strict=True):
        for mask in subsets():
            t = ratio.item()
            chance = math.prod(t if m else 1 - t for m in mask)
            fixed = {"masked": torch.tensor([mask] * 8).unsqueeze(0), "ratio": ratio.expand(1, 8)}
            found = scored(policy, fixed).sum((0, 2))
            total += chance * weight * found / len(corruption["ratio"])
    return total


# --- quadrature (GDPO) ---


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_enough_nodes_give_the_mean_over_all_orders_exactly(make_policy, granularity):
    """The integrand is a polynomial of degree N - 1 = 2: exact from two nodes on, not with one."""
    policy = make_policy(codebook_size=2, masking="quadrature", granularity=granularity)
    exact = order_mean(policy)
    for draws in (1, 2, 3, 5):
        gap = (expected(policy, corruption_of(policy, draws)) - exact).abs().max()
        assert gap < 1e-12 if draws > 1 else gap > 1e-2


def test_nodes_do_not_vary_and_are_masked_with_their_probability(make_policy):
    policy = make_policy(codebook_size=2, masking="quadrature")
    found = corruption_of(policy, 2, samples=3_000)
    half = math.sqrt(1 / 12)
    assert found["ratio"].unique().tolist() == pytest.approx([0.5 - half, 0.5 + half])
    assert found["ratio"].dtype == torch.float64
    assert found["weight"].unique().tolist() == pytest.approx([1.0])
    rates = found["masked"].double().mean((1, 2))
    torch.testing.assert_close(rates, found["ratio"][:, 0], rtol=0, atol=0.015)
    three = corruption_of(policy, 3)["weight"][:, 0]
    assert three.tolist() == pytest.approx([5 / 6, 4 / 3, 5 / 6])


def test_a_draw_that_masks_nothing_counts_as_zero(make_policy):
    for granularity in ("sample", "token"):
        policy = make_policy(codebook_size=2, masking="quadrature", granularity=granularity)
        nothing = {"masked": torch.zeros(1, 8, N, dtype=torch.bool), "ratio": torch.ones(1, 8) / 9}
        assert (scored(policy, nothing) == 0).all()
        rows = {name: tensor[0] for name, tensor in nothing.items()}
        cond = {"prompt": torch.ones(8, dtype=torch.int64)}
        loss = policy.elbo({"tokens": SAMPLES}, cond, rows).sum()
        gradient = torch.autograd.grad(loss, policy.network.logits)[0]
        assert gradient.abs().max() == 0


# --- complement (coupled-GRPO) ---


def test_a_set_and_its_complement_score_every_position_once(make_policy):
    policy = make_policy(num_tokens=7, codebook_size=2, masking="complement")
    found = corruption_of(policy, 6, samples=500)
    masked, ratio = found["masked"].view(2, 3, 500, 7), found["ratio"].view(2, 3, 500)
    assert masked[:, 0].all()
    assert torch.equal(masked[:, 1], ~masked[:, 2])
    assert (ratio[:, 0] == 1).all()
    torch.testing.assert_close(ratio[:, 1] + ratio[:, 2], torch.ones(2, 500).double())
    assert ratio[:, 1].min() >= 0.2 and ratio[:, 1].max() <= 0.8
    assert ratio[:, 1].mean().item() == pytest.approx(0.5, abs=0.02)
    apart = (masked[:, 1].double().mean(-1) - ratio[:, 1]).mean()
    assert apart.abs() < 0.02


def test_a_token_s_term_is_half_of_both_its_scores(make_policy):
    """``1/2 [l(full) + w l(set or rest)]``, position by position, by hand."""
    policy = make_policy(codebook_size=2, masking="complement", granularity="token", combine=True)
    corruption = corruption_of(policy, 3)
    found = estimate(policy, corruption)
    chosen, ratio = corruption["masked"][1], corruption["ratio"][1]
    for row, tokens in enumerate(SAMPLES.tolist()):
        mask, t = chosen[row].tolist(), ratio[row].item()
        rest = [not m for m in mask]
        for place in range(N):
            own, weight = (mask, 1 / t) if mask[place] else (rest, 1 / (1 - t))
            full = token_log_prob(policy, tokens, TRUE, place)
            second = weight * token_log_prob(policy, tokens, own, place)
            assert found[row, place].item() == pytest.approx((full + second).item() / 2, abs=1e-12)


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_the_expected_pair_is_its_two_ratios(make_policy, granularity):
    policy = make_policy(codebook_size=2, masking="complement", granularity=granularity)
    corruption = corruption_of(policy, 3, samples=1)
    t = corruption["ratio"][1, 0].item()
    full = at_ratio(policy, 1.0)
    exact = (full + at_ratio(policy, t) + at_ratio(policy, 1 - t)) / 2
    torch.testing.assert_close(expected(policy, corruption), exact, rtol=0, atol=1e-12)


# --- full (diffu-GRPO) ---


def test_full_is_one_forward_of_the_empty_canvas(make_policy):
    policy = make_policy(codebook_size=2, masking="full", granularity="token")
    corruption = corruption_of(policy, 1)
    assert corruption["masked"].all() and corruption["masked"].shape == (1, 8, N)
    policy.calls = 0
    found = scored(policy, corruption)[0]
    assert policy.calls == 1
    for row, tokens in enumerate(SAMPLES.tolist()):
        truth = [token_log_prob(policy, tokens, TRUE, place).item() for place in range(N)]
        assert found[row].tolist() == pytest.approx(truth, abs=1e-12)
    whole = make_policy(codebook_size=2, masking="full")
    torch.testing.assert_close(scored(whole, corruption)[0].squeeze(1), found.sum(1))


def test_hidden_prompts_are_drawn_anew_and_reach_the_network(make_policy, monkeypatch):
    policy = make_policy(codebook_size=2, masking="full")
    monkeypatch.setattr(type(policy), "num_prompt_tokens", 1)
    monkeypatch.setattr(
        type(policy), "mask_prompt",
        lambda self, cond, where: {"prompt": cond["prompt"].masked_fill(where[:, 0], 0)},
    )  # fmt: skip
    bound = ElboConfig(masking="full", prompt_masking=0.15)
    policy.config = policy.config.model_copy(update={"elbo": bound})
    hidden = [corruption_of(policy, 2, 1_000, u, 2)["prompt_masked"] for u in (0, 1)]
    assert hidden[0].shape == (2, 1_000, 1)
    assert hidden[0].double().mean().item() == pytest.approx(0.15, abs=0.03)
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0][0], hidden[0][1])
    masked = torch.ones(8, N, dtype=torch.bool)
    where = torch.arange(8).unsqueeze(1) < 3
    final, ones = {"tokens": SAMPLES}, torch.ones(8, dtype=torch.int64)
    found = policy.elbo(final, {"prompt": ones}, {"masked": masked, "prompt_masked": where})
    told = policy.elbo(final, {"prompt": ones.masked_fill(where[:, 0], 0)}, {"masked": masked})
    assert torch.equal(found, told)


def test_the_digits_hide_words_as_padding():
    from genrl_digits import DigitsMaskedConfig

    policy = DigitsMaskedConfig(elbo=ElboConfig(masking="full", prompt_masking=0.5)).build()
    cond = policy.encode([Prompt("1", "a handwritten three")])
    where = torch.tensor([[False, True, False, True]])
    hidden = policy.mask_prompt(cond, where)["words"]
    assert hidden.tolist() == [[cond["words"][0, 0].item(), 0, cond["words"][0, 2].item(), 0]]
    assert policy.num_prompt_tokens == cond["words"].shape[1]


# --- structured (UniGRPO) ---


def test_structured_ratios_rise_evenly_to_everything(make_policy):
    tokens, updates = 400, 5
    policy = make_policy(codebook_size=2, masking="structured")
    policy.num_tokens = tokens
    counts = torch.stack([
        corruption_of(policy, 2, 300, update, updates)["masked"].sum(-1).double() / tokens
        for update in range(updates)
    ])  # fmt: skip
    first = counts[0]
    even = torch.linspace(0, 1, updates, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close(counts, first + even * (1 - first), rtol=0, atol=2 / tokens)
    assert (counts[-1] == 1).all()
    assert first.mean().item() == pytest.approx(0.5, abs=0.03)
    assert first.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.03)
    alone = corruption_of(policy, 1, 300)["masked"].sum(-1).double() / tokens
    assert alone.min() < 0.05 and alone.max() > 0.95


def test_the_learner_keeps_the_first_ratio_and_changes_the_masks(setting):
    """Through the core: updates of one iteration share t_1 and nothing else."""
    learner, rollout = setting("sft", {}, {"num_updates": 3}, masking="structured")
    long = {"tokens": torch.zeros(6, 100, dtype=torch.int64)}
    rollout = replace(rollout, trajectory=replace(rollout.trajectory, final=long))
    seen = []
    for update in range(3):
        (ready,) = learner.prepare(rollout, update)
        seen.append(ready.view.corruption["masked"][0])
    ratios = [masked.double().mean(-1) for masked in seen]
    middle = ratios[0] + (1 - ratios[0]) / 2
    torch.testing.assert_close(ratios[1], middle, rtol=0, atol=0.02)
    assert (ratios[2] == 1).all()
    assert not (seen[0] <= seen[1]).all(), "the second set is not the first with more in it"


def test_streams_of_no_update_are_refused(make_policy):
    policy = make_policy(masking="structured")
    with pytest.raises(ValueError, match="belong to no update"):
        policy.corrupt({"tokens": SAMPLES}, Streams(["a"] * 8, ["b"] * 8), 1, 0, 2)


# --- who shares draws ---


@pytest.mark.parametrize("masking", ["cosine", "uniform", "structured", "complement", "quadrature"])
def test_a_group_shares_its_masks_where_asked(make_policy, masking):
    for shared in (True, False):
        policy = make_policy(
            num_tokens=6, codebook_size=2, masking=masking, shared_by_group=shared
        )  # fmt: skip
        masked = corruption_of(policy, 3, samples=4, groups=2)["masked"]
        first, second = masked[:, :4], masked[:, 4:]
        assert torch.equal(first, first[:, :1].expand_as(first)) == shared
        assert not torch.equal(first, second)


# --- token granularity through the core ---


@pytest.fixture(scope="module")
def core():
    path = Path(__file__).parents[2] / "core" / "test_two_pass.py"
    spec = importlib.util.spec_from_file_location("core_two_pass", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setting(make_policy):
    """A learner on a table, and a rollout that older weights drew; the reference is older still."""

    def make(objective, fields, train, move=True, kl=None, **bound):
        shape = {name: bound.pop(name) for name in ("num_tokens", "codebook_size") if name in bound}
        policy = make_policy(**{"codebook_size": 2} | shape | bound)
        policy.network.table = policy.network.logits  # the core's tests look there
        sampler = ConfidenceConfig(num_inference_steps=2, transition="p2").build()
        weight_sets = WeightSets(policy)
        weight_sets.snapshot("reference")
        prompts = (Prompt("1", "a"), Prompt("2", "b"))
        plan = Plan(5, 0, 0, prompts, torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6) % 3)
        trajectory, _ = generate(policy, sampler, plan, 99)
        if move:
            with torch.no_grad():
                policy.network.logits.add_(0.3 * policy.network.logits.cos())
        reward = (trajectory.final["tokens"] * torch.arange(1, policy.num_tokens + 1)).sum(1).sin()
        rollout = rollout_of(trajectory, reward.double(), plan.group)
        config = OBJECTIVES[objective](**fields)
        members = {"it": (1.0, config.build())}
        if kl is not None:
            members["kl"] = (0.5, KlConfig(estimator=kl).build())
        learner = learner_for(
            policy, sampler, members, weight_sets, AdvantageConfig(scale="batch_std"),
            drift_tolerance=1e-9, views=config.view_wanted(), **train,
        )  # fmt: skip
        return learner, replace(rollout, on_policy=False)

    return make


OBJECTIVE = {
    "grpo": {"view": "elbo", "epsilon": 0.1},
    "gspo": {"view": "elbo", "epsilon": 0.1},
    "dpo": {"view": "elbo"},
    "sft": {},
}
DRAWS = {"uniform": 2, "full": 1, "structured": 2, "complement": 3, "quadrature": 2}


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("combine", [False, True], ids=["separate", "combined"])
@pytest.mark.parametrize(
    ("masking", "objective"), [*zip(DRAWS, ["grpo", "dpo", "grpo", "gspo", "sft"], strict=True)]
)
def test_two_passes_equal_one(core, setting, masking, objective, combine, rows):
    train = {"draws": DRAWS[masking], "micro_batch_size": rows}
    learner, rollout = setting(
        objective, OBJECTIVE[objective], train,
        masking=masking, combine=combine, granularity="token",
    )  # fmt: skip
    exact = core.one_pass(learner, rollout)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(core.update(learner, rollout), exact, rtol=0, atol=1e-10)


def prepared(setting, objective="sft", fields=None, **bound):
    draws = DRAWS[bound["masking"]]
    learner, rollout = setting(objective, fields or {}, {"draws": draws}, **bound)
    (ready,) = learner.prepare(rollout)
    numbers = learner.learner.context.evaluate(ready.view, ready.batch, rollout)
    return ready, ready.view.with_current(ready.batch, numbers)


@pytest.mark.parametrize("masking", DRAWS)
def test_terms_are_the_masked_positions(setting, masking):
    ready, batch = prepared(setting, masking=masking, granularity="token")
    masked = ready.view.corruption["masked"]
    assert batch.log_probs.shape == (len(masked) * N, 6)
    assert torch.equal(batch.mask.unflatten(0, (-1, N)), masked.transpose(1, 2))
    assert torch.equal(batch.denominator_mask, batch.mask)
    assert torch.equal(batch.events, batch.mask.long())
    assert torch.equal(batch.log_probs < 0, batch.mask)
    steps = torch.arange(len(masked)).repeat_interleave(N)
    assert torch.equal(batch.step[:, 0], steps)
    weight = ready.view.corruption.get("weight")
    if weight is not None:
        assert torch.equal(batch.weight, weight.repeat_interleave(N, 0))
    old = prepared(setting, "grpo", {"view": "elbo", "epsilon": 0.1}, masking=masking,
                   granularity="token")[0].batch.old_log_probs  # fmt: skip
    assert torch.equal(old, batch.log_probs)


@pytest.mark.parametrize("combine", [False, True], ids=["separate", "combined"])
@pytest.mark.parametrize("masking", DRAWS)
def test_the_bound_of_a_sample_counts_all_its_tokens(setting, masking, combine):
    """ESPO and GDPO: ``over: mean`` is the ratio per token, of all that the bound speaks for."""
    for objective in ("grpo", "gspo"):
        fields = {"view": "elbo", "epsilon": 0.1, "over": "mean"}
        draws = DRAWS[masking]
        learner, rollout = setting(
            objective, fields, {"draws": draws}, masking=masking, combine=combine
        )
        (group,), (ready,) = learner.learner.groups, learner.prepare(rollout)
        assert torch.equal(ready.batch.events, torch.full_like(ready.batch.events, N))
        assert ready.batch.mask.all()
        gap = torch.linspace(-1, 1, ready.batch.mask.numel()).double().view_as(ready.batch.mask)
        moved = replace(ready.batch, log_probs=ready.batch.need("old_log_probs") + gap)
        per_token = gap / N if objective == "grpo" else gap.mean(0, keepdim=True) / N
        found = group.members[0][2].loss(moved)[1]["ratio_mean"]
        torch.testing.assert_close(found, per_token.exp().expand_as(found))


@pytest.mark.parametrize("masking", DRAWS)
def test_combined_tokens_add_up_to_the_combined_sample(setting, masking):
    """One estimate, whether its terms are positions or whole samples; separate draws average it."""
    _, token = prepared(setting, masking=masking, granularity="token", combine=True)
    ready, sample = prepared(setting, masking=masking, combine=True)
    _, apart = prepared(setting, masking=masking)
    assert token.log_probs.shape == (N, 6)
    assert torch.equal(token.mask, ready.view.corruption["masked"].any(0).T)
    torch.testing.assert_close(token.log_probs.sum(0, keepdim=True), sample.log_probs)
    mean = (apart.weight * apart.log_probs).mean(0, keepdim=True)
    torch.testing.assert_close(mean, sample.log_probs)


def test_separate_tokens_are_plain_where_nothing_is_summed(setting):
    """UniGRPO's token ratio: no 1 / t in it; elbo puts it in."""
    ready, batch = prepared(setting, masking="uniform", granularity="token")
    _, elbo = prepared(setting, masking="uniform", granularity="token", weighting="elbo")
    counts = ready.view.corruption["masked"].sum(-1).repeat_interleave(N, 0)
    torch.testing.assert_close(elbo.log_probs, batch.log_probs * N / counts)
    assert (batch.log_probs - elbo.log_probs).abs().max() > 0.1


def test_every_slot_sees_the_same_draws(setting, monkeypatch):
    """Current, old and reference are compared on one corruption."""
    learner, rollout = setting(
        "grpo", {"view": "elbo", "epsilon": 0.1}, {"draws": 3}, kl="k3",
        masking="complement", granularity="token",
    )  # fmt: skip
    policy, seen = learner.learner.context.policy, []
    bound = policy.elbo

    def watch(final, cond, corruption):
        rows = torch.cat([final["tokens"], corruption["masked"].long()], 1)
        seen.append((policy.network, rows))
        return bound(final, cond, corruption)

    monkeypatch.setattr(policy, "elbo", watch)
    learner.learn(rollout, 0, 0)
    assert len({id(network) for network, _ in seen}) == 2
    assert len(seen) == 3  # old, reference, current
    assert all(torch.equal(rows, seen[0][1]) for _, rows in seen)


# --- KL on the bound ---


def kl_by_hand(learner, rollout, estimator):
    """The gradient of the estimate's mean over samples of the mean over terms, in one graph."""
    (ready,) = learner.prepare(rollout)
    view, batch = ready.view, ready.batch
    rows = [(d, b) for d in range(view.num_evals) for b in range(6)]
    k, b = (torch.tensor(part) for part in zip(*rows, strict=True))
    terms = view.evaluate(k, b)["log_probs"].unflatten(0, (view.num_evals, 6))
    mine = terms.transpose(1, 2).flatten(0, 1)
    x = mine - batch.reference
    value = {"k2": x**2 / 2, "k3": torch.exp(-x) - 1 + x}.get(estimator)
    if value is None:
        value = torch.exp(mine - mine.detach()) * (torch.exp(-x) - 1 + x)
    kept = torch.where(batch.mask, batch.weight * value, 0.0)
    loss = (kept.sum(0) / batch.mask.sum(0)).mean()
    return torch.autograd.grad(loss, learner.learner.context.policy.network.logits)[0]


@pytest.mark.parametrize("granularity", ["sample", "token"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "unbiased"])
def test_kl_pulls_the_bound_towards_the_reference(core, setting, estimator, granularity):
    bound = {"masking": "uniform", "granularity": granularity}
    train = {"draws": 2}
    alone = core.update(*setting("sft", {}, train, **bound))
    both = core.update(*setting("sft", {}, train, kl=estimator, **bound))
    exact = kl_by_hand(*setting("sft", {}, train, kl=estimator, **bound), estimator)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(both - alone, 0.5 * exact, rtol=0, atol=1e-10)
    still = core.update(*setting("sft", {}, train, move=False, **bound))
    held = core.update(*setting("sft", {}, train, move=False, kl=estimator, **bound))
    torch.testing.assert_close(held, still, rtol=0, atol=1e-12)


# --- refusals ---


@pytest.mark.parametrize("masking", ["full", "structured", "complement", "quadrature"])
def test_elbo_goes_with_levels_of_known_probability(masking):
    with pytest.raises(ValidationError, match="weighting"):
        ElboConfig(masking=masking, weighting="elbo")
    assert ElboConfig(masking="uniform", weighting="elbo").weighting == "elbo"


@pytest.mark.parametrize(
    ("elbo", "draws", "message"),
    [
        ({"masking": "complement"}, 1, "in threes"), ({"masking": "complement"}, 4, "Take 3"),
        ({"masking": "full"}, 2, "Take 1"), ({"masking": "complement"}, 6, ""),
        ({"masking": "quadrature"}, 1, ""), ({"masking": "quadrature"}, 7, ""),
        ({"masking": "structured"}, 2, ""), ({"masking": "full"}, 1, ""), ({}, 5, ""),
    ],
)  # fmt: skip
def test_draws_that_do_not_fit_are_refused(make_policy, elbo, draws, message):
    policy = make_policy(codebook_size=2, **elbo)
    if not message:
        assert corruption_of(policy, draws)["masked"].shape == (draws, 8, N)
        return
    with pytest.raises(RecipeError, match=message):
        corruption_of(policy, draws)


def test_hidden_prompts_need_a_policy_that_hides_them():
    class Plain(MaskedPolicyConfig):
        def build(self):
            raise AssertionError("nothing is built")

    with pytest.raises(ValidationError, match="does not say how"):
        Plain(elbo=ElboConfig(masking="full", prompt_masking=0.15))
    assert ElboConfig(masking="full", prompt_masking=0.15).draws_problem(4) == ""


def test_check_names_the_line_of_the_draws():
    more = ["policy.elbo.masking=complement", "objective.grpo.view=elbo", "train.draws=2"]
    registry = Registry.discover()
    found = [str(p) for p in find_problems(load_recipe("digits/masked", more, registry))]
    assert len(found) == 1
    assert "train.draws" in found[0] and "in threes" in found[0]
    assert find_problems(load_recipe("digits/masked", [*more, "train.draws=3"], registry)) == []
    steps = ["policy.elbo.masking=complement", "train.draws=2"]
    assert find_problems(load_recipe("digits/masked", steps, registry)) == []
