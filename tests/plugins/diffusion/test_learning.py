"""What objectives make of a diffusion policy, against formulas written out by hand."""

import pytest
import torch
from torch import Tensor

from genrl_core import Objective
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import learner_for, rollout_of
from genrl_diffusion import FlowSdeConfig
from genrl_objectives import OBJECTIVES

SAMPLES, DRAWS, STEPS = 6, 3, 4
CONFIG = FlowSdeConfig(num_inference_steps=STEPS)
REWARDS = torch.tensor([0.1, 0.9, 0.3, 0.4, 1.0, 0.0], dtype=torch.float64)
CENTRED = AdvantageConfig(baseline="group_mean", scale="none")


class Nothing(Objective):
    """Stands beside others, and has no gradient."""

    def loss(self, batch):
        self.duration = batch.duration
        return batch.reduce(0.0 * batch.log_probs, "sample_mean"), {}


class Shifted:
    """A policy with a frozen reference (and old) from which the mean is then moved."""

    def __init__(self, policy, shift: float):
        self.policy, self.weight_sets, self.corruption = policy, WeightSets(policy), {}
        for name in ("reference", "lagging"):
            self.weight_sets.snapshot(name)
        with torch.no_grad():
            policy.network.mean += shift
        inner = policy.corrupt

        def corrupt(*parts):
            self.corruption = inner(*parts)
            return self.corruption

        policy.corrupt = corrupt

    def gradient(self, objectives, trajectory, view) -> tuple[Tensor, Tensor]:
        """By mean and deviation, of one update of the learner; all objectives read one view."""
        before = [p.detach().clone() for p in self.policy.network.parameters()]
        learner = learner_for(
            self.policy, CONFIG.build(), objectives, self.weight_sets, CENTRED,
            draws=DRAWS, micro_batch_size=5, views=view,
        )  # fmt: skip
        group = torch.zeros(SAMPLES, dtype=torch.int64)
        learner.learn(rollout_of(trajectory, REWARDS, group), 0, 0)
        moved = [p.detach().clone() for p in self.policy.network.parameters()]
        with torch.no_grad():
            for parameter, value in zip(self.policy.network.parameters(), before, strict=True):
                parameter.copy_(value)
        return tuple(b - m for b, m in zip(before, moved, strict=True))

    def rows(self, trajectory):
        """Condition, clean latents and corruption of every (draw, sample)."""
        final = {"latents": trajectory.final["latents"].repeat(DRAWS, 1, 1)}
        cond = {name: tensor.repeat(DRAWS) for name, tensor in trajectory.cond.items()}
        return final, cond, {name: t.flatten(0, 1) for name, t in self.corruption.items()}


def by_hand(policy, loss) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, [*policy.network.parameters()])


