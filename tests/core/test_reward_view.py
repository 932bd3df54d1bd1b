"""The view ``reward``: gradients of the reward itself, through samples that are drawn again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from genrl_core.errors import GenRLError, RecipeError, RewardError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import Objective, SamplerBackprop
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Tensors, Trajectory
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.generate import generate
from genrl_core.loop.objectives import group_objectives
from genrl_core.loop.plan import plan_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views.reward import END, backprop_steps, reward_gradient
from genrl_core.recipe.check import find_problems
from genrl_core.recipe.recipe import Recipe
from genrl_core.recipe.views import resolve_views
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import (
    SingleUpdates,
    ToyGaussian,
    ToyGaussianSampler,
    ToyReward,
    learner_for,
    rollout_of,
)
from genrl_core.testing.enumerable import DEVIATION, STEPS
from genrl_objectives import GrpoConfig, KlConfig, RewardGradientConfig

PROMPTS = tuple(Prompt(str(i), "toy") for i in range(3))
Make = Callable[..., Recipe]


def objective(**fields: object) -> Objective:
    return RewardGradientConfig.model_validate(fields).build()


class Coupled(Objective):
    """A group's log-mean-exp of rewards: couples samples."""

    backprop = SamplerBackprop(steps=STEPS)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reward = batch.need("differentiable_reward")[0]
        groups = batch.group[batch.valid].unique()
        found = [reward[(batch.group == g) & batch.valid].logsumexp(0) for g in groups]
        return -torch.stack(found).mean(), {}


class Nodes(Streams):
    """Streams whose normal numbers are the nodes of a quadrature."""

    def __init__(self, noise: Tensor):
        super().__init__(["unused"] * len(noise), ["unused"] * len(noise))
        self._columns = iter(noise.T)

    def normal(self, *shape: int) -> Tensor:
        assert shape == ()
        return next(self._columns)


@dataclass(frozen=True)
class Grid(Plan):
    """A plan whose samples have given noise, ``[B, STEPS]``."""

    noise: Tensor | None = None

    def streams(self, purpose: str) -> Streams:
        assert self.noise is not None
        return Nodes(self.noise) if purpose == "rollout" else super().streams(purpose)

    def select(self, rows: Tensor) -> Plan:
        assert self.noise is not None
        return replace(super().select(rows), noise=self.noise[rows])


def quadrature() -> tuple[Grid, Tensor]:
    """Both noises at 5 Gauss-Hermite nodes, exact to degree 9, and their probabilities."""
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(5)
    x, p = torch.tensor(points), torch.tensor(weights / weights.sum())
    noise = torch.cartesian_prod(x, x)
    count = torch.arange(len(noise))
    grid = Grid(0, 0, 0, PROMPTS[:1], torch.zeros_like(count), count, noise=noise)
    return grid, torch.cartesian_prod(p, p).prod(1)


def rollout_from(policy: Policy, sampler: Sampler, plan: Plan) -> Rollout:
    trajectory, media = generate(policy, sampler, plan, 99)
    reward = torch.tensor(ToyReward()(media, []), dtype=torch.float64)
    return replace(rollout_of(trajectory, reward, plan.group), parts=(plan,))


def policy_of(learner: SingleUpdates) -> Policy:
    return learner.learner.context.policy


def update(learner: SingleUpdates, rollout: Rollout) -> Tensor:
    """What one learn() subtracts from the table, at a learning rate of 1."""
    table = policy_of(learner).network.table
    before = table.detach().clone()
    _, problem = learner.learn(rollout, 0, 0)
    assert problem is None
    moved = before - table.detach()
    with torch.no_grad():
        table.copy_(before)
    return moved


def expected(policy: ToyGaussian, **fields: object) -> Tensor:
    """The mean update over all noise, by quadrature."""
    plan, probability = quadrature()
    sampler = ToyGaussianSampler()
    chance = probability * len(probability)
    learner = learner_for(
        policy,
        sampler,
        {"it": (1.0, objective(**fields))},
        chance=chance,
        drift_tolerance=1e-12,
        views="reward",
    )
    return update(learner, rollout_from(policy, sampler, plan))


def slope(policy: ToyGaussian) -> tuple[float, float, float, float]:
    """``a0, a1, b1`` of ``x1 = a0 + D z1, x2 = a1 + b1 x1 + D z2``, and dR/dm = 1 - .6 E[x2]."""
    table = policy.network.table.detach()
    a0, a1, b1 = float(table[0, 0]), float(table[1, 0]), float(table[1, 1])
    return a0, a1, b1, 1 - 0.6 * (a1 + b1 * a0)


