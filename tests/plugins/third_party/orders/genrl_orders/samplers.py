"""Two samplers of one distribution: a Markov chain of picks, and one sort of noisy scores."""

import torch
from torch import Tensor

from genrl_core import (
    MarkovSampler,
    Plan,
    Policy,
    Sampler,
    Streams,
    Tensors,
    Terms,
    Trajectory,
    Transition,
    select_rows,
)

from . import PickConfig, SortConfig
from .policy import OrderPolicy, pick_log_probs


class Pick(Transition):
    """One of the items that are ``left`` ``[R, N]`` bool: one term of one event."""

    def __init__(self, scores: Tensor, left: Tensor) -> None:
        self.log_p = scores.masked_fill(~left, -torch.inf).log_softmax(1)
        self.left = left

    def sample(self, streams: Streams) -> Tensors:
        return {"item": (self.log_p + streams.gumbel(self.left.shape[1])).argmax(1)}

    def log_prob(self, action: Tensors) -> Tensor:
        return self.log_p.gather(1, action["item"].unsqueeze(1))

    def events(self, action: Tensors) -> Tensor:
        return torch.ones_like(action["item"]).unsqueeze(1)

    def entropy(self) -> Tensor:
        return -self._mean(self.log_p)

    def kl(self, other: Transition) -> Tensor:
        assert isinstance(other, Pick)
        return self._mean(self.log_p - other.log_p)

    def _mean(self, numbers: Tensor) -> Tensor:
        """The mean over the items that are left; the others' numbers are not finite."""
        return (self.log_p.exp() * numbers.masked_fill(~self.left, 0)).sum(1, keepdim=True)


class PickSampler(MarkovSampler[OrderPolicy]):
    """Picks item after item; the record is the finished order, ``[B, N]``."""

    def __init__(self, config: PickConfig) -> None:
        self.temperature = config.temperature

    def steps(self, policy: OrderPolicy) -> int:
        return policy.num_items

    def start(self, policy: OrderPolicy, cond: Tensors, streams: Streams) -> Tensors:
        order = torch.zeros(len(streams), policy.num_items, dtype=torch.int64)
        order = order.to(streams.device)
        return {"order": order, "left": torch.ones_like(order, dtype=torch.bool)}

    def transition(self, policy: OrderPolicy, state: Tensors, k: Tensor, cond: Tensors) -> Pick:
        return Pick(policy.scores(cond) / self.temperature, state["left"])

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        item, place = action["item"].unsqueeze(1), k.unsqueeze(1)
        order = state["order"].scatter(1, place, item)
        return {"order": order, "left": state["left"].scatter(1, item, False)}

    def finish(self, state: Tensors) -> Tensors:
        return {"order": state["order"]}

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:
        return {"order": states[-1]["order"]}

    def restore(self, trace: Tensors, k: Tensor, b: Tensor) -> tuple[Tensors, Tensors]:
        order, place = trace["order"][b], k.unsqueeze(1)
        later = torch.arange(order.shape[1], device=k.device) >= place
        left = torch.zeros_like(later).scatter(1, order, later)
        return {"left": left}, {"item": order.gather(1, place).squeeze(1)}


class AllPicks(Transition):
    """All picks of an order: N terms of one event each."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def log_prob(self, action: Tensors) -> Tensor:
        return pick_log_probs(self.scores, action["order"])


class SortSampler(Sampler):
    """The descending order of ``score / temperature + Gumbel noise``: K = 1, M = N."""

    def __init__(self, config: SortConfig) -> None:
        self.temperature = config.temperature

    def rollout(
        self, policy: OrderPolicy, cond: Tensors, plan: Plan, grad_steps: int = 0
    ) -> Trajectory:
        with torch.no_grad():
            picks = self._picks(policy, cond)
            noise = plan.streams("rollout").gumbel(policy.num_items)
            order = (picks.scores + noise).argsort(1, descending=True)
            log_probs = picks.log_prob({"order": order}).T
        ones = torch.ones_like(log_probs, dtype=torch.int64)
        terms = Terms(log_probs, ones, step=ones.cumsum(0) - 1, mask=ones.bool(), num_evals=1)
        return Trajectory(cond, trace={"order": order}, final={"order": order}, terms=terms)

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor
    ) -> tuple[Transition, Tensors]:
        picks = self._picks(policy, select_rows(trajectory.cond, b))
        return picks, {"order": trajectory.trace["order"][b]}

    def _picks(self, policy: OrderPolicy, cond: Tensors) -> AllPicks:
        return AllPicks(policy.scores(cond) / self.temperature)
