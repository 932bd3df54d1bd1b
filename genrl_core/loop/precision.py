"""Precision: trained numbers are float32, and a network loaded in bfloat16 computes in bfloat16.

bfloat16 holds 8 bits of a number. A weight that is kept in it moves only where a step is above
1/512 of it, and an average of decay .999 never moves; so weights that change are widened, from the
values that loading has rounded them to, and the products alone are made in bfloat16, by autocast.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genrl_core.errors import RecipeError

DRIFT_TOLERANCE: dict[torch.dtype | None, float] = {torch.bfloat16: 1.0}
"""Nats by which an update may score otherwise than the rollout where the recipe is silent; 1e-3 in
any other precision.

Measured in bfloat16 on GPT-2, Llama, Qwen 3 with random weights (2 to 6 layers, 200 symbols, logits
of deviation 1 to 5, all weights or LoRA), 7 rows scored where 32 were drawn, the largest of 1,500
tokens: .01 to .18, and .09 to .57 at guidance 3, which multiplies errors by up to 5; in float32
5e-5. A temperature that a score forgets: .7 shows as 1.4 to 3 nats, and .9 as .3 to 1.1, which this
bound may miss and float32 does not.
"""


def precision_of(network: nn.Module) -> torch.dtype:
    """The lowest precision of the weights, or float32 where there are none.

    Raises:
        RecipeError: float16, in which gradients underflow and activations overflow.
    """
    found = {p.dtype for p in network.parameters() if p.is_floating_point()} or {torch.float32}
    if torch.float16 in found:
        raise RecipeError(
            f"{type(network).__name__} holds weights in float16, whose range is too small for "
            "gradients without a scale: load them in bfloat16, which has that of float32"
        )
    return min(found, key=lambda dtype: dtype.itemsize)


def widen(network: nn.Module, trained: Iterable[Tensor]) -> None:
    """Make ``trained`` parameters float32 where they stand, with the values that they have.

    So become the other numbers of the modules that own them: a norm takes no mixture.
    """
    wanted = {id(parameter) for parameter in trained}
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if wanted.isdisjoint(map(id, own)):
            continue
        for tensor in (*own, *module.buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize:
                tensor.data = tensor.data.float()


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Let every call of the network, and of its copies, run under autocast to ``dtype``.

    Its class becomes a subclass, since a function of the instance would run the original in a copy.
    Casts are not cached: neither a step nor another weight set may find those of other weights.
    """
    kind: Any = type(network)

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        device = next(self.parameters()).device.type
        with torch.autocast(device, dtype, cache_enabled=False):
            return kind.__call__(self, *arguments, **named)

    own = {"__call__": call, "__module__": kind.__module__}
    network.__class__ = type(kind.__name__, (kind,), own)
