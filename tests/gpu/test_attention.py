"""Attention on an accelerator: every backend against the formula in float64, and what auto takes.

pytest -m gpu tests/gpu
"""

import importlib.util
import itertools

import pytest
import torch

from genrl_core import RecipeError
from genrl_models import attend, attention_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
without_xformers = pytest.mark.skipif(
    importlib.util.find_spec("xformers") is None, reason="the extra [xformers] is not installed"
)
HALVES = (torch.bfloat16, torch.float16)
DEVICE = torch.device("cuda")


def formula(query, key, value, mask, causal) -> torch.Tensor:
    query, key, value = (part.double() for part in (query, key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def agree(requested: str, dtype: torch.dtype, pattern: str, length: int) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, length, 64, device=DEVICE, generator=generator).to(dtype)
        for _ in range(3)
    )
    mask = None
    if pattern == "mask":
        mask = torch.rand(length, length, device=DEVICE, generator=generator) < 0.5
        mask |= torch.eye(length, dtype=torch.bool, device=DEVICE)
    fields = {"mask": mask, "causal": pattern == "causal"}
    found = attend(query, key, value, requested=requested, **fields)
    assert found.dtype == dtype
    gap = (found.double() - formula(query, key, value, **fields)).abs().max()
    assert gap < 8 * torch.finfo(dtype).eps if dtype in HALVES else gap < 5e-3


@pytest.mark.parametrize("length", [64, 77])
@pytest.mark.parametrize(
    ("requested", "dtype", "pattern"),
    [
        *itertools.product(("auto", "sdpa"), (*HALVES, torch.float32), ("full", "causal", "mask")),
        *itertools.product(("flash",), HALVES, ("full", "causal")),
    ],
)
def test_backends_of_torch(requested, dtype, pattern, length):
    agree(requested, dtype, pattern, length)


@without_xformers
@pytest.mark.parametrize("length", [64, 77])
@pytest.mark.parametrize("pattern", ["full", "causal", "mask"])
@pytest.mark.parametrize("dtype", HALVES)
def test_xformers(dtype, pattern, length):
    agree("xformers", dtype, pattern, length)


@without_xformers
def test_auto_takes_xformers():
    assert attention_backend("auto", torch.bfloat16) == "xformers"


@pytest.mark.parametrize(
    "fields", [{"dtype": torch.float32}, {"dtype": torch.bfloat16, "pattern": "mask"}]
)
def test_the_flash_kernel_says_what_it_cannot_do(fields):
    with pytest.raises(RecipeError, match="flash does not run here, on cuda"):
        attention_backend("flash", **fields)
    assert attention_backend("auto", **fields) in ("sdpa", "xformers")
