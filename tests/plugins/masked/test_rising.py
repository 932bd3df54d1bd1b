"""MaskGRPO's masks: their share rises with the update, the same for every sample."""

import pytest
import torch

from genrl_core import Plan, Prompt
from genrl_masked import ElboConfig, remasked


def masks(update: int, updates: int, num_tokens: int = 1024) -> torch.Tensor:
    plan = Plan(3, 0, 0, (Prompt("a", "a"),), torch.zeros(4, dtype=torch.long), torch.arange(4))
    bound = ElboConfig(masking="rising", granularity="token")
    streams = plan.streams(f"bound/{update}").joined(plan.streams("elbo"))
    return remasked(bound, streams, 1, num_tokens, update, updates)["masked"]


@pytest.mark.parametrize(("updates", "expected"), [
    (1, [0.999]), (4, [0.85, 0.9, 0.95, 0.999]), (2, [0.9, 0.999]),
])  # fmt: skip
def test_the_share_is_the_papers(updates: int, expected: list[float]) -> None:
    """The values of ``min(0.8 + 0.2 (i + 1) / mu, 0.999)``, written out by hand."""
    for update, share in enumerate(expected):
        counts = masks(update, updates).sum(-1)
        assert counts.unique().numel() == 1
        assert abs(int(counts[0, 0]) - share * 1024) <= 1


def test_the_sets_differ_between_samples_and_updates() -> None:
    first, second = masks(0, 4), masks(1, 4)
    assert not torch.equal(first[0, 0], first[0, 1])
    assert not (first <= second).all()
