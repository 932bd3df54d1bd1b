"""What of the prompts is not read: found at the start, said once, in batches."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from genrl_core import Media, Prompt, RecipeError, Reward
from genrl_core.recipe.prompts import LISTED, PromptFile, unread
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.run.runner import run
from genrl_core.testing.enumerable import ToyCanvas, ToyReward

Make = Callable[..., Recipe]


def reader(limit: int, *, cut: bool, asked: list[int] | None = None) -> Callable:
    from genrl_core import Reading

    def read(prompts: Sequence[Prompt]) -> list[Reading]:
        if asked is not None:
            asked.append(len(prompts))
        return [Reading([len(p.text) for p in prompts], limit, cut=cut, unit="characters")]

    return read


def test_every_prompt_is_looked_at_once_in_batches_and_few_are_named() -> None:
    prompts = [Prompt(str(i), "x" * (i % 9)) for i in range(100_000)]
    asked: list[int] = []
    problems, cuts = unread(prompts, {"the policy": reader(7, cut=False, asked=asked)})
    assert sum(asked) == len(prompts) and max(asked) <= 1000
    assert not cuts and len(problems) == LISTED + 1
    assert str(problems[0]).startswith("prompt '8': text: has 8 characters, and the policy takes 7")
    assert problems[-1].message == f"and {100_000 // 9 - LISTED:,} more prompts like these"
    problems, [cut] = unread(prompts, {"reward 'r'": reader(7, cut=True)})
    assert not problems and "11111 of 100000 prompts are longer than reward 'r' reads" in cut
    assert "of the text the first 7 characters count" in cut


def test_a_long_text_shows_the_end_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ["short", "b" * 300 + " and a red dog"]
    prompts = [Prompt(*pair) for pair in zip(("a", "b"), rows, strict=True)]
    path.write_text("\n\n".join(json.dumps({"text": p.text, "id": p.id}) for p in prompts))
    _, [cut] = unread(prompts, {"reward 'r'": reader(9, cut=True)}, PromptFile(path).place)
    assert f"The longest has 314, {path}:3: 'bbb" in cut and "and a red dog'" in cut


class ShortSighted(ToyReward):
    """Reads the first characters of a prompt alone."""

    def reading(self, prompts: Sequence[Prompt]) -> list:
        return reader(6, cut=True)(prompts)


class Narrow(ToyCanvas):
    """Takes prompts of eight characters at the most."""

    def reading(self, prompts: Sequence[Prompt]) -> list:
        return reader(8, cut=False)(prompts)


def test_a_run_says_what_its_rewards_cut_off(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and evaluation prompts, in the reward and in the measure; a warning of the run."""
    monkeypatch.setattr(ToyReward, "reading", ShortSighted.reading)
    assert run(toy_recipe("toy_canvas"), tmp_path / "runs", quiet=True) == 0
    [folder] = (tmp_path / "runs").iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = [e["message"] for e in events if e["kind"] == "warning" and e["iteration"] == 0]
    assert len(told) == 2 and len(set(told)) == 2
    for label, text in zip(("reward", "measure"), told, strict=True):
        assert f"5 of 5 prompts are longer than {label} 'toy_reward' reads" in text
        assert "the first 6 characters count, and the rest is cut off" in text


def test_without_a_run_it_is_a_warning_of_python(toy_recipe: Make) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = build_trainer(toy_recipe("toy_canvas"), rewards={"mine": ShortSighted()})
        for _ in range(2):
            trainer.step()
        trainer.evaluate()
    assert len([w for w in caught if "reward 'mine' reads" in str(w.message)]) == 1


def test_a_policy_that_cannot_take_a_prompt_draws_none(toy_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("fits\nis too long\nfits too\nis as long as that\n")
    drawn = []

    class Counting(Narrow):
        def encode(self, prompts: Sequence[Prompt]):
            drawn.append(prompts)
            return super().encode(prompts)

    with pytest.raises(RecipeError) as caught:
        build_trainer(toy_recipe("toy_canvas"), policy=Counting())
    places = [line.split(": ")[0] for line in f"{caught.value}".splitlines()]
    assert [place.rpartition(":")[2] for place in places] == ["2", "4"], "each once"
    assert not drawn


def test_a_function_as_reward_says_nothing(toy_recipe: Make) -> None:
    def one(media: Media, prompts: Sequence[Prompt]) -> list[float]:
        return [float(i) for i in range(len(prompts))]

    assert build_trainer(toy_recipe("toy_canvas"), rewards={"mine": one}).step().iteration == 1
    assert Reward.reading(ToyReward(), []) == ()
