"""The prompts: six categories, a closed vocabulary, and compositions held out of RL.

Categories follow GenEval (arXiv 2310.11513). As there, only ``colours`` and ``attribution`` name
colours. Loads no torch.
"""

from functools import cache
from itertools import combinations, permutations, product
from typing import Any

from genrl_core import GenRLError, Prompt, RewardError
from genrl_shapes.world import COLOURS, RELATIONS, SHAPES, Request, Wanted

CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
NUMBERS = {2: "two", 3: "three", 4: "four"}
ANYTHING = "anything"
"""The prompt that asks for nothing in particular, and the unconditional side of guidance."""

PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
VOCABULARY = (
    "", ANYTHING, "a", "and", "of", "left", "right", "above", "below",
    *NUMBERS.values(), *COLOURS, *SHAPES, *PLURALS.values(),
)  # fmt: skip
"""Word ids in order; id 0 is the padding."""
PREFIX = 7
"""L, how many words a prompt may have."""

HELD_PAIRS = (frozenset({"circle", "triangle"}), frozenset({"square", "cross"}))
"""Pairs of shapes that RL never sees in one prompt; every shape stands in one."""
HELD_COLOURS = tuple(zip(COLOURS, SHAPES, strict=True))
"""Coloured shapes that RL never sees: one of each colour and of each shape."""
HELD_COUNTS = tuple(zip((2, 3, 4, 2), SHAPES, strict=True))
"""Numbers of shapes that RL never sees, one of each shape."""


def text_of(request: Request) -> str:
    """The prompt of a request, such as ``a red circle and a blue square``."""
    if request.category == "counting":
        return f"{NUMBERS[len(request.wishes)]} {PLURALS[request.wishes[0].shape]}"
    named = (f"a {w.colour} {w.shape}" if w.colour else f"a {w.shape}" for w in request.wishes)
    return f" {request.relation or 'and'} ".join(named)


@cache
def requests(category: str) -> tuple[Request, ...]:
    """Every request of a category, in a fixed order."""
    pairs = list(permutations(SHAPES, 2))
    wishes: dict[str, list[tuple[Wanted, ...]]] = {
        "single": [(Wanted(s),) for s in SHAPES],
        "two": [(Wanted(a), Wanted(b)) for a, b in pairs],
        "counting": [(Wanted(s),) * n for s, n in product(SHAPES, NUMBERS)],
        "colours": [(Wanted(s, c),) for s, c in product(SHAPES, COLOURS)],
        "attribution": [
            (Wanted(a, c), Wanted(b, d))
            for (a, b), (c, d) in product(pairs, permutations(COLOURS, 2))
        ],
    }
    if category == "position":
        related = product(wishes["two"], RELATIONS)
        return tuple(Request(category, found, relation) for found, relation in related)
    return tuple(Request(category, found) for found in wishes[category])


def is_held_out(request: Request) -> bool:
    """Whether a composition of the request is one that RL never sees; none is for ``single``."""
    shapes = [wish.shape for wish in request.wishes]
    if request.category == "counting":
        return (len(shapes), shapes[0]) in HELD_COUNTS
    coloured = any((wish.colour, wish.shape) in HELD_COLOURS for wish in request.wishes)
    return coloured or any(frozenset(pair) in HELD_PAIRS for pair in combinations(shapes, 2))


def columns_of(request: Request) -> dict[str, Any]:
    """A request as the columns of a prompt file."""
    return {
        "category": request.category,
        "shapes": [wish.shape for wish in request.wishes],
        "colours": [wish.colour for wish in request.wishes],
        "relation": request.relation,
    }


def request_of(prompt: Prompt) -> Request:
    """What a prompt asks for: by its columns, or by its text where it has no ``category``.

    Raises:
        RewardError: the columns hold something else, or the text is none of this grammar.
    """
    given = prompt.columns
    if "category" not in given:
        found = _by_text().get(" ".join(prompt.text.lower().split()))
        if found is None:
            raise RewardError(
                f"{_name(prompt)} asks for nothing that the shapes verifier can see: write it like "
                "'a red circle and a blue square', 'three crosses' or 'a circle left of a square', "
                "or give it the columns category, shapes, colours and relation"
            )
        return found
    found = _by_columns().get(_key(given))
    if found is None:
        wanted = {name: given.get(name) for name in ("category", "shapes", "colours", "relation")}
        raise RewardError(
            f"{_name(prompt)} has the columns {wanted}, which are no request of the shapes world; "
            "write prompt files with `python -m genrl_shapes.prompts FOLDER`"
        )
    return found


def word_ids(prompt: Prompt) -> list[int]:
    """The words of a prompt, padded with 0 to length L.

    Raises:
        GenRLError: a word is not in the vocabulary, or there are more than L words.
    """
    words = prompt.text.lower().split()
    for word in words:
        if word not in VOCABULARY:
            raise GenRLError(
                f"{_name(prompt)} has the word {word!r}, which the shapes policy does not know; it "
                f"knows {', '.join(VOCABULARY[1:])}"
            )
    if len(words) > PREFIX:
        raise GenRLError(
            f"{_name(prompt)} has {len(words)} words; the shapes policy reads at most {PREFIX}"
        )
    return [VOCABULARY.index(word) for word in words] + [0] * (PREFIX - len(words))


@cache
def _by_text() -> dict[str, Request]:
    return {text_of(r): r for category in CATEGORIES for r in requests(category)}


@cache
def _by_columns() -> dict[str, Request]:
    return {_key(columns_of(r)): r for r in _by_text().values()}


def _key(columns: Any) -> str:
    return repr([columns.get(name) for name in ("category", "shapes", "colours", "relation")])


def _name(prompt: Prompt) -> str:
    return f"prompt {prompt.id!r} ({prompt.text!r})"
