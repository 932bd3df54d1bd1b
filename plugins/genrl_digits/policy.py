"""The masked digit policy: four words and 16 codes in, logits over the codes out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genrl_core import Media, Prompt, Tensors
from genrl_digits import DigitsMaskedConfig, data
from genrl_digits.network import DigitsTransformer
from genrl_digits.words import PREFIX, VOCABULARY, word_ids
from genrl_masked import MaskedPolicy


class DigitsMaskedPolicy(MaskedPolicy):
    """``cond`` is ``words`` ``[B, 4]`` int64; ``final`` is ``tokens`` ``[B, 16]`` int64."""

    lora_targets = ("query_key_value", "output", "up", "down")
    num_prompt_tokens = PREFIX

    def __init__(self, config: DigitsMaskedConfig):
        # The constructors of torch's layers draw from the global generator; ours overwrite that.
        with torch.random.fork_rng(devices=[]):
            network = DigitsTransformer(
                width=config.width, layers=config.layers, heads=config.heads,
                codes=config.codebook, num_tokens=data.NUM_TOKENS,
                vocabulary=len(VOCABULARY), prefix=PREFIX, value_head=config.value_head,
            )  # fmt: skip
        super().__init__(config, network.eval(), data.NUM_TOKENS, config.codebook)

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        device = next(self.network.parameters()).device
        return {"words": torch.tensor([word_ids(prompt) for prompt in prompts], device=device)}

    def unconditional(self, cond: Tensors) -> Tensors:
        """The empty prompt, which is all padding."""
        return {"words": torch.zeros_like(cond["words"])}

    def mask_prompt(self, cond: Tensors, where: Tensor) -> Tensors:
        """A hidden word is padding."""
        return {"words": cond["words"].masked_fill(where, 0)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        logits: Tensor = self.network(cond["words"], canvas)[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def logits_and_values(self, canvas: Tensor, cond: Tensors) -> tuple[Tensor, Tensor]:
        logits, values = self.network(cond["words"], canvas)
        return logits, values

    def decode(self, final: Tensors) -> Media:
        images = data.decode(final["tokens"].cpu().numpy(), self.codebook_size)
        return Media("image", data.to_pixels(images))

    def tokenize(self, images: data.Array) -> Tensors:
        """Real images ``[B, 8, 8]``, grey 0 to 16, as finished samples."""
        return {"tokens": torch.from_numpy(data.encode(images, self.codebook_size))}
