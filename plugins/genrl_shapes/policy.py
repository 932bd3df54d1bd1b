"""The masked shapes policy: seven words and 36 codes in, logits over the codes out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genrl_core import Media, Prompt, Tensors
from genrl_masked import MaskedPolicy
from genrl_models import fit_tensors
from genrl_shapes import ShapesMaskedConfig, tokens
from genrl_shapes.bases import shipped
from genrl_shapes.grammar import ANYTHING, PREFIX, VOCABULARY, word_ids
from genrl_shapes.network import ShapesTransformer
from genrl_shapes.world import Array


class ShapesMaskedPolicy(MaskedPolicy):
    """``cond`` is ``words`` ``[B, 7]`` int64; ``final`` is ``tokens`` ``[B, 36]`` int64."""

    lora_targets = ("query_key_value", "output", "up", "down")
    num_prompt_tokens = PREFIX

    def __init__(self, config: ShapesMaskedConfig):
        # The constructors of torch's layers draw from the global generator; ours overwrite that.
        with torch.random.fork_rng(devices=[]):
            network = ShapesTransformer(
                torch.from_numpy(tokens.features()),
                width=config.width, layers=config.layers, heads=config.heads,
                per_row=tokens.PER_ROW, vocabulary=len(VOCABULARY), prefix=PREFIX,
            )  # fmt: skip
        if config.weights is not None:
            fit_tensors(network, shipped(config.weights), f"policy.weights: {config.weights}")
        super().__init__(config, network.eval(), tokens.NUM_TOKENS, len(tokens.codebook()))

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        return {"words": torch.tensor([word_ids(prompt) for prompt in prompts], device=device)}

    def unconditional(self, cond: Tensors) -> Tensors:
        """The prompt ``anything``, which the base was trained on too."""
        words = torch.zeros_like(cond["words"])
        words[:, 0] = VOCABULARY.index(ANYTHING)
        return {"words": words}

    def mask_prompt(self, cond: Tensors, where: Tensor) -> Tensors:
        """A hidden word is padding."""
        return {"words": cond["words"].masked_fill(where, 0)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        logits: Tensor = self.network(cond["words"], canvas)
        return logits if logits.dtype == torch.float64 else logits.float()

    def decode(self, final: Tensors) -> Media:
        images = tokens.decode(final["tokens"].cpu().numpy())
        return Media("image", torch.from_numpy(tokens.to_rgb(images)))

    def tokenize(self, images: Array) -> Tensors:
        """Scenes ``[B, 30, 30]``, palette indices, as finished samples."""
        return {"tokens": torch.from_numpy(tokens.encode(images))}
