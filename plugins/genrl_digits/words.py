"""The closed vocabulary of the digit prompts, and which digit a prompt asks for."""

from genrl_core import Prompt, RecipeError, RewardError

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
OTHER_WORDS = ("a", "by", "digit", "drawn", "hand", "handwritten", "of", "picture", "the")
VOCABULARY = ("", *NUMBER_WORDS, *OTHER_WORDS)
"""Word ids in order; id 0 is the padding."""

PREFIX = 4
"""L, how many words a prompt may have."""


def word_ids(prompt: Prompt) -> list[int]:
    """The words of a prompt, padded with 0 to length L; an empty prompt is all padding.

    Raises:
        RecipeError: a word is not in the vocabulary, or there are more than L words.
    """
    words = prompt.text.lower().split()
    for word in words:
        if word not in VOCABULARY:
            raise RecipeError(
                f"{_name(prompt)} has the word {word!r}, which the digit policy does not know; it "
                f"knows {', '.join(VOCABULARY[1:])}"
            )
    if len(words) > PREFIX:
        raise RecipeError(
            f"{_name(prompt)} has {len(words)} words; the digit policy reads at most {PREFIX}"
        )
    return [VOCABULARY.index(word) for word in words] + [0] * (PREFIX - len(words))


def digit_of(prompt: Prompt) -> int:
    """The digit that a prompt asks for: its column ``digit``, else the number word in its text.

    Raises:
        RewardError: the column holds something else, or the text no number word or several.
    """
    if "digit" in prompt.columns:
        given = str(prompt.columns["digit"]).strip()
        if len(given) == 1 and given in "0123456789":
            return int(given)
        raise RewardError(f"{_name(prompt)} has {given!r} in its column digit; expected 0 to 9")
    found = {word for word in prompt.text.lower().split() if word in NUMBER_WORDS}
    if len(found) == 1:
        return NUMBER_WORDS.index(found.pop())
    raise RewardError(
        f"{_name(prompt)} does not say which digit it asks for: give it a column digit (0 to 9), "
        f"or one of the words {', '.join(NUMBER_WORDS)}"
    )


def _name(prompt: Prompt) -> str:
    return f"prompt {prompt.id!r} ({prompt.text!r})"
