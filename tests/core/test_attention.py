"""Attention by every backend against the written formula; met, refused, never silent."""

import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from genrl_core import RecipeError
from genrl_models import attend, attention, attention_backend, transformers_attention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_trials() -> Iterator[None]:
    """No trial's result survives a test that stages what the machine can do."""
    attention._problem.cache_clear()
    yield
    attention._problem.cache_clear()


def formula(query, key, value, mask=None, causal=False, scale=None) -> Tensor:
    """``softmax(scale q k^T + mask) v``, one head after the other."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    out = []
    for row in range(rows):
        for head in range(heads):
            theirs = head // groups
            scores = query[row, head] @ key[row, theirs].T
            scores = scores * (width**-0.5 if scale is None else scale)
            if mask is not None:
                full = mask.expand(rows, heads, length, key.shape[2])[row, head]
                allowed = full.dtype == torch.bool
                scores = scores.where(full, -torch.inf) if allowed else scores + full
            if causal:
                ahead = torch.arange(length)[:, None] < torch.arange(key.shape[2])
                scores = scores.masked_fill(ahead, -torch.inf)
            out.append(scores.softmax(-1) @ value[row, theirs])
    return torch.stack(out).view(rows, heads, length, -1)


def parts(heads=4, keys=7, key_heads=None, length=5, width=8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, heads, length, width), *[(3, key_heads or heads, keys, width)] * 2]
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in shapes
    ]


def boolean(*shape: int) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[..., 0] = True  # a query that sees nothing has no softmax
    return mask


CASES: dict[str, dict] = {
    "full": {},
    "scaled": {"scale": 0.3},
    "causal": {"causal": True},
    "one mask for all": {"mask": boolean(5, 7)},
    "a mask per row": {"mask": boolean(3, 1, 5, 7)},
    "a mask per head": {"mask": boolean(3, 4, 5, 7), "scale": 0.5},
    "a row of keys": {"mask": boolean(3, 1, 1, 7)},
    "a bias": {"mask": torch.linspace(-2, 2, 35, dtype=torch.float64).view(5, 7)},
}


def agree(requested: str, tensors: list[Tensor], fields: dict) -> None:
    found, expected = attend(*tensors, requested=requested, **fields), formula(*tensors, **fields)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(found.square().sum(), tensors)
    theirs = torch.autograd.grad(expected.square().sum(), tensors)
    torch.testing.assert_close(slopes, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("requested", ["auto", "sdpa", "flash"])
def test_values_and_gradients_are_those_of_the_formula(requested, fields):
    agree(requested, parts(), fields)


@pytest.mark.parametrize("requested", ["auto", "sdpa", "flash"])
def test_fewer_heads_in_key_and_value_are_shared_in_order(requested):
    agree(requested, parts(key_heads=2), {})


def test_a_mask_and_causal_together_are_a_mistake():
    with pytest.raises(ValueError, match="not both"):
        attend(*parts(), boolean(5, 7), causal=True)


def stage(monkeypatch, call: Callable[..., Tensor]) -> None:
    """Put a package of the name ``xformers`` in place, whose operator is ``call``."""
    package, operators = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    operators.memory_efficient_attention = call
    operators.LowerTriangularMask = lambda: "lower triangle"
    package.ops = operators
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)


def efficient(query, key, value, attn_bias=None, scale=None) -> Tensor:
    """What xformers documents: heads third, biases in full, of the dtype, rows aligned to 8."""
    tensors = [part.transpose(1, 2) for part in (query, key, value)]
    causal = isinstance(attn_bias, str)
    if attn_bias is not None and not causal:
        rows, length, heads, _ = query.shape
        assert attn_bias.shape == (rows, heads, length, key.shape[1])
        assert attn_bias.dtype == query.dtype
        assert attn_bias.stride(-2) % 8 == 0
    bias = None if causal else attn_bias
    return formula(*tensors, bias, causal, scale).transpose(1, 2)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_xformers_is_called_as_it_documents(monkeypatch, fields):
    stage(monkeypatch, efficient)
    agree("xformers", parts(), fields)


def test_auto_takes_xformers_where_it_passes_and_has_no_mask(monkeypatch):
    assert attention_backend("auto", torch.float32, CPU) == "sdpa"
    stage(monkeypatch, efficient)
    attention._problem.cache_clear()
    assert attention_backend("auto", torch.float32, CPU) == "xformers"
    assert attention_backend("auto", torch.float32, CPU, pattern="causal") == "xformers"
    assert attention_backend("auto", torch.float32, CPU, pattern="mask") == "sdpa"


def of_one_dtype(query, key, value, **fields) -> Tensor:
    assert query.dtype == key.dtype == value.dtype, "as xformers wants it"
    return efficient(query, key, value, **fields)


@pytest.mark.parametrize("requested", ["auto", "xformers"])
def test_under_autocast_the_kernel_and_its_trial_see_one_dtype(monkeypatch, requested):
    """Normalised queries and keys come in float32 there, values in bfloat16."""
    seen = []

    def watched(query, *others, **fields):
        seen.append(query.dtype)
        return of_one_dtype(query, *others, **fields)

    stage(monkeypatch, watched)
    query, key, value = (part.float() for part in parts())
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value.bfloat16(), requested=requested)
        plain = attend(query, key, value.bfloat16(), requested="sdpa")
    assert set(seen) == {torch.bfloat16} and len(seen) == 2  # a trial and a call
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, rtol=0, atol=0.02)
    torch.testing.assert_close(plain.double(), formula(*parts()), rtol=0, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*parts(), requested=requested).dtype == torch.float64


def refuses(*args, **fields) -> Tensor:
    raise NotImplementedError("No operator found for this\nfollowed by a page of reasons")


def no_gradient(query, *args, **fields) -> Tensor:
    return query.detach()


def ignores_the_mask(query, key, value, attn_bias=None, scale=None) -> Tensor:
    return efficient(query, key, value, None, scale)


def blows_up(*tensors, **fields) -> Tensor:
    return efficient(*tensors) * float("nan")


@pytest.mark.parametrize(
    ("call", "pattern", "reason"),
    [
        (refuses, "full", "No operator found for this. Choose"),
        (no_gradient, "full", "does not require grad"),
        (ignores_the_mask, "causal", "numbers are wrong by a share of"),
        (ignores_the_mask, "mask", "numbers are wrong by a share of"),
        (blows_up, "full", "numbers are wrong by a share of inf"),
    ],
)
def test_what_fails_the_trial_is_refused_and_auto_goes_on(monkeypatch, call, pattern, reason):
    stage(monkeypatch, call)
    with pytest.raises(RecipeError, match=reason):
        attention_backend("xformers", torch.float32, CPU, pattern=pattern)
    assert attention_backend("auto", torch.float32, CPU, pattern=pattern) == "sdpa"


def test_a_package_that_is_missing_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(RecipeError) as caught:
        attend(*parts(), requested="xformers")
    assert str(caught.value) == (
        "policy.attention: xformers does not run here, on cpu with float64, heads of width 8 and "
        "no mask: xformers is not installed; pip install 'genrl-core[xformers]' brings it. Choose "
        "attention: auto, which takes what runs"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
@pytest.mark.parametrize("requested", ["flash", "xformers"])
def test_a_device_that_is_missing_is_refused_and_auto_never_fails(monkeypatch, requested):
    stage(monkeypatch, efficient)
    cuda = torch.device("cuda")
    with pytest.raises(RecipeError, match=f"{requested} does not run here, on cuda with bfloat16"):
        attention_backend(requested, torch.bfloat16, cuda)
    assert attention_backend("auto", torch.bfloat16, cuda) == "sdpa"
    assert attention_backend("sdpa", torch.bfloat16, cuda) == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["full", "causal", "mask"])
def test_a_good_backend_passes_in_every_precision(dtype, pattern):
    for width in (8, 64, 128):
        assert attention._problem("sdpa", CPU, dtype, width, pattern) == ""


def test_the_process_and_other_models_stay_as_they_are():
    def settings() -> tuple:
        cuda = torch.backends.cuda
        return (
            cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(), _AttentionBackendRegistry._active_backend,
            torch.random.get_rng_state().tolist(),
        )  # fmt: skip

    neighbour = phi("sdpa")
    before = settings()
    for requested in ("auto", "flash"):
        with torch.no_grad():
            attend(*parts(), requested=requested)
        phi(transformers_attention(requested))
    assert settings() == before
    assert neighbour.config._attn_implementation == "sdpa"


def phi(name: str) -> PhiForCausalLM:
    settings = PhiConfig(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0, attn_implementation=name,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PhiForCausalLM(settings).eval()


IDS = torch.arange(12).view(2, 6) % 11
MASKS = {
    "causal": None,
    "padded": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]),
    "own": (boolean(2, 1, 6, 6) | torch.eye(6, dtype=torch.bool)),
}


def test_a_model_that_normalises_its_queries_runs_under_autocast(monkeypatch):
    stage(monkeypatch, of_one_dtype)
    settings = PhiConfig(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, qk_layernorm=True,
        attn_implementation=transformers_attention("xformers"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PhiForCausalLM(settings).eval()
    with torch.no_grad():
        exact = model(IDS, use_cache=False).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(IDS, use_cache=False).logits
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("requested", ["auto", "flash", "xformers"])
def test_a_model_of_transformers_gives_the_logits_that_its_own_attention_gives(
    monkeypatch, requested, mask
):
    stage(monkeypatch, efficient)
    name = transformers_attention(requested)
    model = phi(name)
    assert model.config._attn_implementation == name != "sdpa"
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=mask).logits
        expected = phi("eager")(input_ids=IDS, attention_mask=_added(mask)).logits
    real = torch.ones_like(IDS) if mask is None or mask.dim() > 2 else mask
    assert found.isfinite().all()
    torch.testing.assert_close(found[real == 1], expected[real == 1], rtol=0, atol=1e-6)


def _added(mask: Tensor | None) -> Tensor | None:
    """Eager attention adds its masks to the scores."""
    if mask is None or mask.dim() == 2:
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, -1e30)


def test_sdpa_is_the_librarys_own():
    assert transformers_attention("sdpa") == "sdpa"


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"dropout": 0.1}])
def test_what_the_formula_lacks_is_refused(asked):
    with pytest.raises(RecipeError, match=f"asks for {next(iter(asked))}, .* choose .* sdpa"):
        attention._for_transformers("auto", torch.nn.Module(), *parts(), None, **asked)
