"""The attention of aMUSEd's transformer through the backend that the recipe requests."""

from typing import Any

from torch import Tensor

from genrl_models import AttentionChoice, attend


class AmusedAttention:
    """What diffusers calls in every attention layer of one model: a processor of its own.

    Queries come from the image, keys and values from the image or the text; there is no mask. The
    setting lives in this model's layers alone: other models of the process keep theirs.
    """

    def __init__(self, requested: AttentionChoice):
        self.requested = requested

    def __call__(
        self, layer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What a layer returns for ``[R, S, C]``: the same shape.

        Args:
            layer: the ``Attention`` of diffusers that asks.
            hidden_states: ``[R, S, C]``, the image.
            encoder_hidden_states: ``[R, L, C]``, the text; None for self-attention.
            attention_mask: what every processor is given; None in this model.
        """
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(2, (layer.heads, -1)).transpose(1, 2)
            for projected in (layer.to_q(hidden_states), layer.to_k(source), layer.to_v(source))
        )
        found = attend(query, key, value, attention_mask, requested=self.requested)
        out: Tensor = layer.to_out[0](found.transpose(1, 2).flatten(2))
        return out
