"""What plugin authors test with: conformance checks, and the toys with exact expectations."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import Objective
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Trajectory
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.settings import AdvantageConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing.enumerable import (
    ToyCanvas,
    ToyCanvasSampler,
    ToyGaussian,
    ToyGaussianSampler,
    ToyReward,
    ToySequence,
    ToySequenceSampler,
)
from genrl_core.testing.trajectories import every_trajectory
from genrl_core.testing.update import learner_for, rollout_of


def toys() -> list[tuple[Policy, Sampler]]:
    """A fresh pair of every toy; all of them predict values."""
    return [
        (ToySequence(valued=True), ToySequenceSampler()),
        (ToyCanvas(valued=True), ToyCanvasSampler()),
        (ToyGaussian(), ToyGaussianSampler()),
    ]


def expected_update(
    policy: Policy, sampler: Sampler, objectives: Mapping[str, tuple[float, Objective]], *,
    group_size: int = 1, advantage: AdvantageConfig | None = None,
    weight_sets: WeightSets | None = None, drawn: tuple[Trajectory, Tensor] | None = None,
    nodes: int = 12, views: str | Mapping[str, str] = "steps",
) -> dict[str, Tensor]:  # fmt: skip
    """The exact expectation of an objective's gradient over all groups of a toy's samples.

    Every group of ``group_size`` trajectories stands in one batch, weighted by its probability, and
    goes through the same learner as a training run, on every view: in the views elbo and denoising
    every trajectory gets one corruption, drawn at random. Use a reduction of the kind "mean over
    samples"; an objective that does not reduce by ``batch.reduce``, or that reads ``batch.weight``
    elsewhere, is not weighted rightly. ``drawn`` replaces the trajectories and probabilities by
    those of other weights; ``views`` is the view of all objectives, or label -> view.

    Raises:
        ValueError: ``advantage`` compares the samples of a group, and ``group_size`` is 1.
    """
    advantage = advantage or AdvantageConfig()
    if group_size < 2 and (grouped := advantage.within_groups):
        raise ValueError(
            f"advantages by {' and '.join(grouped.values())} compare the samples of a group, and "
            "group_size is 1: take group_size=2, or "
            "advantage=AdvantageConfig(baseline='none', scale='none')"
        )
    trajectory, probability = drawn or every_trajectory(policy, nodes)
    count = len(probability)
    reward = torch.tensor(ToyReward()(policy.decode(trajectory.final), []), dtype=torch.float64)
    members = torch.tensor(list(itertools.product(range(count), repeat=group_size)))
    chance = probability[members].prod(1)
    column = members.flatten()
    group = torch.arange(len(members)).repeat_interleave(group_size)
    weight = (chance * len(members)).repeat_interleave(group_size)
    rollout = rollout_of(trajectory.select(column), reward[column], group, weight)
    learner = learner_for(
        policy, sampler, objectives, weight_sets, advantage, micro_batch_size=4 * len(column),
        drift_tolerance=1e6, chance=weight, views=views,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in policy.network.named_parameters()}
    learner.learn(replace(rollout, on_policy=drawn is None))
    moved = {name: p.detach().clone() for name, p in policy.network.named_parameters()}
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            parameter.copy_(before[name])
    return {name: before[name] - moved[name] for name in before}


@dataclass(frozen=True)
class Conformance:
    """What ``check_sampler`` measured: the largest deviations, in nats.

    Attributes:
        drift: scores under the drawing weights against the recorded ones.
        chunks: scores of shuffled rows in small chunks against those of one forward.
        batches: log-densities of samples drawn one at a time against those drawn together.
    """

    drift: float
    chunks: float
    batches: float


def check_sampler(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], *, samples: int = 4,
    tolerance: float = 1e-4,
) -> Conformance:  # fmt: skip
    """Whether a sampler scores what it drew, however the rows are batched.

    Raises:
        AssertionError: naming the first property that does not hold.
    """
    state = torch.random.get_rng_state()
    plan = plan_of(7, 0, 0, prompts, samples)
    whole, media = generate(policy, sampler, plan, len(plan))
    assert torch.equal(state, torch.random.get_rng_state()), "the rollout drew global randomness"
    assert len(media) == len(plan), f"decode gave {len(media)} media for {len(plan)} samples"
    terms = whole.terms
    assert terms.mask.any(), "the sampler recorded no term"
    assert not (terms.mask & (terms.events < 1)).any(), "a term inside the mask has no event"
    single, _ = generate(policy, sampler, plan, 1)
    batches = _gap(single.terms.log_probs, terms.log_probs, terms.mask)
    per_eval = len(terms.mask) // terms.num_evals
    k, b = (mask.flatten() for mask in _grid(terms.num_evals, len(plan)))

    def scores(order: Tensor, size: int) -> Tensor:
        found = torch.zeros_like(terms.log_probs)
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            densities, action = sampler.densities(policy, whole, k[rows], b[rows])
            scored = densities.log_prob(action)
            place = k[rows].unsqueeze(1) * per_eval + torch.arange(per_eval)
            found[place, b[rows].unsqueeze(1)] = scored.detach()
        return found

    again = scores(torch.arange(len(k)), len(k))
    shuffled = scores(torch.arange(len(k)).flip(0), 3)
    drift = _gap(again, terms.log_probs, terms.mask)
    chunks = _gap(shuffled, again, terms.mask)
    found = Conformance(drift, chunks, batches)
    assert drift <= tolerance, f"scores differ from the recorded ones by {drift:.3g} nats"
    assert chunks <= tolerance, f"scores depend on how rows are batched, by {chunks:.3g} nats"
    assert batches <= tolerance, f"draws depend on the batch, by {batches:.3g} nats"
    return found


def _grid(num_evals: int, samples: int) -> tuple[Tensor, Tensor]:
    k, b = torch.meshgrid(torch.arange(num_evals), torch.arange(samples), indexing="ij")
    return k, b


def _gap(first: Tensor, second: Tensor, mask: Tensor) -> float:
    return float((first - second)[mask].abs().max())
