"""The layer of the small transformers that are trained from scratch."""

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class TransformerBlock(nn.Module):
    """Attention of everything to everything, then an MLP of four times the width; no dropout.

    Pre-norm, with exact GELU, whose tanh approximation is several times slower on a CPU.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[R, S, width]`` to the same."""
        rows, length, width = x.shape
        packed = self.query_key_value(self.attention_norm(x))
        packed = packed.view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        x = x + self.output(mixed.transpose(1, 2).reshape(rows, length, width))
        hidden: Tensor = self.down(gelu(self.up(self.mlp_norm(x))))
        return x + hidden
