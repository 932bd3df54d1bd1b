"""Samples of a plan, and what rewards say of them: prompts in, media and numbers out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Trajectory, select_rows
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.reward_values import ask, checked_values
from genrl_core.interfaces.sampler import Sampler


def generate(
    policy: Policy, sampler: Sampler, plan: Plan, rollout_batch_size: int,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Trajectory, Media]:  # fmt: skip
    """The trajectories and media of a plan's samples, ``rollout_batch_size`` at a time.

    ``report`` is told after each part how many samples there are by then.
    """
    trajectories, media = [], []
    with torch.no_grad():
        for start in range(0, len(plan), rollout_batch_size):
            part = plan.select(torch.arange(len(plan))[start : start + rollout_batch_size])
            used, index = torch.unique(part.group, return_inverse=True)
            encoded = policy.encode([plan.prompts[g] for g in used.tolist()])
            cond = select_rows(encoded, index)
            with policy.prefill(cond):
                trajectory = sampler.rollout(policy, cond, part)
            trajectories.append(trajectory)
            media.append(policy.decode(trajectory.final))
            report(start + len(part))
    return Trajectory.concat(trajectories), Media.concat(media)


def score_rewards(label: str, reward: Reward, media: Media, prompts: Sequence[Prompt]) -> Tensor:
    """What one reward says, checked: ``[b]`` float64, NaN where it gave None.

    Raises:
        RewardError: it raised, or gave something else than a number or None per sample.
    """
    what = f"reward {label!r}"
    given = checked_values(what, ask(what, lambda: reward(media, prompts)), prompts)
    values = [float("nan") if value is None else value for value in given]
    absent = torch.tensor([value is None for value in given], dtype=torch.bool)
    found = torch.tensor(values, dtype=torch.float64)
    # Infinity marks "not finite" from here on, NaN marks "no reward here".
    return torch.where(~absent & ~found.isfinite(), torch.inf, found)
