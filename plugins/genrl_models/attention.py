"""The only module that knows xformers: attention by a backend that a real call has tried.

    out = softmax(scale query key^T + mask) value

Three backends compute it. ``sdpa``: torch's own choice among its kernels. ``flash``: torch's flash
kernel and no other. ``xformers``: memory-efficient attention of the optional package. The
choice ``auto`` takes xformers where it is installed and passes the trial, and sdpa elsewhere; with
a mask it takes sdpa, whose kernel is the same and reads the mask without a padded copy. The kernels
are called here and not through diffusers, whose dispatch takes seconds to import and adds a boolean
mask of xformers to the scores as zeros and ones.

Nothing here is a setting of the process: a model asks for a backend call by call. Shapes:

    query [R, H, S, D]    key, value [R, H, L, D]    mask [S, L] or broadcast to [R, H, S, L]
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from genrl_core import RecipeError

Backend = Literal["sdpa", "xformers", "flash"]
AttentionChoice = Literal["auto", "sdpa", "xformers", "flash"]
Pattern = Literal["full", "causal", "mask"]
"""Every key, the keys up to the query's own place, or those that a tensor names."""

_CHANGES_NUMBERS = ("softcap", "s_aux", "position_bias")
"""What some models of transformers ask of their attention beyond the formula above."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *,
    requested: AttentionChoice = "auto", causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attention by the requested backend, tried once per device, dtype and width: ``[R, H, S, D]``.

    Args:
        query, key, value: see above; fewer heads in key and value are repeated. Under autocast all
            take its dtype.
        mask: True where a query may look, or a float that is added to the scores.
        requested: the backend.
        causal: query s sees the keys 0..s; not together with ``mask``.
        scale: of the scores; ``D ** -0.5`` where None.

    Raises:
        RecipeError: the machine cannot meet the request; never with ``auto`` or ``sdpa``.
        ValueError: both ``mask`` and ``causal``.
    """
    if causal and mask is not None:
        raise ValueError("attend takes a mask or causal=True, not both: put one into the other")
    query, key, value = _as_autocast(query, key, value)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (part.repeat_interleave(repeats, 1) for part in (key, value))
    pattern: Pattern = "causal" if causal else "full" if mask is None else "mask"
    backend = attention_backend(
        requested, query.dtype, query.device, head_dim=query.shape[-1], pattern=pattern
    )
    return _CALLS[backend](query, key, value, mask, causal, scale)


def _as_autocast(*parts: Tensor) -> Iterator[Tensor]:
    """Queries, keys and values in the dtype of autocast where it is on, as torch's attention does.

    Norms of queries and keys give float32 there, projections of values half precision. A backend
    other than torch's refuses the mixture, and the trial must see the dtype that the kernel gets.
    """
    for part in parts:
        device = part.device.type
        casts = torch.is_autocast_enabled(device) and part.dtype != torch.float64
        yield part.to(torch.get_autocast_dtype(device)) if casts else part


def attention_backend(
    requested: AttentionChoice, dtype: torch.dtype, device: torch.device | None = None, *,
    head_dim: int = 64, pattern: Pattern = "full",
) -> Backend:  # fmt: skip
    """The backend that meets a request on this machine, found by a call with its gradient.

    What a policy's ``build`` asks before it loads weights, so that a request that cannot be met
    ends the run at once; ``attend`` asks the same again for what it really gets.

    Args:
        requested: the field ``policy.attention``.
        dtype: of the network's activations.
        device: where it will run; None for the device of a run with ``run.device: auto``, since a
            policy is built before it is moved there.
        head_dim: D, the width of a head.
        pattern: which keys a query sees.

    Raises:
        RecipeError: what is missing, and the way out; never with ``auto`` or ``sdpa``.
    """
    if requested == "sdpa":
        return "sdpa"
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if requested == "auto":
        able = pattern != "mask" and not _problem("xformers", device, dtype, head_dim, pattern)
        return "xformers" if able else "sdpa"
    if problem := _problem(requested, device, dtype, head_dim, pattern):
        raise RecipeError(
            f"policy.attention: {requested} does not run here, on {device} with "
            f"{str(dtype).removeprefix('torch.')}, heads of width {head_dim} and "
            f"{_PATTERNS[pattern]}: {problem}. Choose attention: auto, which takes what runs"
        )
    return requested


