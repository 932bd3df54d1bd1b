"""The task itself, in plain Python: what a prompt asks, and its characters."""

import re

from genrl_core import GenRLError, Prompt

DIGITS = "0123456789"
END = len(DIGITS)
"""The symbol that ends an answer, after the ten digits."""
PROMPT_ONLY = "+="
"""Characters of prompts that no answer has; their ids follow END."""
VOCABULARY = len(DIGITS) + 1 + len(PROMPT_ONLY)

_SUM = re.compile(r"\s*([0-9]{1,6})\+([0-9]{1,6})=\s*")


def answer(prompt: Prompt) -> int:
    """The sum that a prompt such as ``12+7=`` asks for.

    Raises:
        GenRLError: the prompt is no such sum.
    """
    found = _SUM.fullmatch(prompt.text)
    if found is None:
        raise GenRLError(
            f"prompt {prompt.id!r} ({prompt.text!r}) is no sum of two numbers such as 12+7="
        )
    return int(found[1]) + int(found[2])


def prompt_ids(prompt: Prompt, longest: int | None = None) -> list[int]:
    """The ids of a prompt's characters.

    Raises:
        GenRLError: the prompt is no sum, or has more than ``longest`` characters.
    """
    answer(prompt)
    symbols = DIGITS + "\0" + PROMPT_ONLY
    found = [symbols.index(character) for character in prompt.text.strip()]
    if longest is not None and len(found) > longest:
        raise GenRLError(
            f"prompt {prompt.id!r} ({prompt.text!r}) has {len(found)} characters; the policy reads "
            f"at most {longest}: raise policy.prompt_length"
        )
    return found