def closed_form(policy: ToyGaussian, through: bool) -> Tensor:
    """D E[x2 - .3 x2^2] by hand; ``through`` says whether x1 carries a gradient.

    E[x2] = m = a1 + b1 a0 and E[x2^2] = m^2 + D^2 (1 + b1^2).
    """
    a0, _, b1, dm = slope(policy)
    found = torch.zeros_like(policy.network.table)
    found[1, 0], found[1, 1] = dm, dm * a0 - 0.6 * DEVIATION**2 * b1
    found[0, 0] = dm * b1 if through else 0.0
    return found


@pytest.mark.parametrize(("steps", "through"), [(1, False), (2, True), (7, True)])
def test_mean_update_is_the_pathwise_gradient(steps: int, through: bool) -> None:
    """All steps: the exact gradient of the expected reward. K = 1: the same, truncated."""
    policy = ToyGaussian()
    exact = closed_form(policy, through)
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(-expected(policy, steps=steps), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_preview_is_judged_where_the_sample_stops(steps: int) -> None:
    """ReFL on the toy: the mean of the next place is what it takes the finished one for."""
    policy = ToyGaussian()
    a0, a1, b1, dm = slope(policy)
    first = torch.zeros_like(policy.network.table)
    first[0, 0] = 1 - 0.6 * a0
    found = -expected(policy, steps=steps, stop="random", stop_range=[0, 1])
    torch.testing.assert_close(found, first, rtol=0, atol=1e-10)
    second = torch.zeros_like(first)
    second[1, 0] = dm
    second[1, 1] = a0 - 0.6 * (a1 * a0 + b1 * (a0**2 + DEVIATION**2))
    second[0, 0] = dm * b1 if steps == 2 else 0.0
    found = -expected(policy, steps=steps, stop="random", stop_range=[1, 2])
    torch.testing.assert_close(found, second, rtol=0, atol=1e-10)


Viewed = tuple[str, Objective]
"""An objective and its view."""


def setting(members: Sequence[Viewed], **train: object) -> tuple[SingleUpdates, Rollout]:
    """A learner and a rollout of two plans, side by side, whose weights have moved since."""
    policy, sampler = ToyGaussian(), ToyGaussianSampler()
    plans = [plan_of(3, i, 0, PROMPTS, 4).select(torch.arange(12 - 5 * i)) for i in range(2)]
    drawn = [generate(policy, sampler, plan, 99) for plan in plans]
    trajectory = Trajectory.concat([one for one, _ in drawn])
    texts = [ToyReward()(media, []) for _, media in drawn]
    group = torch.cat([plans[0].group, plans[1].group + 3])
    reward = torch.tensor(texts[0] + texts[1], dtype=torch.float64)
    rollout = replace(
        rollout_of(trajectory, reward, group), parts=tuple(plans), on_policy=False
    )  # fmt: skip
    with torch.no_grad():
        policy.network.table.mul_(1.3).add_(0.2 * policy.network.table.cos())
    weighted = {str(i): (1.0 + 0.5 * i, each) for i, (_, each) in enumerate(members)}
    views = {str(i): view for i, (view, _) in enumerate(members)}
    learner = learner_for(policy, sampler, weighted, drift_tolerance=1e-12, views=views, **train)
    return learner, rollout


def replayed(**fields: object) -> Viewed:
    return "reward", objective(**fields)


CASES: dict[str, list[Viewed]] = {
    "last": [replayed()],
    "all": [replayed(steps=2)],
    "random_steps": [replayed(steps=2, random_steps=True)],
    "preview": [replayed(stop="random", stop_range=[0, 2])],
    "margin": [replayed(steps=2, margin=0.4)],
    "coupled": [("reward", Coupled())],
    "two_replays": [replayed(), replayed(steps=2, margin=0.4), ("reward", Coupled())],
    "with_grpo": [replayed(steps=2), ("steps", GrpoConfig(epsilon=0.1).build())],
}


def one_pass(learner: SingleUpdates, rollout: Rollout) -> Tensor:
    """The same update by a single backward through the graph of the whole batch."""
    total = torch.zeros((), dtype=torch.float64)
    for group, ready in zip(learner.learner.groups, learner.prepare(rollout), strict=True):
        samples, calls = len(rollout.reward), ready.view.num_evals
        k, b = torch.arange(calls).repeat_interleave(samples), torch.arange(samples).repeat(calls)
        fresh = ready.view.evaluate(k, b)
        values = {name: each.view(calls, samples) for name, each in fresh.items()}
        total = total + group.loss(ready.view.with_current(ready.batch, values))[0]
    (gradient,) = torch.autograd.grad(total, policy_of(learner).network.table)
    return gradient


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("name", CASES)
def test_two_passes_equal_one_whatever_the_chunks(name: str, rows: int) -> None:
    learner, rollout = setting(CASES[name], micro_batch_size=rows)
    exact = one_pass(learner, rollout)
    assert exact.abs().max() > 1e-2
    torch.testing.assert_close(update(learner, rollout), exact, rtol=0, atol=1e-10)


def test_random_steps_are_the_mean_over_the_samples_own() -> None:
    """The first step's slope comes from the samples that drew K = 2 alone."""
    learner, rollout = setting([replayed(steps=2, random_steps=True)])
    steps, stop = backprop_steps(SamplerBackprop(2, random_steps=True), rollout.streams("replay/0"))
    assert set(steps.tolist()) == {1, 2}
    assert set(stop.tolist()) == {END}
    policy, sampler = ToyGaussian(), ToyGaussianSampler()
    policy.network.load_state_dict(policy_of(learner).network.state_dict())
    final = torch.cat([generate(policy, sampler, plan, 99)[0].final["x"] for plan in rollout.parts])
    b1 = float(policy.network.table.detach()[1, 1])
    exact = -((1 - 0.6 * final[:, 0]) * (steps == 2)).mean() * b1
    assert float(update(learner, rollout)[0, 0]) == pytest.approx(float(exact), abs=1e-12)


def test_update_is_the_difference_quotient_of_what_is_drawn() -> None:
    """Nothing of the view on this side: rewards of rollouts under weights moved by hand."""
    learner, rollout = setting([replayed(steps=2)])
    policy = ToyGaussian()
    start = policy_of(learner).network.table.detach().clone()

    def mean_reward(table: Tensor) -> float:
        with torch.no_grad():
            policy.network.table.copy_(table)
        media = [generate(policy, ToyGaussianSampler(), plan, 99)[1] for plan in rollout.parts]
        values = [value for each in media for value in ToyReward()(each, [])]
        return sum(values) / len(values)

    found = update(learner, rollout)
    for place in ((0, 0), (1, 0), (1, 1), (0, 2)):
        shift = torch.zeros_like(start)
        shift[place] = 1e-5
        quotient = (mean_reward(start + shift) - mean_reward(start - shift)) / 2e-5
        assert float(-found[place]) == pytest.approx(quotient, abs=1e-8)


def test_draws_of_steps_and_stops() -> None:
    streams = plan_of(0, 0, 0, PROMPTS, 1000).streams("replay/0")
    steps, stop = backprop_steps(SamplerBackprop(3, random_steps=True, stop=(2, 6)), streams)
    assert torch.bincount(steps)[1:].tolist() == pytest.approx([1000] * 3, abs=100)
    assert torch.bincount(stop)[2:].tolist() == pytest.approx([750] * 4, abs=100)
    assert abs(float(torch.corrcoef(torch.stack([steps, stop]).double())[0, 1])) < 0.1
    fixed, end = backprop_steps(
        SamplerBackprop(3), plan_of(0, 0, 0, PROMPTS, 2).streams("replay/0")
    )
    assert fixed.tolist() == [3] * 6
    assert end.tolist() == [END] * 6


class Double(ToyReward):
    """Twice the place, and how often it was asked."""

    asked = 0

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.asked += len(prompts)
        return 2 * pixels.flatten()


def test_rewards_are_weighted_and_left_out_where_they_do_not_apply() -> None:
    learner, rollout = setting([replayed(steps=2)])
    absent = torch.zeros_like(rollout.reward)
    absent[4:9] = torch.nan
    other = Double()
    given = {"toy": (0.5, ToyReward()), "other": (3.0, other)}
    learner.learner.context = replace(learner.learner.context, rewards=given)
    rollout = replace(rollout, rewards={"toy": (0.5, rollout.reward), "other": (3.0, absent)})
    found = update(learner, rollout)
    assert other.asked == len(absent) - 5
    policy, sampler = policy_of(learner), ToyGaussianSampler()
    final = []
    for plan in rollout.parts:
        cond = {"length": torch.zeros(len(plan), dtype=torch.int64)}
        final.append(sampler.rollout(policy, cond, plan, grad_steps=2).final["x"][:, 0])
    x = torch.cat(final)
    total = 0.5 * (x - 0.3 * x**2) + torch.where(absent.isnan(), 0.0, 3.0 * 2 * x)
    (exact,) = torch.autograd.grad(-total.mean(), policy.network.table)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_samples_that_are_filtered_out_move_nothing() -> None:
    learner, rollout = setting([replayed(steps=2)])
    valid = rollout.group < 2
    found = update(learner, replace(rollout, valid=valid))
    kept = rollout.parts[0].select(valid[:12].nonzero().flatten())
    alone, _ = setting([replayed(steps=2)])
    part = replace(
        rollout_of(rollout.trajectory.select(valid.nonzero().flatten()), rollout.reward[valid],
                   kept.group), parts=(kept,), on_policy=False)  # fmt: skip
    torch.testing.assert_close(found, update(alone, part), rtol=0, atol=1e-12)


def test_objectives_of_two_views_add_up() -> None:
    """With GRPO and the KL to the reference in one recipe: the sum of their own updates."""
    kl = KlConfig(estimator="k2").build()
    parts = [replayed(steps=2), ("steps", GrpoConfig(epsilon=0.1).build()), ("steps", kl)]
    found = []
    for members in (parts, *([each] for each in parts)):
        learner, rollout = setting(members)
        weight_sets = learner.learner.context.weight_sets
        weight_sets.snapshot("reference")
        with weight_sets.using("reference"), torch.no_grad():
            policy_of(learner).network.table.add_(0.1)
        found.append(update(learner, rollout))
    groups = setting(parts)[0].learner.groups
    assert [group.view.name for group in groups] == ["reward", "steps"]
    expected_sum = found[1] + 1.5 * found[2] + 2.0 * found[3]
    torch.testing.assert_close(found[0], expected_sum, rtol=0, atol=1e-10)
    assert all(each.abs().max() > 1e-3 for each in found)


def test_what_is_drawn_again_alike_shares_a_group() -> None:
    members = [objective(), objective(margin=1.0), objective(steps=2)]
    groups = group_objectives(("reward", str(i), 1.0, each) for i, each in enumerate(members))
    assert [[label for label, _, _ in group.members] for group in groups] == [["0", "1"], ["2"]]


def test_an_objective_must_say_what_is_drawn_again() -> None:
    class Silent(Coupled):
        backprop = None

    learner, rollout = setting([("reward", Silent())])
    with pytest.raises(GenRLError, match=r"objective 0 reads the view reward and has no backprop"):
        learner.learn(rollout, 0, 0)


class Forgetful(ToyGaussianSampler):
    """Draws from a generator of its own: a second rollout is another one."""

    def __init__(self) -> None:
        self._own = torch.Generator().manual_seed(0)

    def start(self, policy: ToyGaussian, cond: Tensors, streams: Streams) -> Tensors:
        shape = (len(streams), 1)
        return {"x": torch.randn(shape, generator=self._own, dtype=torch.float64)}


@pytest.mark.parametrize("fields", [{}, {"stop": "random", "stop_range": [1, 2]}])
def test_a_sampler_that_does_not_repeat_itself_is_caught(fields: dict[str, object]) -> None:
    policy, sampler = ToyGaussian(), Forgetful()
    rollout = rollout_from(policy, sampler, plan_of(0, 0, 0, PROMPTS, 4))
    learner = learner_for(policy, sampler, {"it": (1.0, objective(**fields))}, views="reward")
    with pytest.raises(GenRLError, match=r"drift: the rewards of the update differ.*plan\.streams"):
        learner.learn(rollout, 0, 0)


class Cut(ToyGaussianSampler):
    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        return super().rollout(policy, cond, plan, 0)


def test_a_sampler_without_a_graph_is_caught() -> None:
    policy, sampler = ToyGaussian(), Cut()
    rollout = rollout_from(policy, sampler, plan_of(0, 0, 0, PROMPTS, 4))
    learner = learner_for(policy, sampler, {"it": (1.0, objective())}, views="reward")
    with pytest.raises(GenRLError, match="pixels of ToyGaussian carry no gradient after Cut has"):
        learner.learn(rollout, 0, 0)


class Odd(Reward):
    """A reward that is not what it should be."""

    def __init__(self, gradient: Callable[[Tensor], Tensor] | None):
        self._gradient = gradient

    def __call__(self, media: object, prompts: Sequence[Prompt]) -> list[float]:
        return [0.0] * len(prompts)

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self._gradient is None:
            return super().gradient(pixels, prompts)
        return self._gradient(pixels)


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (None, "gradient of reward 'odd' raised NotImplementedError: Odd is not differentiable"),
        (lambda x: x.sum(), r"has the shape \(\): expected \[3\], one number per sample"),
        (lambda x: x.flatten().detach(), "'odd' does not depend on the pixels: make it of torch"),
        (lambda x: x @ torch.zeros(7, 7), "gradient of reward 'odd' raised RuntimeError"),
    ],
)
def test_a_broken_gradient_is_named(gradient: Callable[[Tensor], Tensor] | None, said: str) -> None:
    pixels = torch.ones(3, 1, 1, 1, requires_grad=True)
    with pytest.raises(RewardError, match=said):
        reward_gradient("odd", Odd(gradient), pixels, PROMPTS)


