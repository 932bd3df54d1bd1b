"""Words for messages: values, names, near misses, and text that cannot steer a terminal."""

import difflib
import unicodedata
from collections.abc import Iterable

_BIDI = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def printable(text: str) -> str:
    """The text without control characters, so that no file can steer a terminal."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # almost always, and quick
        return text
    return "".join(
        "?" if category in ("Cc", "Cs") and c not in "\n\t" else c
        for c, category in ((c, unicodedata.category(c)) for c in text)
        if c not in _BIDI
    )


def format_value(value: object) -> str:
    """A value as a recipe would write it, short enough for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value[:57] + '...' if len(value) > 60 else value!r}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` did you mean `x`?`` with a leading semicolon, or nothing where no name is close."""
    match = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""


def join_names(names: Iterable[str]) -> str:
    """Names for the end of a sentence: ``a, b, c``, or ``none``."""
    return ", ".join(sorted(names)) or "none"
