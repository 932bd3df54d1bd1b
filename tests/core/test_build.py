"""From a recipe to components: weights come from somewhere, or the recipe is refused."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from genrl_core.errors import PluginError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer
from genrl_core.run.bases import cache_folder
from genrl_core.run.policies import build_policy
from genrl_core.run.saving import save
from genrl_core.testing.directions import check_objective
from genrl_core.testing.enumerable import ToyCanvas, ToyCanvasSampler


def no_base(recipe: Recipe) -> NoReturn:
    raise AssertionError(f"{recipe.name} was trained")


def test_weights_that_nobody_loads_are_not_ignored(
    toy_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe("toy_canvas", f"policy.weights={tmp_path / 'nowhere'}")
    with pytest.raises(RecipeError, match=r"policy\.weights: .*nowhere is no folder of a run"):
        build_policy(recipe, Runtime("cpu"), no_base, print)
    monkeypatch.setattr(type(recipe.policy), "loads_weights", True)
    assert build_policy(recipe, Runtime("cpu"), no_base, print).network is not None


def test_adapters_without_their_run_are_no_weights_to_begin_from(
    toy_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Without what they stand in they are nothing; a list of keys would not say so."""
    name = "layers.0.lora_A.current.weight"
    checkpoint.save(tmp_path, 1, {"policy": {name: torch.zeros(2, 2)}}, {}, 1)
    recipe = toy_recipe("toy_canvas", f"policy.weights={tmp_path}")
    with pytest.raises(RecipeError, match=r"holds adapters alone.*recipe\.resolved\.yaml.*is not"):
        build_policy(recipe, Runtime("cpu"), no_base, print)


@pytest.mark.parametrize(
    ("attribute", "said", "words"),
    [
        ("view", "elbo", "GrpoConfig.view_wanted() declares it"),
        ("view", "steps", "PolicyGradient has an attribute view, which nobody reads"),
        ("view", None, "PolicyGradient has an attribute view, which nobody reads"),
        ("draw_with", "lagging", "GrpoConfig.draws_with() declares it"),
        ("draw_with", "current", "PolicyGradient has an attribute draw_with, which nobody reads"),
    ],
)
def test_an_objective_does_not_say_what_its_config_declares(
    toy_recipe: Callable[..., Recipe], attribute: str, said: str | None, words: str
) -> None:
    """It would be disregarded, by a run and by the checks of plugin authors: both refuse it."""
    recipe = toy_recipe("toy_canvas")
    config = recipe.objective["grpo"]
    built = config.build()
    setattr(built, attribute, said)
    object.__setattr__(config, "build", lambda: built)

    def check() -> None:
        check_objective(config, ToyCanvas(), ToyCanvasSampler(), "steps")

    for believe in (lambda: build_trainer(recipe), check):
        refused = ""
        try:
            believe()
        except PluginError as error:
            refused = str(error)
        assert words in refused
        assert "objective " in refused and "GrpoConfig" in refused
        assert "Leave the attribute out" in refused


TUNED = (
    "arithmetic/mask_grpo", "policy.weights=null", "train.num_prompts=2", "train.num_generations=4",
    "train.learning_rate=0.05", "train.iterations=2", "evaluate.metrics=null", "run.device=cpu",
    "prompts.evaluate=null", "sampler.temperature=0.5",
)  # fmt: skip


def answers(policy: Policy) -> torch.Tensor:
    """What a policy of the sums says of some canvases."""
    prompts = [Prompt("a", "1+2="), Prompt("b", "31+4=")]
    cond = policy.encode(prompts)
    canvas = torch.full((2, 3), policy.mask_code)
    with torch.no_grad():
        found: torch.Tensor = policy.logits(canvas, cond)
    return found


def trained(*words: str) -> tuple[Trainer, Recipe]:
    """A trainer after two iterations whose rewards tell the samples apart."""
    recipe = load_recipe(TUNED[0], [*TUNED[1:], *words])

    class Ones(Reward):
        def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
            return [len(text) + text.count("1") / 2 for text in media.texts]

    trainer = build_trainer(recipe, rewards={"arithmetic_correct": Ones()})
    for _ in range(2):
        trainer.step()
    return trainer, recipe


