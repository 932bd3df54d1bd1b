"""Prompts that a policy cannot take are found with the recipe, before anything is built."""

from pathlib import Path

import pytest

from genrl_core import load_recipe
from genrl_core.recipe.check import find_problems
from genrl_core.recipe.prompts import load_prompts


@pytest.mark.parametrize(
    ("recipe", "bad", "said"),
    [
        ("digits/mask_grpo", ("a purple three", "a b c d e"), "has the word 'purple'"),
        ("digits/grpo", ("a purple three",), "has the word 'purple'"),
        ("digits/flow_grpo", ("by by by by by three",), "has 6 words"),
        ("digits/ddpo", ("three?",), "has the word 'three?'"),
        ("shapes/mask_grpo", ("two red squares in the snow",), "has the word 'in'"),
        ("arithmetic/grpo", ("1+1",), "is no sum"),
        ("arithmetic/mask_grpo", ("100+100=", "2*3="), "has 8 characters"),
    ],
)
def test_prompts_that_the_policy_cannot_take_are_found_before_anything_is_built(
    tmp_path: Path, recipe: str, bad: tuple[str, ...], said: str
) -> None:
    """Each by file and line: the first step that draws it would be late to learn of it."""
    given = load_recipe(recipe)
    good = load_prompts(given.prompts.file)[0].text
    assert not find_problems(given)
    path = tmp_path / "mine.txt"
    path.write_text("\n".join([good, *bad]) + "\n")
    off = ("prompts.evaluate=null", "evaluate.metrics=null", "evaluate.every=0")
    problems = find_problems(given.with_overrides(f"prompts.file={path}", *off))
    places = [problem.place for problem in problems if not problem.path]
    wrong = [f"{path}:{line}" for line in range(2, 2 + len(bad))]
    assert places == wrong, problems
    assert any(said in problem.message for problem in problems)
    path.write_text("\n".join([good, *[bad[0]] * 30]) + "\n")
    problems = find_problems(given.with_overrides(f"prompts.file={path}", *off))
    assert any("and 10 more prompts like these" in problem.message for problem in problems)
