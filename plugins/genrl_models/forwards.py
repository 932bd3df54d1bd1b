"""What the forward of a model takes, asked for in one place: libraries rename their arguments."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from genrl_core import GenRLError

_CACHE = ("cache", "past_key_values", "cache_params")
"""transformers calls it cache from 5.24 on, before that by what it holds."""


def forward_arguments(
    forward: Callable[..., Any], needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str]:
    """The name under which a forward takes each argument, and returns what it gives back of it.

    Only parameters that it names count: ``**kwargs`` takes everything and may use none of it.

    Args:
        forward: of a model or a layer of transformers.
        needed: arguments without which a call would be another one; ``cache`` stands for what is
            kept of earlier tokens, whatever the installed version calls it.
        optional: arguments that the caller can do without, and says so here.

    Returns:
        Asked name to its own; optional arguments that it does not take are absent.

    Raises:
        GenRLError: it does not take a needed one.
    """
    named = inspect.signature(forward).parameters
    found = {}
    for asked in (*needed, *optional):
        names = _CACHE if asked == "cache" else (asked,)
        if own := next((name for name in names if name in named), ""):
            found[asked] = own
        elif asked in needed:
            raise GenRLError(
                f"{getattr(forward, '__qualname__', forward)} takes no argument "
                f"{' or '.join(names)}, which GenRL hands it: choose another model, or install the "
                "version of its library that GenRL was tested with (constraints.txt)"
            )
    return found
