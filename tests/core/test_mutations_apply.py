"""The list of `tests/mutations.py` fits the code as it is; the command itself runs elsewhere."""

from dataclasses import replace
from types import ModuleType

import pytest
from programs import TESTS, load

ROOT = TESTS.parent


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    return load("mutations")


def test_every_mutation_applies_and_names_a_test(mutations: ModuleType) -> None:
    assert len(mutations.MUTATIONS) > 40
    assert list(mutations.problems(mutations.MUTATIONS, ROOT)) == []


def test_a_list_that_rots_is_noticed(mutations: ModuleType) -> None:
    sound = mutations.MUTATIONS[0]
    rotten = {
        "stands 0 times": replace(sound, old="no such text"),
        "times in": replace(sound, old="return"),
        "is no Python": replace(sound, new="return ("),
        "there is no test": replace(sound, test=sound.test + "_at_all"),
    }
    for message, mutation in rotten.items():
        (found,) = mutations.problems([mutation], ROOT)
        assert message in found
    assert "two mutations are called" in next(mutations.problems([sound, sound], ROOT))


def test_only_a_failure_of_the_named_test_counts(mutations: ModuleType) -> None:
    sound = mutations.MUTATIONS[0]

    def why(code: int | None, ended: dict[str, list[str]], error: str = "") -> str:
        run = mutations.Run(code, ended, 1.0, "")
        return str(mutations.survived(replace(sound, error=error), run))

    broken, other = ["NameError", "Exception"], "tests/other.py::test_it"
    assert why(1, {f"{sound.test}[p1]": ["AssertionError", "Exception"]}) == ""
    assert why(1, {sound.test: ["GenRLError", "Exception"]}, "GenRLError") == ""
    assert why(0, {sound.test: []}).startswith("SURVIVED")
    for code, ended in (
        (1, {sound.test: broken}), (1, {other: ["AssertionError"]}), (2, {}), (None, {}),
        (1, {f"{sound.test}_longer": ["AssertionError"]}),
    ):  # fmt: skip
        assert why(code, ended).startswith("UNCLEAR")
