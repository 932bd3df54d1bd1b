"""The interface of a sampler: how samples are drawn, and how likely what was drawn is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from genrl_core.errors import GenRLError
from genrl_core.interfaces.media import Prompt, Reading
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Tensors, Terms, Trajectory, select_rows
from genrl_core.interfaces.streams import Streams


class Sampler(ABC):
    """Draws samples from a policy and scores them again later, by the same distribution."""

    @abstractmethod
    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        """Draw the samples of ``plan``.

        Args:
            policy: what to draw from.
            cond: name -> ``[B, ...]``, one row per sample.
            plan: the samples; ``plan.streams(purpose)`` is the only source of randomness.
            grad_steps: how many last steps keep the graph, for differentiable samplers: ``final``
                then has a gradient, ``trace`` and ``terms`` never have. The draws are the same.
        """

    def reading(self, policy: Policy, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """How much of the prompts the policy reads where this sampler draws; the policy's own word.

        For a sampler that needs room beside the prompt, or that leaves a part of it unread.
        """
        return policy.reading(prompts)

    def preview(
        self, policy: Policy, cond: Tensors, plan: Plan, step: int, grad_steps: int = 1
    ) -> Tensors:
        """The finished samples that the network predicts while it takes a step (ReFL).

        Args:
            policy, cond, plan: as for ``rollout``, whose draws these are.
            step: counted from 0; the steps before it are taken, those after it are not.
            grad_steps: how many last network evaluations keep the graph, that of ``step`` first.

        Returns:
            What ``rollout`` calls ``final``: name -> ``[B, ...]``.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no finished sample on the way")

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor
    ) -> tuple["Transition", Tensors]:
        """The distributions that recorded rows were drawn from, and what was drawn.

        The core asks the distribution for ``log_prob`` of the action, and for entropy, value and
        the KL divergence from other weights where an objective needs them; so the sampler knows
        nothing of objectives and weight sets. Its numbers carry a gradient to the weights that
        ``policy`` has now.

        Args:
            policy: under the weights in question.
            trajectory: what was drawn.
            k, b: ``[R]`` int64 each, the network evaluation and the sample of every row.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no step densities")


class Transition(ABC):
    """The distribution of one step, for R rows at once; M terms per row, all in nats.

    ``sample`` and ``events`` are for a ``MarkovSampler``, which draws by them; a sampler that draws
    in its own way gives the others alone.
    """

    @abstractmethod
    def log_prob(self, action: Tensors) -> Tensor:
        """The log-density of an action, summed over each term's events: ``[R, M]``."""

    def sample(self, streams: Streams) -> Tensors:
        """Draw an action: name -> ``[R, ...]``."""
        raise NotImplementedError(f"{type(self).__name__} does not draw")

    def events(self, action: Tensors) -> Tensor:
        """How many events each term sums over; 0 means that the term does not exist: ``[R, M]``."""
        raise NotImplementedError(f"{type(self).__name__} does not count events")

    def kl(self, other: "Transition") -> Tensor:
        """KL(self || other) in closed form: ``[R, M]``."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form KL")

    def entropy(self) -> Tensor:
        """The entropy of the step: ``[R, M]``."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    def value(self) -> Tensor:
        """The predicted expected reward of the state: ``[R, M]``."""
        raise NotImplementedError(f"{type(self).__name__} predicts no value")


AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


