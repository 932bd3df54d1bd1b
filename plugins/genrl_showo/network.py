"""Show-o's network: Phi-1.5 of transformers with normalised queries and keys, on one sequence.

The parameters carry their published names, ``showo.model.layers.0.self_attn.q_proj.weight``, so a
saved network is a Show-o checkpoint. The layers are those of ``PhiForCausalLM``; what runs them is
here, because text and image are read apart: the text once per prompt and not once per row, its keys
and values kept, then the image, which attends to them. This is the same function as one pass over
the whole sequence, for any canvas, since no text attends to the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genrl_core import RecipeError
from genrl_masked import at_positions
from genrl_models import AttentionChoice, attend, forward_arguments
from genrl_showo.layout import Vocabulary, image_attention, image_ids, prefix_attention

if TYPE_CHECKING:
    from transformers import PhiConfig


@dataclass(frozen=True)
class Prefix:
    """U prompts as the image sees them.

    Attributes:
        keys, values: per layer ``[U, heads, P, head_dim]``, the padding that all share left out.
        padding: ``[U, P]`` bool.
        length: ids of the prefix with all its padding: the position of soi.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding: Tensor
    length: int


class ShowoNetwork(nn.Module):
    """Prompts and canvases in, logits over the image codes out.

    Args:
        settings: of the backbone; ``vocab_size`` is the vocabulary's.
        vocabulary: the ids.
        autocast: run the layers under autocast to bfloat16; embeddings, norms, the residual stream
            and the head stay in the precision of the weights.
        recompute: keep one activation per layer for the backward pass and compute the rest again.
        attention: what computes it, as ``genrl_models.attend`` takes it.
    """

    def __init__(
        self, settings: "PhiConfig", vocabulary: Vocabulary, *, autocast: bool, recompute: bool,
        attention: AttentionChoice = "auto",
    ):  # fmt: skip
        from transformers import AttentionInterface, PhiForCausalLM

        super().__init__()
        self.showo = PhiForCausalLM(settings)
        name = f"genrl_showo_{attention.replace('flash', 'fused')}"  # flash would be a package's
        AttentionInterface.register(name, partial(_attention, attention))
        self.showo.set_attn_implementation(name)
        self.vocabulary = vocabulary
        self.autocast = autocast
        self.recompute = recompute

    def forward(
        self, canvas: Tensor, prompt: Tensor, rows: Tensor, prefix: Prefix | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Prefix]:  # fmt: skip
        """The logits of the image's codes, and what was read of the prompts.

        Args:
            canvas: ``[R, N]`` int64, codes and the mask code V.
            prompt: ``[U, P]`` int64, from ``prompt_ids``.
            rows: ``[R]`` int64, which prompt belongs to each canvas.
            prefix: of an earlier call with the same prompts and weights.
            positions: ``[R, S]`` int64, the positions of the canvas whose logits are wanted; the
                others' last layer and head are not computed. None for all.

        Returns:
            ``[R, N, V]`` or ``[R, S, V]``, and the prefix for later calls.
        """
        with torch.autocast(canvas.device.type, torch.bfloat16, enabled=self.autocast):
            read = self._read(prompt) if prefix is None else prefix
            hidden = self._draw(canvas, read, rows, positions)
        return self._head(hidden), read

    def _read(self, prompt: Tensor) -> Prefix:
        """Text alone, causally. Padding that all prompts share is not run: nothing attends to it.

        Positions count it nevertheless, as Show-o was trained.
        """
        model, length = self.showo.model, prompt.shape[1]
        padding = prompt == self.vocabulary.pad
        shared = int(padding.all(0).sum())
        prompt, padding = prompt[:, shared:], padding[:, shared:]
        hidden: Tensor = model.embed_tokens(prompt)
        rotary = self._rotary(hidden, shared)
        mask = prefix_attention(padding) if padding.any() else None
        keys, values = [], []
        for layer in model.layers:
            hidden, key, value = self._run(_read_layer, layer, hidden, mask, rotary)
            keys.append(key)
            values.append(value)
        return Prefix(tuple(keys), tuple(values), padding, length)

    def _draw(
        self, canvas: Tensor, prefix: Prefix, rows: Tensor, positions: Tensor | None
    ) -> Tensor:
        """The image, bidirectionally, with the text in sight: ``[R, N or S, width]``."""
        model = self.showo.model
        hidden: Tensor = model.embed_tokens(image_ids(canvas, self.vocabulary))
        rotary = self._rotary(hidden, prefix.length)
        mask = image_attention(prefix.padding[rows], hidden.shape[1])
        *layers, last = zip(model.layers, prefix.keys, prefix.values, strict=True)
        for layer, key, value in layers:
            hidden = self._run(_draw_layer, layer, hidden, mask, rotary, key, value, rows)
        layer, key, value = last
        if positions is not None:
            given = (hidden, mask, rotary, key, value, rows, positions + 1)  # soi comes first
            return cast(Tensor, self._run(_draw_last, layer, *given))
        hidden = self._run(_draw_layer, layer, hidden, mask, rotary, key, value, rows)
        return hidden[:, 1:-1]

    def _head(self, hidden: Tensor) -> Tensor:
        """The image codes' rows of the head, in the weights' precision.

        Raises:
            RecipeError: an adapter sits on the head, whose rows are taken from the plain weight.
        """
        head = self.showo.lm_head
        if not isinstance(head, nn.Linear):
            raise RecipeError(
                "weights.lora.target_modules names lm_head, of which Show-o uses some rows alone: "
                "leave it out (q_proj, k_proj, v_proj, dense, fc1 and fc2 can be adapted)"
            )
        codes = slice(self.vocabulary.first_code, self.vocabulary.mask)
        image: Tensor = self.showo.model.final_layernorm(hidden.to(head.weight.dtype))
        return functional.linear(image, head.weight[codes], head.bias[codes])

    def _rotary(self, hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions ``first``, ``first + 1``, ...: ``[1, S, dims]``."""
        positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)
        cosines, sines = self.showo.model.rotary_emb(hidden, position_ids=positions.unsqueeze(0))
        return cosines, sines

    def _run(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """A layer, recomputed in the backward pass where wanted.

        transformers' own switch works in training mode alone, which a policy is never in.
        """
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)


def _read_layer(
    layer: nn.Module, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer over the text: what goes on, and its keys and values."""
    written = _Written()
    hidden = _run_layer(layer, hidden, mask, rotary, written, is_causal=mask is None)
    return hidden, written.keys, written.values


def _draw_layer(
    layer: nn.Module, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor],
    keys: Tensor, values: Tensor, rows: Tensor,
) -> Tensor:  # fmt: skip
    """A layer over the image, behind the keys and values of each row's text."""
    before = _Before(keys[rows], values[rows])
    return _run_layer(layer, hidden, mask, rotary, before)


