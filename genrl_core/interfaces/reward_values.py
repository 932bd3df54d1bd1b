"""What a reward gave, checked before anything is computed with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, TypeVar, cast

from genrl_core.errors import GenRLError, RewardError
from genrl_core.interfaces.media import Prompt

T = TypeVar("T")


def ask(what: str, call: Callable[[], T]) -> T:
    """What a reward's method returns; ``what`` begins the message where it fails.

    Raises:
        RewardError: it raised, or asked to leave the process, which must not pass for a success.
    """
    try:
        return call()
    except (GenRLError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"{what} raised {type(error).__name__}: {error}; the run stops, since a failed reward "
            "must not count as a bad sample"
        ) from error


def checked_values(what: str, given: Any, prompts: Sequence[Prompt]) -> list[float | None]:
    """What a reward returned, if it is a number or None per sample.

    Raises:
        RewardError: it is no sequence or array of one axis, has another length than the prompts,
            or holds something that is no real number of a float's range.
    """
    # Of what has keys, no order, or is read once nothing is a sequence; of text and bytes all is.
    array = getattr(given, "ndim", 0) == 1 and hasattr(given, "tolist")
    raw = isinstance(given, str | bytes | bytearray | memoryview)
    if raw or not (array or isinstance(given, Sequence)):
        shape = getattr(given, "shape", None)
        kind = type(given).__name__ + (f" of shape {[*shape]}" if isinstance(shape, tuple) else "")
        raise RewardError(
            f"{what} gave something of type {kind} for {len(prompts)} samples: expected a list, or "
            "an array of one axis, with a number or None for every sample"
        )
    values: Any = ask(what, cast(Any, given).tolist) if array else given
    if len(values) != len(prompts):
        raise RewardError(f"{what} gave {len(values)} values for {len(prompts)} samples")
    return [
        None
        if value is None
        else checked_number(value, what, f" for sample {place}", prompts[place])
        for place, value in enumerate(values)
    ]


def checked_number(value: Any, what: str, where: str, prompt: Prompt | None = None) -> float:
    """A value as a float; array libraries have numbers of their own, without axes."""
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    wrong = "which is no number"
    if not isinstance(plain, bool) and isinstance(plain, Real | Decimal):
        try:
            return float(plain)
        except (OverflowError, ValueError):
            wrong = "which no float can hold"
    asked = f" (prompt {brief(prompt.text)})" if prompt else ""
    raise RewardError(
        f"{what} gave {brief(value)}{where}{asked}, of type {type(plain).__name__}, {wrong}: "
        "expected a number"
    )


def brief(value: object) -> str:
    """A value for a message; an int of thousands of digits refuses to be written out."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # whatever its class does, the message must come
        return "what cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."
