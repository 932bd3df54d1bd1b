"""A tiny language model over characters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genrl_arithmetic import ArithmeticLmConfig, task
from genrl_autoregressive import TransformersPolicy, tiny_gpt2
from genrl_core import Media, Prompt, Tensors

_SEED = 1912
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class ArithmeticLm(TransformersPolicy):
    """A GPT-2 whose answers are made of ten digits and the end; a prompt adds ``+`` and ``=``."""

    def __init__(self, config: ArithmeticLmConfig):
        network = tiny_gpt2(
            task.VOCABULARY, config.positions,
            width=config.width, layers=config.layers, heads=config.heads, seed=_SEED,
        )  # fmt: skip
        super().__init__(config, network, num_symbols=task.END + 1, end_tokens=(task.END,))

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        ids, lengths = self._pad([task.prompt_ids(prompt) for prompt in prompts])
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        return {"prompt": ids, "prompt_mask": inside}

    def decode(self, final: Tensors) -> Media:
        rows = zip(final["tokens"].tolist(), final["length"].tolist(), strict=True)
        texts = ["".join(map(str, (s for s in row[:n] if s != task.END))) for row, n in rows]
        return Media("text", texts=tuple(texts))

    def tokenize(self, texts: Sequence[str]) -> Tensors:
        """Numbers in decimal digits as finished samples, the end after each."""
        tokens, length = self._pad([[*map(int, text), task.END] for text in texts])
        return {"tokens": tokens, "length": length}

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids padded with 0 at the end, ``[B, P]``, and how many there are, ``[B]``."""
        width, device = max(map(len, rows)), next(self.network.parameters()).device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        return ids, torch.tensor([len(row) for row in rows], device=device)
