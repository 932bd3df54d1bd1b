"""A bidirectional transformer over a prompt's words and an image's tokens: 110,976 parameters.

    words [R, L] int64    canvas [R, N] int64, code or mask (= V)    logits [R, N, V]    value [R]

Pre-norm blocks, learned positions, no dropout.
"""

import torch
from torch import Tensor, nn

from genrl_models import TransformerBlock

_SEED = 2510
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class DigitsTransformer(nn.Module):
    """The network of the masked digit policy; see the module for the shapes."""

    def __init__(
        self, *, width: int, layers: int, heads: int, codes: int, num_tokens: int,
        vocabulary: int, prefix: int, value_head: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.tokens = nn.Embedding(codes + 1, width)
        self.word_positions = nn.Parameter(torch.empty(prefix, width))
        self.token_positions = nn.Parameter(torch.empty(num_tokens, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes)
        # The last in line, so that the others are drawn as they are without it.
        self.value_head = nn.Linear(width, 1) if value_head else None
        self._initialise(layers)

    def forward(self, words: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits at every position, and the value of the canvas by the mean of its features."""
        prompt = self.words(words) + self.word_positions
        image = self.tokens(canvas) + self.token_positions
        x = torch.cat([prompt, image], dim=1)
        for block in self.blocks:
            x = block(x)
        features = self.norm(x)
        logits: Tensor = self.head(features[:, words.shape[1] :])
        value = None if self.value_head is None else self.value_head(features.mean(1)).squeeze(1)
        return logits, value

    @torch.no_grad()
    def _initialise(self, layers: int) -> None:
        """Normal weights from a generator of our own; what writes to the residual is smaller.

        The words' positions begin at 0: a word means the same wherever it stands until the data
        say otherwise, and phrasings that were not trained on are understood.
        """
        generator = torch.Generator().manual_seed(_SEED)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            std = parameter.shape[1] ** -0.5 if "blocks" in name else 0.1
            if name.endswith(("output.weight", "down.weight")):
                std /= (2 * layers) ** 0.5
            parameter.normal_(0.0, std, generator=generator)
        self.word_positions.zero_()
        if self.value_head is not None:
            self.value_head.weight.zero_()
