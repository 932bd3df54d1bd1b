"""A bidirectional transformer over a prompt's words and an image's tokens.

    words [R, L] int64    canvas [R, N] int64, code or mask (= V)    logits [R, N, V]

Pre-norm blocks with exact GELU, no dropout. A code is embedded by what its patch looks like beside
a vector of its own, and the head is tied to that embedding: what is learned of one colour's patches
serves the others'. A token's position is the sum of its row's and its column's.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from genrl_models import TransformerBlock

_SEED = 2310
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""


class Phrases(nn.Module):
    """Adds to every word what the two words before and after it say about it.

    Attention alone found out neither which colour belongs to which shape nor which shape is to the
    left within minutes of training; words that know their neighbours carry it from the start.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.around = nn.Conv1d(width, width, kernel_size=5, padding=2)
        self.mix = nn.Linear(width, width)

    def forward(self, words: Tensor) -> Tensor:
        """``[R, L, width]`` to the same."""
        around = self.around(self.norm(words).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = self.mix(gelu(around))
        return words + mixed


class ShapesTransformer(nn.Module):
    """The network of the masked shapes policy; see the module for the shapes.

    Args:
        features: ``[V, F]`` float32, what the codes look like.
        width, layers, heads: of the transformer.
        per_row: tokens in a row of the image.
        vocabulary, prefix: words there are, and words of a prompt.
    """

    features: Tensor

    def __init__(
        self, features: Tensor, *, width: int, layers: int, heads: int, per_row: int,
        vocabulary: int, prefix: int,
    ):  # fmt: skip
        super().__init__()
        codes, seen = features.shape
        self.register_buffer("features", features, persistent=False)
        self.words = nn.Embedding(vocabulary, width)
        self.codes = nn.Embedding(codes + 1, width)
        self.looks = nn.Linear(seen, width, bias=False)
        self.phrases = Phrases(width)
        self.word_positions = nn.Parameter(torch.empty(prefix, width))
        self.rows = nn.Parameter(torch.empty(per_row, 1, width))
        self.columns = nn.Parameter(torch.empty(1, per_row, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.empty(codes))
        self._initialise(layers)

    def forward(self, words: Tensor, canvas: Tensor) -> Tensor:
        """Logits at every position of the canvas, in the network's dtype."""
        codes = self.codes.weight[:-1] + self.looks(self.features)
        embedding = torch.cat([codes, self.codes.weight[-1:]])
        prompt = self.phrases(self.words(words)) + self.word_positions
        image = embedding[canvas] + (self.rows + self.columns).flatten(0, 1)
        x = torch.cat([prompt, image], dim=1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.norm(x[:, words.shape[1] :]) @ codes.T + self.bias
        return logits

    @torch.no_grad()
    def _initialise(self, layers: int) -> None:
        """Normal weights from a generator of our own; what writes to the residual is smaller."""
        generator = torch.Generator().manual_seed(_SEED)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            std = parameter[0].numel() ** -0.5 if "blocks" in name or "phrases" in name else 0.1
            if name.endswith(("output.weight", "down.weight")):
                std /= (2 * layers) ** 0.5
            parameter.normal_(0.0, std, generator=generator)
