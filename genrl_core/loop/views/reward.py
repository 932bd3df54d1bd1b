"""The view ``reward``: the reward itself, differentiable through the steps behind the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genrl_core.errors import GenRLError, RewardError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.objective import SamplerBackprop
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Tensors, Trajectory, select_rows
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.reward_values import ask
from genrl_core.interfaces.sampler import Sampler
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.combine import Share, combine, shares_of
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.views.common import Context, Prepared, View, Wanted, make_batch

END = -1
"""In place of a step: the sample ends where its sampler ends."""


@dataclass(frozen=True)
class RewardView(View):
    """The combined reward of samples that are drawn again: one row per sample.

    A sample's random stream depends on nothing but its place in the plan, so drawing it again under
    the same weights gives the same sample, and this time the last ``steps`` of its steps keep their
    graph. A chunk holds the graph of its own rows: ``train.micro_batch_size`` samples of ``steps``
    network evaluations each. Conditions are those of the rollout, without gradient.

    Attributes:
        trajectory: this rank's samples, as drawn.
        parts: the plans that they come from, in their order.
        rewards: label -> (weight, reward); all of them have ``gradient``.
        given: label -> ``[b]`` bool, whether that reward applies to the sample.
        steps: ``[b]`` int64, how many of the last steps carry the gradient.
        stop: ``[b]`` int64, the step whose prediction is judged, or ``END``.
        again: whether the samples are drawn again; False judges those of the trajectory, in float.
        shares: label -> how the reward counts in the sum; silent: by its weight. What the samples
            are compared with is what was recorded of them.
    """

    name = "reward"
    capability = Capability.DIFFERENTIABLE
    compared = (
        "rewards",
        (
            "The sampler does not repeat what it drew: check that every random choice comes from "
            "plan.streams, and that rollout draws the same with grad_steps"
        ),
    )

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    parts: tuple[Plan, ...]
    rewards: Mapping[str, tuple[float, Reward]]
    given: Mapping[str, Tensor]
    steps: Tensor
    stop: Tensor
    again: bool = True
    shares: Mapping[str, Share] = field(default_factory=dict)

    num_evals: int = 1

    @classmethod
    def prepare(
        cls, wanted: Wanted, rollout: Rollout, advantage: Tensor, update: int, context: Context
    ) -> Prepared:
        """The recorded rewards are those of the recorded samples, of pixels that are not rounded.

        Where ``SamplerBackprop.stop`` ends samples earlier, nothing of them is recorded, and one
        more pass without gradient computes their rewards.
        """
        steps, stop = backprop_steps(wanted.backprop, rollout.streams(f"replay/{update}"))
        rewards, where = context.rewards, rollout.sample_index
        known = {n: rollout.rewards.get(n, (w, rollout.reward)) for n, (w, _) in rewards.items()}
        applies = {n: ~each.isnan() for n, (_, each) in rollout.rewards.items()}
        shares = shares_of(context.advantage, known, rollout.valid, rollout.group)
        view = cls(
            context.policy, context.sampler, rollout.trajectory, rollout.parts, rewards,
            {name: applies.get(name, rollout.valid)[where] for name in rewards}, steps, stop,
            shares={name: share.at(where) for name, share in shares.items()},
        )  # fmt: skip
        one = torch.ones(1, len(rollout.reward), dtype=context.dtype)
        batch = make_batch(cls.name, rollout, advantage, one)
        if update or not rollout.on_policy:
            return Prepared(view, batch, None)
        drawn = view if wanted.backprop.stop else replace(view, again=False)
        return Prepared(view, batch, context.evaluate(drawn, batch, rollout))

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:  # noqa: ARG002  # one call per sample
        """``differentiable_reward`` ``[R, 1]``; rows that end alike are drawn together."""
        sizes = torch.tensor([len(part) for part in self.parts])
        part = torch.bucketize(b, sizes.cumsum(0), right=True)
        kinds, which = torch.unique(
            torch.stack([part, self.steps[b], self.stop[b]], 1), dim=0, return_inverse=True
        )
        found, order = [], []
        for kind, (place, steps, stop) in enumerate(kinds.tolist()):
            inside = (which == kind).nonzero().flatten()
            plan = self.parts[place].select(b[inside] - int(sizes[:place].sum()))
            pixels = self.policy.decode_pixels(self._final(plan, b[inside], steps, stop))
            _keeps_graph(pixels, type(self.sampler).__name__, type(self.policy).__name__)
            found.append(self._judged(pixels, plan.sample_prompts(), b[inside]))
            order.append(inside)
        places = torch.cat(order).argsort().to(found[0].device)
        return {"differentiable_reward": torch.cat(found)[places].unsqueeze(1)}

    def _final(self, plan: Plan, b: Tensor, steps: int, stop: int) -> Tensors:
        if not self.again:
            return select_rows(self.trajectory.final, b)
        cond = select_rows(self.trajectory.cond, b)
        # A sampler switches the gradient on by itself: a pass without gradient asks for 0 steps.
        steps = steps if torch.is_grad_enabled() else 0
        if stop == END:
            return self.sampler.rollout(self.policy, cond, plan, steps).final
        return self.sampler.preview(self.policy, cond, plan, stop, steps)

    def _judged(self, pixels: Tensor, prompts: Sequence[Prompt], b: Tensor) -> Tensor:
        """The rewards that apply, combined: ``[R]`` float64."""
        values: Tensors = {}
        shares: dict[str, Share] = {}
        absent = torch.full((len(b),), torch.nan, dtype=torch.float64, device=pixels.device)
        for label, (weight, reward) in self.rewards.items():
            shares[label] = self.shares.get(label, Share(weight)).at(b).to(pixels.device)
            rows, values[label] = self.given[label][b].nonzero().flatten(), absent
            if len(rows):
                asked = [prompts[row] for row in rows.tolist()]
                rows = rows.to(pixels.device)
                value = reward_gradient(label, reward, pixels[rows], asked)
                values[label] = absent.index_put((rows,), value.to(absent))
        return combine(values, shares)

    def fill_values(self, batch: Batch) -> Tensors:
        return {"differentiable_reward": torch.zeros_like(batch.log_probs)}

    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        return replace(batch, differentiable_reward=values["differentiable_reward"])


def reward_gradient(
    label: str, reward: Reward, pixels: Tensor, prompts: Sequence[Prompt]
) -> Tensor:
    """What one reward says, differentiable and checked: ``[R]``.

    Raises:
        RewardError: it has no gradient, raised, or gave something else than one number per sample.
    """
    what = f"the gradient of reward {label!r}"
    value: object = ask(what, lambda: reward.gradient(pixels, prompts))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise RewardError(f"{what} is a {kind}: expected a tensor of floats, one per sample")
    if value.shape != (len(prompts),):
        raise RewardError(
            f"{what} has the shape {tuple(value.shape)}: expected "
            f"[{len(prompts)}], one number per sample"
        )
    if pixels.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
        raise RewardError(
            f"{what} does not depend on the pixels: make it of torch "
            "operations on them, without detach, item or numpy"
        )
    return value


def backprop_steps(backprop: SamplerBackprop, streams: Streams) -> tuple[Tensor, Tensor]:
    """``steps`` and ``stop`` of every sample, ``[b]`` int64 each, from its own random stream."""
    share = streams.uniform(2).double().cpu()
    steps = torch.full((len(share),), backprop.steps)
    if backprop.random_steps:
        steps = 1 + (share[:, 0] * backprop.steps).long()
    if backprop.stop is None:
        return steps, torch.full_like(steps, END)
    first, end = backprop.stop
    return steps, first + (share[:, 1] * (end - first)).long()


def _keeps_graph(pixels: Tensor, sampler: str, policy: str) -> None:
    if torch.is_grad_enabled() and not pixels.requires_grad:
        raise GenRLError(
            f"the pixels of {policy} carry no gradient after {sampler} has drawn them again: the "
            "last grad_steps of rollout and preview must run with a graph, and decode_pixels must "
            "be made of torch operations on what they return"
        )
