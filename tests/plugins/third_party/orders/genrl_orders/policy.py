"""The base policy of orderings: a score per item, and the exact likelihood of an order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrl_core import Media, Policy, Prompt, Streams, Tensors

from . import OrderConfig


class Scores(nn.Module):
    """The scores of N items, ``[R, N]``, from the prompt's direction ``[R]`` int64."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # never the global one
        self.table = nn.Parameter(0.3 * torch.randn(2, num_items, generator=generator))

    def forward(self, direction: Tensor) -> Tensor:
        return self.table[direction]


class OrderPolicy(Policy):
    """Condition: ``direction`` ``[B]``. Finished sample: ``order`` ``[B, N]``, a permutation."""

    def __init__(self, config: OrderConfig) -> None:
        self.num_items, self.network = config.num_items, Scores(config.num_items)

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        down = [int("descending" in prompt.text) for prompt in prompts]
        return {"direction": torch.tensor(down, device=self.network.table.device)}

    def decode(self, final: Tensors) -> Media:
        texts = (" ".join(map(str, order)) for order in final["order"].tolist())
        return Media("text", texts=tuple(texts))

    def scores(self, cond: Tensors) -> Tensor:
        """The score of every item: ``[R, N]``."""
        return self.network(cond["direction"])

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """Nothing is hidden: the likelihood is exact, over N events."""
        return {"events": torch.full((draws, len(streams), 1), self.num_items)}

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        return pick_log_probs(self.scores(cond), final["order"]).sum(1, keepdim=True)


def pick_log_probs(scores: Tensor, order: Tensor) -> Tensor:
    """The log-probability of every pick given those before it, ``[R, N]`` (Plackett-Luce).

    ``score - log sum exp`` of the scores that are left, the item's own included.
    """
    picked = scores.gather(1, order)
    return picked - picked.flip(1).logcumsumexp(1).flip(1)
