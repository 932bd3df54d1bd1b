"""What the updates of an iteration start from: objectives by view, and each view's batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genrl_core.errors import GenRLError, PluginError
from genrl_core.interfaces.batch import Batch
from genrl_core.interfaces.configs import ObjectiveConfig
from genrl_core.interfaces.objective import Objective, SamplerBackprop
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Others, Tensors
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop import gradient
from genrl_core.loop.advantage import shares_of
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.reward_view import RewardView, replayed
from genrl_core.loop.rollout import Rollout
from genrl_core.loop.settings import AdvantageConfig, TrainConfig
from genrl_core.loop.steps import choose_calls
from genrl_core.loop.views import DenoisingView, ElboView, StepsView
from genrl_core.loop.weights import WeightSets

SCORED = frozenset({"kl_reference", "kl_behavior", "entropy", "value"})
_OLDER = frozenset({"old_log_probs", "reference"})
_GIVEN = {
    "steps": _OLDER | SCORED, "elbo": _OLDER, "denoising": frozenset({"error_weights"}),
}  # fmt: skip
"""By view: what an objective may name in ``needs``."""
_PURPOSES = {"elbo": "corrupt/bound", "denoising": "corrupt/matching"}
"""By view: the random streams of its corruptions, under the names of older runs."""


@dataclass(frozen=True)
class Side:
    """The objectives that share a view: one leaf, one summed loss, one gradient."""

    view: str
    members: tuple[tuple[str, float, Objective], ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(objective.needs for _, _, objective in self.members))

    @property
    def separable(self) -> bool:
        return all(objective.separable for _, _, objective in self.members)

    @property
    def mixtures(self) -> tuple[Mapping[str, float], ...]:
        return tuple(mix for _, _, objective in self.members for mix in objective.mixtures)

    @property
    def backprop(self) -> SamplerBackprop:
        """How the samples of the view ``reward`` are drawn again: alike for all members.

        Raises:
            GenRLError: an objective of that view does not say how.
        """
        label, _, objective = self.members[0]
        if objective.backprop is None:
            raise GenRLError(
                f"objective {label} reads the view reward and has no replay: give the class an "
                "attribute replay = SamplerBackprop(...), which says what is drawn again with "
                "gradient"
            )
        return objective.backprop

    def loss(self, batch: Batch) -> tuple[Tensor, Tensors]:
        """The weighted sum of the members' losses, and their metrics as ``label/name``."""
        total: Tensor | None = None
        metrics: Tensors = {}
        seen = 0
        for label, weight, objective in self.members:
            own = batch
            if objective.mixtures:
                mine = slice(seen, seen + len(objective.mixtures))
                weights = batch.error_weights[mine]
                own = replace(batch, errors=batch.errors[mine], error_weights=weights)
                seen = mine.stop
            value, found = objective.loss(own)
            total = weight * value if total is None else total + weight * value
            metrics |= {f"{label}/{name}": metric.detach() for name, metric in found.items()}
        assert total is not None
        return total, metrics


def sides_of(members: Iterable[tuple[str, str, float, Objective]]) -> list[Side]:
    """(view, label, weight, objective) by view, in order; those that replay differently apart.

    Raises:
        GenRLError: an objective needs a field that its view does not give.
    """
    found: dict[tuple[str, SamplerBackprop | None], list[tuple[str, float, Objective]]] = {}
    for view, label, weight, objective in members:
        given = _GIVEN.get(view, frozenset())
        if missing := sorted(objective.needs - given):
            raise GenRLError(
                f"objective {label} needs {', '.join(missing)}, and the view {view} gives "
                f"{', '.join(sorted(given)) or 'no optional field'}: correct its attribute needs"
            )
        found.setdefault((view, objective.backprop), []).append((label, weight, objective))
    return [Side(view, tuple(together)) for (view, _), together in found.items()]


@dataclass(frozen=True)
class Prepared:
    """One side at one update: how to evaluate it, and the batch without its current numbers.

    Attributes:
        recorded: numbers of the view under the weights before the first update, if there are any.
    """

    view: gradient.View
    batch: Batch
    recorded: Tensors | None