def _draw_last(
    layer: nn.Module, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor],
    keys: Tensor, values: Tensor, rows: Tensor, chosen: Tensor,
) -> Tensor:  # fmt: skip
    """``_draw_layer`` at the ids ``chosen`` ``[R, S]`` alone, which see all the others as ever."""
    own_keys, own_values = _keys_and_values(layer, hidden, rotary)
    seen = _Instead(torch.cat([keys[rows], own_keys], 2), torch.cat([values[rows], own_values], 2))
    cosines, sines = (table[0][chosen] for table in rotary)
    return _run_layer(layer, at_positions(hidden, chosen), mask, (cosines, sines), seen)


def _run_layer(
    layer: nn.Module, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor],
    seen: Any, *, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """A layer with ``seen`` in the place of its cache."""
    found: Tensor = layer(
        hidden, attention_mask=mask, position_embeddings=rotary, is_causal=is_causal,
        **{_name_of_cache(type(layer).forward): seen},
    )  # fmt: skip
    return found


@cache
def _name_of_cache(forward: Callable[..., Any]) -> str:
    return forward_arguments(forward, ("cache",))["cache"]


def _keys_and_values(
    layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A layer's keys and values ``[R, heads, N + 2, head_dim]``, as the layer computes them."""
    from transformers.models.phi.modeling_phi import apply_rotary_pos_emb

    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_layernorm(attention.k_proj(normed).view(shape).transpose(1, 2))
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    turned, plain = keys.tensor_split([rotary[0].shape[-1]], -1)
    turned, _ = apply_rotary_pos_emb(turned, turned, *rotary)
    return torch.cat([turned, plain], -1), values


def _attention(
    requested: AttentionChoice, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,  # noqa: ARG001
    attention_mask: Tensor | None, *, scaling: float, is_causal: bool, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What the layers call. Under autocast the norms leave queries and keys in float32."""
    found = attend(
        query.to(value.dtype), key.to(value.dtype), value, attention_mask,
        requested=requested, causal=is_causal, scale=scaling,
    )  # fmt: skip
    return found.transpose(1, 2).contiguous(), None


class _Written:
    """In the place of transformers' cache: notes the keys and values that a layer computes."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


class _Instead:
    """In the place of transformers' cache: puts keys and values in the place of a layer's own."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class _Before:
    """In the place of transformers' cache: puts other keys and values before a layer's own."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
