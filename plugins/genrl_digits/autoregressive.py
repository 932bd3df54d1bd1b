"""The autoregressive digit policy: four words, then 16 codes, one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genrl_autoregressive import TransformersPolicy, tiny_gpt2
from genrl_core import Media, Prompt, Tensors
from genrl_digits import DigitsAutoregressiveConfig, data
from genrl_digits.words import PREFIX, VOCABULARY, word_ids

_SEED = 1910
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class DigitsAutoregressivePolicy(TransformersPolicy):
    """A GPT-2 whose vocabulary is the V codes, then the words; a completion is 16 codes.

    ``cond`` is ``prompt`` ``[B, 4]``, the words' ids from V on, short prompts filled up with the
    empty word so that a code always stands at the same position; ``final`` is ``tokens``
    ``[B, 16]`` and ``length``, always 16.
    """

    def __init__(self, config: DigitsAutoregressiveConfig):
        network = tiny_gpt2(
            config.codebook + len(VOCABULARY), PREFIX + data.NUM_TOKENS,
            width=config.width, layers=config.layers, heads=config.heads, seed=_SEED,
        )  # fmt: skip
        super().__init__(config, network, config.codebook, num_tokens=data.NUM_TOKENS)

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        words = torch.tensor([word_ids(prompt) for prompt in prompts], device=device)
        return self._prefix(words)

    def unconditional(self, cond: Tensors) -> Tensors:
        """The empty prompt: four times the empty word."""
        return self._prefix(torch.zeros_like(cond["prompt"]))

    def _prefix(self, words: Tensor) -> Tensors:
        mask = torch.ones_like(words, dtype=torch.bool)
        return {"prompt": words + self.num_symbols, "prompt_mask": mask}

    def decode(self, final: Tensors) -> Media:
        images = data.decode(final["tokens"].cpu().numpy(), self.num_symbols)
        return Media("image", data.to_pixels(images))

    def tokenize(self, images: data.Array) -> Tensors:
        """Real images ``[B, 8, 8]``, grey 0 to 16, as finished samples."""
        tokens = torch.from_numpy(data.encode(images, self.num_symbols))
        return {"tokens": tokens, "length": torch.full((len(tokens),), data.NUM_TOKENS)}