def transformers_attention(requested: AttentionChoice) -> str:
    """The name that makes one model of transformers attend by ``attend``.

    Give it to that model alone, ``from_pretrained(..., attn_implementation=name)`` or
    ``model.set_attn_implementation(name)``; a new name is added to the library's list, and what
    other models use stays as it is. Boolean masks of any shape pass through.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if requested == "sdpa":
        return "sdpa"
    name = f"genrl_{requested.replace('flash', 'fused')}"  # to them, flash names packages
    AttentionInterface.register(name, partial(_for_transformers, requested))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def _for_transformers(
    requested: AttentionChoice, module: Any, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    is_causal: bool | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in a layer; it wants ``[R, S, H, D]`` back."""
    asked = [name for name in _CHANGES_NUMBERS if others.get(name) is not None]
    if asked or dropout:
        raise RecipeError(
            f"policy.attention: {type(module).__name__} asks for {', '.join(asked) or 'dropout'}, "
            f"which {requested} does not do here: choose attention: sdpa"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    found = attend(
        query, key, value, attention_mask, requested=requested, causal=bool(causal), scale=scaling
    )
    return found.transpose(1, 2).contiguous(), None


# One signature for all: query, key, value, mask, causal, scale.


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool,
    scale: float | None,
) -> Tensor:  # fmt: skip
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale
    )


def _flash(*given: Any) -> Tensor:
    """The flash kernel of torch; the setting is put back before anyone else can see it."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(*given)


def _xformers(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """Its layout is ``[R, S, H, D]``, and its masks are floats that are added."""
    operators = importlib.import_module("xformers.ops")
    bias = operators.LowerTriangularMask() if causal else None
    if mask is not None:
        bias = _added(mask, query, key)
    parts = (part.transpose(1, 2) for part in (query, key, value))
    found: Tensor = operators.memory_efficient_attention(*parts, attn_bias=bias, scale=scale)
    return found.transpose(1, 2)


def _added(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as what is added to the scores: ``[R, H, S, L]``, rows padded to 8 in memory.

    The least finite number stands for False: a query that sees nothing, as padding does, then
    gives something finite.
    """
    rows, heads, length, _ = query.shape
    keys, least = key.shape[2], torch.finfo(query.dtype).min
    bias = torch.zeros_like(mask, dtype=query.dtype)
    bias = bias.masked_fill(~mask, least) if mask.dtype == torch.bool else bias + mask
    padded = pad(bias.expand(*bias.shape[:-1], keys), (0, -keys % 8))
    return padded.expand(rows, heads, length, -1)[..., :keys]


_CALLS: dict[Backend, Callable[..., Tensor]] = {
    "sdpa": _sdpa, "flash": _flash, "xformers": _xformers,
}  # fmt: skip

_PATTERNS: dict[Pattern, str] = {
    "full": "no mask", "causal": "the causal mask", "mask": "a mask of its own",
}  # fmt: skip


@lru_cache(maxsize=256)
def _problem(
    backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int, pattern: Pattern
) -> str:
    """Why a backend cannot be used, from a trial with its gradient; empty where it can."""
    with warnings.catch_warnings(record=True) as told:  # torch gives its reasons as warnings
        warnings.simplefilter("always")
        try:
            error = _trial(_CALLS[backend], device, dtype, head_dim, pattern)
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("xformers"):
                return "xformers is not installed; pip install 'genrl-core[xformers]' brings it"
            return str(missing)
        except Exception as failure:  # noqa: BLE001  # whatever a kernel raises, it does not run
            reasons = [str(failure), *(str(warning.message) for warning in told)]
            return "; ".join(reason.strip().splitlines()[0] for reason in reasons if reason.strip())
    # Rounding gives a tenth of this at most; a wrong mask or a broken kernel ten times as much.
    if not error <= max(0.01, 16 * torch.finfo(dtype).eps):
        return f"its numbers are wrong by a share of {error:.2g}"
    return ""


def _trial(
    call: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, head_dim: int,
    pattern: Pattern,
) -> float:  # fmt: skip
    """The error of a small call and of its gradient against the formula in float64.

    It is the largest gap in units of the largest number. The numbers are made without a random
    generator, so that nobody else's draws change: ``[1, 2, 16, D]``, waves in [-1, 1] without a
    pattern that attention could not tell apart.
    """
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        places = torch.arange(2 * 16 * head_dim, dtype=torch.float64)
        waves = [(places * (0.7 + 0.31 * i) + i).sin().view(1, 2, 16, -1) for i in range(3)]
        parts = [wave.to(device, dtype).requires_grad_() for wave in waves]
        exact = [part.detach().double().cpu().requires_grad_() for part in parts]
        lower = torch.ones(16, 16, dtype=torch.bool).tril()
        mask = lower.to(device) if pattern == "mask" else None
        found = call(*parts, mask, pattern == "causal", None)
        scores = exact[0] @ exact[1].mT * head_dim**-0.5
        if pattern != "full":
            scores = scores.masked_fill(~lower, -torch.inf)
        expected = scores.softmax(-1) @ exact[2]
        slopes = torch.autograd.grad(found.square().sum(), parts)
        true = torch.autograd.grad(expected.square().sum(), exact)
    pairs = zip((found, *slopes), (expected, *true), strict=True)
    gaps = [(mine.double().cpu() - own).abs().amax() / own.abs().amax() for mine, own in pairs]
    return float(torch.stack(gaps).detach().nan_to_num(inf, posinf=inf).max())