class MarkovSampler(Sampler, Generic[AnyPolicy]):
    """A sampler whose samples are Markov chains: one transition object draws and scores.

    A subclass gives ``start``, ``transition`` and ``advance``. The rollout asks the transition to
    ``sample``, the update asks the same transition for ``log_prob``, with temperature, truncation
    and guidance inside it: sampling and training cannot drift apart. ``pack`` and ``restore`` keep
    every state and action by default; a sampler with a smaller record overrides the two together.

    States have the same names and shapes at every step, and so has every transition's M: a term
    that a step lacks has 0 events, and what a state has not filled yet is padded.

    Attributes:
        num_steps: K, the number of transitions, where it does not depend on the policy.
    """

    num_steps: int

    def steps(self, policy: AnyPolicy) -> int:  # noqa: ARG002  # for those that depend on it
        """K, the number of transitions of this policy's chains; ``num_steps`` by default."""
        return self.num_steps

    @abstractmethod
    def start(self, policy: AnyPolicy, cond: Tensors, streams: Streams) -> Tensors:
        """The first state of every sample: name -> ``[B, ...]``."""

    @abstractmethod
    def transition(self, policy: AnyPolicy, state: Tensors, k: Tensor, cond: Tensors) -> Transition:
        """The distribution of the step ``k`` (``[R]`` int64; rows may mix steps)."""

    @abstractmethod
    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        """The next state: deterministic given the action."""

    def begin(self, policy: AnyPolicy, cond: Tensors, plan: Plan, streams: Streams) -> Tensors:
        """``start``, for samplers whose first state depends on more of the plan."""
        del plan
        return self.start(policy, cond, streams)

    def finish(self, state: Tensors) -> Tensors:
        """The finished samples, from the last state."""
        return state

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:
        """What is recorded of a rollout: name -> ``[B, ...]``; ``states`` holds K + 1 states."""
        record = {f"state.{n}": torch.stack([s[n] for s in states[:-1]], 1) for n in states[0]}
        for name in actions[0]:
            record[f"action.{name}"] = torch.stack([action[name] for action in actions], 1)
        return record

    def restore(self, trace: Tensors, k: Tensor, b: Tensor) -> tuple[Tensors, Tensors]:
        """The state and the action of the rows (``k``, ``b``)."""
        state = {n[6:]: t[b, k] for n, t in trace.items() if n.startswith("state.")}
        action = {n[7:]: t[b, k] for n, t in trace.items() if n.startswith("action.")}
        return state, action

    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        return self.walk(cast(AnyPolicy, policy), cond, plan, None, grad_steps)

    def walk(
        self, policy: AnyPolicy, cond: Tensors, plan: Plan,
        given: Sequence[Tensors] | None, grad_steps: int = 0,
    ) -> Trajectory:  # fmt: skip
        """A rollout whose actions are drawn, or where ``given``, one entry per step, followed."""
        streams, num_evals = plan.streams("rollout"), self.steps(policy)
        states, actions, scores = [self.begin(policy, cond, plan, streams)], [], []
        for step in range(num_evals):
            with torch.set_grad_enabled(step >= num_evals - grad_steps):
                k = torch.full((len(plan),), step, device=plan.device)
                transition = self.transition(policy, states[-1], k, cond)
                actions.append(transition.sample(streams) if given is None else given[step])
                states.append(self.advance(states[-1], actions[-1], k))
                scores.append(_recorded(policy, transition, actions[-1]))
            self._check_shapes(step, states, scores)
        events = torch.stack([score["events"] for score in scores]).transpose(1, 2).flatten(0, 1)
        per_eval = len(events) // num_evals
        numbers = {
            name: torch.stack([score[name] for score in scores]).transpose(1, 2).flatten(0, 1)
            for name in scores[0]
            if name != "events"
        }
        steps = torch.arange(num_evals, device=plan.device).repeat_interleave(per_eval)
        terms = Terms(
            events=events, step=steps.unsqueeze(1).expand_as(events), mask=events > 0,
            num_evals=num_evals, **numbers,
        )  # fmt: skip
        return Trajectory(cond, self.pack(states, actions), self.finish(states[-1]), terms)

    def _check_shapes(self, step: int, states: list[Tensors], scores: list[Tensors]) -> None:
        """Refuse a step whose numbers cannot stand beside those of the first.

        Raises:
            GenRLError: it has other terms, or leads to a state of other names or shapes.
        """
        for what, first, last in (
            ("the numbers of a step", scores[0], scores[-1]),
            ("the states", states[0], states[-1]),
        ):
            before, after = ({n: tuple(t.shape) for n, t in each.items()} for each in (first, last))
            if before != after:
                raise GenRLError(
                    f"{type(self).__name__}: {what} change their shapes at step {step}, from "
                    f"{before} to {after}. Every step must have the same number of terms (0 events "
                    "where one does not exist) and states of the same names and shapes (padded)"
                )

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor
    ) -> tuple[Transition, Tensors]:
        state, action = self.restore(trajectory.trace, k, b)
        cond = select_rows(trajectory.cond, b)
        return self.transition(cast(AnyPolicy, policy), state, k, cond), action


def _recorded(policy: Policy, transition: Transition, action: Tensors) -> Tensors:
    """What the terms keep of a step, each ``[B, M]``."""
    score = {"log_probs": transition.log_prob(action), "events": transition.events(action)}
    if policy.predicts_value:
        score["value"] = transition.value()
    return {name: value.detach() for name, value in score.items()}