@dataclass(frozen=True)
class Preparer:
    """Makes the views of a rollout; whatever older weights say of it is evaluated here."""

    policy: Policy
    sampler: Sampler
    weight_sets: WeightSets
    train: TrainConfig
    runtime: Runtime
    rewards: Mapping[str, tuple[float, Reward]]
    advantage: AdvantageConfig

    @property
    def others(self) -> Others:
        """What activates the weight slots that a KL or a mixture is taken with."""
        names = [name for name in ("reference", "lagging") if name in self.weight_sets]
        return {name: partial(self.weight_sets.using, name) for name in names}

    def __call__(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        """What ``side`` needs at an update; ``advantage`` is ``[B]``."""
        if side.view == "steps":
            return self._steps(side, rollout, advantage)
        if side.view in ("elbo", "denoising"):
            return self._draws(side, rollout, advantage, update)
        return self._reward(side, rollout, advantage, update)

    def _steps(self, side: Side, rollout: Rollout, advantage: Tensor) -> Prepared:
        terms, total = rollout.terms, len(rollout.reward)
        chosen, weight = choose_calls(self.train.steps, terms.num_evals, rollout.streams("steps"))
        per_call = len(terms.mask) // max(terms.num_evals, 1)
        spread = partial(torch.repeat_interleave, repeats=per_call, dim=0)
        gather = partial(self.runtime.gather, sample_index=rollout.sample_index, total=total)
        selected = terms.mask & spread(gather(chosen.cpu()))
        weight = spread(gather(weight.cpu())).to(terms.log_probs)
        ones = torch.ones_like(terms.log_probs)
        batch = _batch(
            rollout, advantage, ones, log_probs=terms.log_probs, old_log_probs=terms.log_probs,
            events=terms.events, step=terms.step, mask=selected, view=side.view,
            denominator_mask=terms.mask if self.train.steps.importance else selected,
            weight=weight if terms.weight is None else weight * terms.weight,
            scale=ones if terms.scale is None else terms.scale,
            duration=ones if terms.duration is None else terms.duration, old_value=terms.value,
        )  # fmt: skip
        want = frozenset({"log_probs"}) | (side.needs & SCORED)
        view = StepsView(
            self.policy,
            self.sampler,
            rollout.trajectory,
            want,
            self.others,
            terms.num_evals,
            per_call,
        )
        if "reference" in side.needs:
            plain = replace(view, want=frozenset({"log_probs"}), others={})
            batch = replace(batch, reference=self._under("reference", plain, batch, rollout))
        recorded = {"log_probs": terms.log_probs}
        if terms.value is not None and "value" in want:
            recorded["value"] = terms.value
        return Prepared(view, batch, recorded)

    def _draws(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        draws, trajectory = self.train.draws, rollout.trajectory
        purpose = _PURPOSES[side.view]
        streams = rollout.streams(f"{purpose}/{update}")
        corruption = self.policy.corrupt(
            trajectory.final, streams.joined(rollout.streams(purpose)),
            draws, update, self.train.num_updates,
        )  # fmt: skip
        gather = partial(
            self.runtime.gather, sample_index=rollout.sample_index, total=len(rollout.reward)
        )
        own = corruption.get("weight", torch.ones(draws, len(rollout.sample_index))).cpu()
        weights = gather(own.to(_dtype(self.policy)))
        events = torch.ones(draws, 1, len(rollout.reward), dtype=torch.int64)
        view: ElboView | DenoisingView
        if side.view == "elbo":
            if (given := corruption.get("events")) is not None:
                events = gather(given.transpose(1, 2).cpu())
            view = ElboView(self.policy, trajectory, corruption, draws, events.shape[1])
        else:
            view = DenoisingView(
                self.policy, trajectory, corruption, draws, side.mixtures, self.others,
                weighted="error_weights" in side.needs,
            )  # fmt: skip
        combined = side.view == "elbo" and self.policy.combine_draws
        events, weight, step = _draw_terms(events, weights, combined)
        ones, mask = torch.ones_like(weight), events > 0
        batch = _batch(
            rollout, advantage, ones, events=events, mask=mask, denominator_mask=mask,
            weight=weight, view=side.view,
            step=step, draw_weight=weights,
        )  # fmt: skip
        recorded = None
        if "old_log_probs" in side.needs:
            recorded = self._evaluate(view, batch, rollout)
            old = view.insert(batch, recorded).log_probs
            batch = replace(batch, old_log_probs=old, log_probs=old)
        if "reference" in side.needs:
            batch = replace(batch, reference=self._under("reference", view, batch, rollout))
        return Prepared(view, batch, recorded)

    def _reward(self, side: Side, rollout: Rollout, advantage: Tensor, update: int) -> Prepared:
        """The recorded rewards are those of the finished samples in float, without rounded pixels.

        Of samples that end earlier they come from a pass without gradient.
        """
        steps, stop = replayed(side.backprop, rollout.streams(f"replay/{update}"))
        applies = {name: ~each.isnan() for name, (_, each) in rollout.rewards.items()}
        given = {n: applies.get(n, rollout.valid)[rollout.sample_index] for n in self.rewards}
        known = {
            n: rollout.rewards.get(n, (w, rollout.reward)) for n, (w, _) in self.rewards.items()
        }
        shares = shares_of(self.advantage, known, rollout.valid, rollout.group)
        view = RewardView(
            self.policy, self.sampler, rollout.trajectory, rollout.parts, self.rewards, given,
            steps, stop, shares={n: share.at(rollout.sample_index) for n, share in shares.items()},
        )  # fmt: skip
        one = torch.ones(1, len(rollout.reward), dtype=_dtype(self.policy))
        batch = _batch(rollout, advantage, one, view=side.view)
        if update or not rollout.on_policy:
            return Prepared(view, batch, None)
        drawn = view if side.backprop.stop else replace(view, again=False)
        return Prepared(view, batch, self._evaluate(drawn, batch, rollout))

    def _evaluate(self, view: gradient.View, batch: Batch, rollout: Rollout) -> Tensors:
        rows = self.train.micro_batch_size
        return gradient.evaluate(view, batch, rollout.sample_index, self.runtime, rows)

    def _under(self, slot: str, view: gradient.View, batch: Batch, rollout: Rollout) -> Tensor:
        """The numbers of the view under another weight slot."""
        with self.weight_sets.using(slot):
            return view.insert(batch, self._evaluate(view, batch, rollout)).log_probs


def _batch(rollout: Rollout, advantage: Tensor, ones: Tensor, **own: Any) -> Batch:
    """A batch of terms like ``ones`` (``[T, B]``): every number but ``own`` is 0, or counts 1."""
    zero = torch.zeros_like(ones)
    fields: dict[str, Any] = {
        "log_probs": zero, "events": ones.long(), "step": zero.long(), "mask": ones.bool(),
        "denominator_mask": ones.bool(), "weight": ones, "scale": ones,
        "advantage": (ones * advantage).to(ones), "reward": rollout.reward.to(ones),
        "group": rollout.group, "valid": rollout.valid,
    }  # fmt: skip
    return Batch(**fields | own)


def _dtype(policy: Policy) -> torch.dtype:
    """float32 or better, whatever the network's dtype."""
    parameter = next(policy.network.parameters(), None)
    double = parameter is not None and parameter.dtype == torch.float64
    return torch.float64 if double else torch.float32


def _draw_terms(events: Tensor, weight: Tensor, combined: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The events, weight and step (the draw) of all terms, ``[T, B]`` each.

    Args:
        events: ``[D, M, B]`` of every draw's terms.
        weight: ``[D, B]`` of the draws.
        combined: whether the draws are summed with their weights, so that T is M and a term exists
            where any draw has it; or else T is ``D * M``.
    """
    if combined:
        found = events.amax(0)
        return found, torch.ones_like(found, dtype=weight.dtype), torch.zeros_like(found)
    step = torch.arange(len(events)).view(-1, 1, 1).expand(events.shape)
    spread = weight.unsqueeze(1).expand(events.shape)
    return events.flatten(0, 1), spread.flatten(0, 1), step.flatten(0, 1)


def build_objective(label: str, config: ObjectiveConfig) -> Objective:
    """The objective of a config, both of which say what it reads and who draws for it.

    Raises:
        PluginError: they say different things, so that one of them would be disregarded.
    """
    objective = config.build()
    for attribute, method, wanted in (
        ("view", "view_wanted", config.view_wanted()),
        ("draw_with", "draws_with", config.draws_with()),
    ):
        said = getattr(objective, attribute)
        if said != wanted:
            raise PluginError(
                f"objective {label}: {type(config).__name__}.{method}() says {wanted!r}, and the "
                f"{type(objective).__name__} that it builds has {attribute} {said!r}: a recipe is "
                "checked by the one and trained by the other; let both say the same"
            )
    return objective