@pytest.mark.parametrize("adapters", ["null", "{rank: 4}"])
def test_a_run_of_adapters_gives_its_weights_to_a_new_run(tmp_path: Path, adapters: str) -> None:
    """The new policy, with adapters of its own or none, begins with what the first ended with."""
    first, recipe = trained("weights.lora={rank: 4}")
    save(first, recipe, tmp_path)
    (tmp_path / "recipe.resolved.yaml").write_text(recipe.to_yaml())
    wanted = answers(first.parts.policy)
    with first.weight_sets.using("current") as policy, torch.no_grad():
        moved = [p.abs().max() for n, p in policy.network.named_parameters() if ".lora_B" in n]
    assert max(moved) > 1e-3, "adapters that do nothing would prove nothing"
    words = [*TUNED[1:], f"policy.weights={tmp_path}", f"weights.lora={adapters}"]
    try:
        second, refused = build_trainer(load_recipe(TUNED[0], words)), ""
    except RecipeError as error:
        refused = str(error)
    assert not refused
    torch.testing.assert_close(answers(second.parts.policy), wanted, rtol=1e-5, atol=1e-5)


def test_adapters_whose_base_is_another_now_are_refused(tmp_path: Path) -> None:
    first, recipe = trained("weights.lora={rank: 4}")
    first.parts = replace(first.parts, began_with="0" * 64)
    save(first, recipe, tmp_path)
    (tmp_path / "recipe.resolved.yaml").write_text(recipe.to_yaml())
    recipe = load_recipe(TUNED[0], [*TUNED[1:], f"policy.weights={tmp_path}"])
    with pytest.raises(RecipeError, match="the weights under them cannot be rebuilt"):
        build_policy(recipe, Runtime("cpu"), no_base, print)


# The cache of bases

BASE = """\
extends: arithmetic/masked_base
train: {iterations: 2, num_prompts: 4, num_generations: 1}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("GENRL_CACHE", str(folder))
    (tmp_path / "base.yaml").write_text(BASE)
    return folder


def tuned(tmp_path: Path, *words: str) -> tuple[torch.Tensor, list[str]]:
    """What a policy over the cached base says, and what was said while it was made."""
    said: list[str] = []
    weights = f"policy.weights=recipe:{tmp_path / 'base.yaml'}"
    recipe = load_recipe(TUNED[0], [*TUNED[1:], weights, *words])
    failed: Exception | None = None
    try:
        found = answers(build_trainer(recipe, notify=said.append).parts.policy)
    except Exception as error:  # noqa: BLE001  # a base in the cache must not end a run, however
        failed = error
    assert failed is None
    return found, said


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "flipped": lambda whole: whole[:-40] + bytes(255 - byte for byte in whole[-40:]),
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_base_in_the_cache_is_named_and_trained_again(
    cache: Path, tmp_path: Path, kind: str
) -> None:
    wanted, first = tuned(tmp_path)
    assert "pre-training" in first[0]
    (entry,) = cache.glob("*.safetensors")
    whole = entry.read_bytes()
    assert tuned(tmp_path)[1] == [], "a whole one is taken as it is"
    entry.write_bytes(DAMAGE[kind](whole))
    found, said = tuned(tmp_path)
    assert torch.equal(found, wanted) and entry.read_bytes() == whole
    assert str(entry) in said[0] and "trained again" in said[0]


def test_a_base_may_train_adapters(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE + "weights: {lora: {rank: 4}}\n")
    found, _ = tuned(tmp_path)
    recipe = load_recipe(tmp_path / "base.yaml", ["run.device=cpu"])
    trainer = build_trainer(recipe)
    for _ in range(recipe.train.iterations):
        trainer.step()
    torch.testing.assert_close(found, answers(trainer.parts.policy), rtol=1e-5, atol=1e-5)


def test_a_cached_base_has_the_mode_of_the_umask(cache: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tuned(tmp_path)
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in cache.iterdir()}
    assert modes.get(".safetensors") == 0o640
    assert set(modes.values()) == {0o640}


@pytest.mark.parametrize(
    ("own", "shared", "wanted"),
    [
        ("/own", "/scratch", "/own"),
        ("", "/scratch", "/scratch/genrl"),
        ("", "relative", "~/.cache/genrl"),
        ("", "", "~/.cache/genrl"),
    ],
)
def test_where_bases_are_kept(
    monkeypatch: pytest.MonkeyPatch, own: str, shared: str, wanted: str
) -> None:
    monkeypatch.setenv("GENRL_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_folder() == Path(wanted).expanduser()