def test_a_reward_that_is_not_finite_skips_the_step() -> None:
    learner, rollout = setting([replayed()])
    odd = {"odd": (1.0, Odd(lambda x: x.flatten() / 0))}
    learner.learner.context = replace(learner.learner.context, rewards=odd)
    _, problem = learner.learn(rollout, 0, 0)
    assert problem == "a differentiable reward is not finite"


# Through recipes

DRAFT = {"objective": {"reward_gradient": {"steps": 2}}}


def test_a_recipe_learns_and_repeats_its_samples_exactly(toy_recipe: Make) -> None:
    """From resampled groups too, whose samples come from several plans."""
    recipe = toy_recipe(
        "toy_gaussian", "train.iterations=20", "filter={min_std: 0.25, then: resample}",
        "train.micro_batch_size=5", "train.num_generations=8", **DRAFT,
    )  # fmt: skip
    trainer = build_trainer(recipe)
    records = [trainer.step() for _ in range(recipe.train.iterations)]
    assert max(record.metrics["drift"] for record in records) < 1e-12
    assert max(record.metrics["attempts"] for record in records) > 1
    assert max(record.metrics["reward_gap"] for record in records) < 1e-12
    rewards = [record.metrics["reward"] for record in records]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_later_updates_climb_from_the_weights_of_then(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_gaussian", "train.num_updates=3", "train.num_minibatches=3", **DRAFT)
    record = build_trainer(recipe).step()
    assert record.problem is None
    assert record.metrics["drift"] < 1e-12
    assert record.metrics["reward_gap"] > 1e-4  # the samples have moved since they were drawn


def test_one_sample_per_prompt_is_enough(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_gaussian", "train.num_generations=1", **DRAFT)
    assert find_problems(recipe) == []
    assert build_trainer(recipe).step().problem is None


def test_a_neighbour_without_a_view_takes_one_of_its_own(toy_recipe: Make) -> None:
    mixed = {"objective": {"reward_gradient": {}, "kl": {"weight": 0.1}}}
    recipe = toy_recipe("toy_gaussian", **mixed)
    assert find_problems(recipe) == []
    assert resolve_views(recipe) == {"reward_gradient": "reward", "kl": "steps"}
    trainer = build_trainer(recipe)
    assert trainer.step().metrics["kl"] == 0
    assert trainer.step().metrics["kl"] > 0
    beside = {"objective": {"reward_gradient": {}, "sft": {}, "kl": {"weight": 0.1}}}
    assert resolve_views(toy_recipe("toy_gaussian", **beside))["kl"] == "elbo"


@pytest.mark.parametrize("name", ["toy_sequence", "toy_canvas"])
def test_policies_without_a_gradient_are_refused(toy_recipe: Make, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_trainer(toy_recipe(name, **DRAFT))
    said = str(caught.value)
    assert f"reward_gradient needs differentiable, which {name} does not provide" in said
    assert "Of other paradigms, " in said and "toy_gaussian" in said


def test_lagging_weights_must_not_draw(toy_recipe: Make) -> None:
    recipe = toy_recipe("toy_gaussian", objective={"reward_gradient": {}, "nft": {}})
    (problem,) = find_problems(recipe)
    assert "draws its samples again under the current weights, but nft has" in str(problem)
    assert not find_problems(recipe.with_overrides("objective.nft.partner=reference"))