def check(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.abs() > 1e-6
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


KL = {
    "k1": lambda new, ref: new - ref,
    "k2": lambda new, ref: (new - ref).square() / 2,
    "k3": lambda new, ref: (ref - new).exp() - 1 - (ref - new),
    "unbiased": lambda new, ref: (new - new.detach()).exp() * ((ref - new).exp() - 1 - (ref - new)),
}


@pytest.mark.parametrize("estimator", [*KL, "analytic"])
def test_every_kl_estimator_moves_the_steps(make_policy, make_plan, draw, estimator):
    trial = Shifted(make_policy(), 0.05)
    trajectory = draw(CONFIG, trial.policy, make_plan(SAMPLES))
    kl = OBJECTIVES["kl"](estimator=estimator).build()
    found = trial.gradient({"it": (1.0, Nothing()), "kl": (1.0, kl)}, trajectory, "steps")

    k, b = (g.flatten() for g in torch.meshgrid(
        torch.arange(STEPS - 1), torch.arange(SAMPLES), indexing="ij"
    ))  # fmt: skip
    sampler = CONFIG.build()
    state, action = sampler.restore(trajectory.trace, k, b)
    cond = {"prompt": trajectory.cond["prompt"][b]}
    with trial.weight_sets.using("reference"), torch.no_grad():
        reference = sampler.transition(trial.policy, state, k, cond)
    current = sampler.transition(trial.policy, state, k, cond)
    if estimator == "analytic":
        spread = 2 * current.deviation.square().view(-1, 1, 1)
        loss = ((current.mean - reference.mean).square() / spread).sum((1, 2)).mean()
    else:
        loss = KL[estimator](current.log_prob(action), reference.log_prob(action)).mean()
    check(found, by_hand(trial.policy, loss))


@pytest.mark.parametrize("estimator", KL)
def test_every_kl_estimator_moves_the_bound(make_policy, make_plan, draw, estimator):
    trial = Shifted(make_policy(), 0.3)
    trajectory = draw(CONFIG, trial.policy, make_plan(SAMPLES))
    kl = OBJECTIVES["kl"](estimator=estimator).build()
    found = trial.gradient({"it": (1.0, Nothing()), "kl": (1.0, kl)}, trajectory, "elbo")
    rows = trial.rows(trajectory)
    with trial.weight_sets.using("reference"), torch.no_grad():
        reference = trial.policy.elbo(*rows)
    loss = KL[estimator](trial.policy.elbo(*rows), reference).mean()
    check(found, by_hand(trial.policy, loss))


def denoised(policy, rows):
    """x0_hat, its derivatives by mean and deviation, and x0: in closed form; and the time."""
    (final, cond, corruption), network = rows, policy.network
    alpha, sigma = (v.view(-1, 1, 1) for v in policy.alpha_sigma(corruption["time"]))
    x = alpha * final["latents"] + sigma * corruption["noise"]
    centre = network.mean.item() + cond["prompt"].view(-1, 1, 1).double()
    variance = network.deviation.item() ** 2
    total = alpha**2 * variance + sigma**2
    gain = alpha * variance / total
    data = centre + gain * (x - alpha * centre)
    slope = 2 * network.deviation.item() * alpha * sigma**2 / total**2 * (x - alpha * centre)
    return data, (1 - gain * alpha, slope), final["latents"], sigma


def pulled(policy, rows) -> tuple[Tensor, ...]:
    """``2 A (x0_hat - x0) d x0_hat``, meaned: the gradient that NFT and AWM have in common.

    The error of a velocity is that of x0_hat divided by sigma^2.
    """
    data, slopes, target, sigma = denoised(policy, rows)
    advantage = (REWARDS - REWARDS.mean()).repeat(DRAWS).view(-1, 1, 1)
    scale = sigma.square() if policy.prediction == "velocity" else torch.ones_like(sigma)
    return tuple((2 * advantage * (data - target) * slope / scale).mean() for slope in slopes)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_at_the_old_weights_pulls_the_denoised_sample(
    make_policy, make_plan, draw, prediction, beta
):
    """With ``2 p - 1 = A / c``, whatever beta: ``c (2 p - 1) 2 (x0_hat - x0) d x0_hat``."""
    trial = Shifted(make_policy(prediction), 0.0)
    trajectory = draw(CONFIG, trial.policy, make_plan(SAMPLES))
    nft = OBJECTIVES["nft"](beta=beta, pull=0.0)
    found = trial.gradient({"nft": (1.0, nft.build())}, trajectory, nft.view_wanted())
    check(found, pulled(trial.policy, trial.rows(trajectory)))


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_awm_at_the_old_weights_pulls_the_denoised_sample(make_policy, make_plan, draw, prediction):
    trial = Shifted(make_policy(prediction), 0.0)
    trajectory = draw(CONFIG, trial.policy, make_plan(SAMPLES))
    awm = OBJECTIVES["awm"](epsilon=0.01)
    found = trial.gradient({"awm": (1.0, awm.build())}, trajectory, awm.view_wanted())
    check(found, pulled(trial.policy, trial.rows(trajectory)))


def test_objectives_see_how_much_time_a_step_covers(make_policy, make_plan, draw):
    trial, seen = Shifted(make_policy(), 0.0), Nothing()
    trajectory = draw(CONFIG, trial.policy, make_plan(SAMPLES))
    trial.gradient({"it": (1.0, seen)}, trajectory, "steps")
    expected = torch.tensor([0.25, 0.25, 0.25, 1.0]).double()
    torch.testing.assert_close(seen.duration, expected.unsqueeze(1).expand(STEPS, SAMPLES))
    trial.gradient({"it": (1.0, other := Nothing())}, trajectory, "elbo")
    assert other.duration is None
