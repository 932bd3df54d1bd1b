"""The recipes of Show-o and aMUSEd as they stand, on tiny random models in the published layouts.

Overrides swap in the checkpoints and make the runs short, nothing else: what is loaded, drawn,
judged and trained goes the way of the real run.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from genrl_core.loop import evaluate as evaluation
from genrl_core.loop.advantage import advantages
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.run import runner, sampling
from genrl_core.run.assembly import build_trainer

# The builders of those tests, and two of their fixtures.
from ..plugins.amused.conftest import VOCABULARY  # noqa: TID252
from ..plugins.amused.conftest import published as amused  # noqa: F401, TID252
from ..plugins.showo.conftest import LENGTH  # noqa: TID252
from ..plugins.showo.conftest import published as showo  # noqa: F401, TID252

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import showo_cost  # noqa: E402

RECIPES = sorted((ROOT / "recipes" / "masked").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]
WANTED = {
    "showo", "showo_mask_grpo", "showo_mask_grpo_lora", "showo_256_mask_grpo",
    "showo_mask_grpo_paper", "showo_mask_grpo_released", "amused_mask_grpo",
    *(f"showo_mask_grpo_paper_{change}" for change in (
        "ar", "p2", "kl", "no_filter", "computational_reduction", "unmasking_reduction",
    )),
    *(f"showo_{peer}" for peer in (
        "unigrpo", "diffu_grpo", "coupled_grpo", "maskgrpo", "tracerl",
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights as transformers saves it, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("clip")
    settings = CLIPConfig(
        text_config={
            "vocab_size": len(VOCABULARY), "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 77,
            "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53,
        },
        vision_config={
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(settings).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def shortened(name: str, models: dict[str, Path], *more: str) -> Recipe:
    """The recipe on tiny models: fewer prompts, samples, steps and updates, a visible rate."""
    recipe = load_recipe(f"masked/{name}")
    kind = type(recipe.policy).__name__.removesuffix("Config").lower()
    given = [
        f"policy.weights={models[kind]}", f"reward.clip_score.weights={models['clip']}",
        "evaluate.metrics=null", "sampler.num_inference_steps=4", "train.num_prompts=2",
        "train.num_generations=3", f"train.num_updates={min(recipe.train.num_updates, 2)}",
        "train.iterations=1", "train.learning_rate=1e-3", "train.warmup_steps=0",
        "train.micro_batch_size=5", "run.threads=1", "run.device=cpu",
    ]  # fmt: skip
    if recipe.train.steps.count is not None:
        given.append("train.steps.count=2")
    if kind == "showo":
        given += [f"policy.image_tokenizer={models['image']}", f"policy.max_text_tokens={LENGTH}"]
    return recipe.with_overrides(*given, *more)


@pytest.fixture(scope="module")
def models(showo: dict[str, Path], amused: Path, clip: Path) -> dict[str, Path]:  # noqa: F811
    return {"showo": showo["showo"], "image": showo["image"], "amused": amused, "clip": clip}


def test_the_recipes_are_all_there_and_short() -> None:
    assert set(NAMES) == WANTED
    for path in RECIPES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 25, path
        assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(lines[:2])), path


def test_check_passes_without_weights_or_a_network(tmp_path: Path) -> None:
    """As it stands, offline, with empty caches: nothing is loaded to say that a recipe is right."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "genrl_core", "check",
         *(f"masked/{name}" for name in NAMES)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") >= len(NAMES)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in loaded
    assert not {"torch", "transformers", "diffusers"} & loaded
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains(name: str, models: dict[str, Path]) -> None:
    """An iteration in float32: finite, no drift, and only what should moves."""
    precise = ["train.drift_tolerance=1e-4"]
    if name != "amused_mask_grpo":
        precise.append("policy.precision=float32")
    trainer = build_trainer(shortened(name, models, *precise))
    before = {n: p.detach().clone() for n, p in trainer.parts.policy.network.named_parameters()}
    record = trainer.step()
    assert record.problem is None
    assert record.metrics.get("drift", 0.0) < 1e-4
    assert 0 < record.metrics["grad_norm"] < 1e6
    assert abs(record.metrics["loss"]) < 1e6
    assert record.metrics["spread"] > 0
    moved = {
        n
        for n, p in trainer.parts.policy.network.named_parameters()
        if not torch.equal(p, before[n])
    }
    assert moved and moved <= set(trainer.weight_sets.trainable)
    assert all(("lora_" in n) == name.endswith("_lora") for n in moved)


def test_bfloat16_drifts_far_less_than_is_allowed(models: dict[str, Path]) -> None:
    """In the recipe's own precision, also where the rows of an update are no rollout's."""
    recipe = shortened("showo_mask_grpo_paper", models)
    assert recipe.policy.precision == "bfloat16"  # type: ignore[union-attr]
    assert recipe.train.drift_tolerance == 1.0
    trainer = build_trainer(recipe)
    assert trainer.parts.policy.precision == torch.bfloat16, (
        "which decides where a recipe is silent"
    )
    record = trainer.step()
    assert record.problem is None
    assert 0 < record.metrics["drift"] < 0.2
    assert recipe.evaluate.sampler == {"num_inference_steps": 50, "guidance_scale": 6.0}
    found = trainer.evaluate(num_inference_steps=2)  # under guidance, on all held-out prompts
    assert len(found.prompts) == 120
    assert abs(found.metrics["reward/clip_score"]) < 101


def test_the_untouched_base_is_measured_by_a_run_of_no_iterations(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As recipes/README.md says, with one's own prompts; a long evaluation says how far it is."""
    monkeypatch.setattr(evaluation, "REPORT_SECONDS", 0.0)
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a red cube\n\na blue ball and a small cat\na dog\n")
    recipe = shortened(
        "showo_mask_grpo_paper", models, "train.iterations=0", f"prompts.file={prompts}",
        f"prompts.evaluate={prompts}", "evaluate.sampler.num_inference_steps=2", "run.name=base",
        "train.rollout_batch_size=2",
    )  # fmt: skip
    assert runner.run(recipe, tmp_path / "runs") == 0
    folder = tmp_path / "runs" / "base"
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results.keys() == {"before", "seconds"}
    assert results["before"].keys() == {"title", "reward/clip_score"}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"loading masked/showo_mask_grpo_paper; run folder: {folder}"
    assert [line[:42] for line in said[1:3]] == [
        "evaluation: 2 of 3 samples drawn in 0 s", "evaluation: 3 of 3 samples drawn in 0 s",
    ]  # fmt: skip
    assert said[3].startswith("base: reward/clip_score ")
    assert (folder / "before_after.png").stat().st_size > 1_000
    drawn = (folder / "samples/iter_000000/index.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in drawn] == [
        "a red cube", "a blue ball and a small cat", "a dog",
    ]  # fmt: skip


def test_a_run_and_its_checkpoint_serve_as_weights_again(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A run with its base, or its checkpoint as a published file; samples need no reward."""
    few = tmp_path / "mine.txt"
    few.write_text("a red cube\n")
    recipe = shortened(
        "showo_mask_grpo_paper", models, f"prompts.file={few}", f"prompts.evaluate={few}",
        "run.name=tuned", "evaluate.sampler.num_inference_steps=2", "train.num_prompts=1",
    )  # fmt: skip
    assert runner.run(recipe, tmp_path) == 0
    saved = next((tmp_path / "tuned").glob("checkpoints/step_*")) / "policy.safetensors"
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(models["showo"] / "config.json", published)
    shutil.copy(saved, published / "pytorch_model.safetensors")
    file = [f"policy.weights={published}"]
    based = [f"policy.weights={tmp_path / 'tuned'}", f"policy.base={models['showo']}"]
    unpaid = recipe.with_overrides("reward.clip_score.weights=nobody/nothing")
    pictures = []
    for more in (file, based):
        source = tmp_path / f"{len(pictures)}.yaml"
        source.write_text(unpaid.with_overrides(*more).to_yaml())
        pictures.append(sampling.sample(source, ["a red cube"], 2, source.with_suffix(".png")))
    drawn = sampling.sample(tmp_path / "tuned", ["a red cube"], 2, tmp_path / "drawn.png")
    images = [_below_titles(path) for path in (*pictures, drawn)]
    assert images[0] == images[1] == images[2]
    fresh = sampling.sample(
        recipe_file(recipe, tmp_path), ["a red cube"], 2, tmp_path / "fresh.png"
    )
    assert _below_titles(fresh) != images[0]


def recipe_file(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    return path


def _below_titles(path: Path) -> bytes:
    """The samples of a sheet; its titles say where they come from."""
    with Image.open(path) as page:
        return page.crop((0, 80, page.width, page.height)).tobytes()


def test_advantages_are_the_papers(models: dict[str, Path]) -> None:
    """Divided by the group's unbiased deviation and 1e-4, with CLIP's logits as they are."""
    recipe = load_recipe("masked/showo_mask_grpo_paper")
    reward = torch.tensor([30.0, 31.0, 33.0, 30.5, 29.0, 32.0], dtype=torch.float64)
    group, valid = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.bool)
    found = advantages(recipe.advantage, reward, valid, group)
    expected = (reward - reward.mean()) / (statistics.stdev(reward.tolist()) + 1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert recipe.reward["clip_score"].scale == "logits"  # type: ignore[attr-defined]


COUNTS = json.loads(showo_cost.FIGURES.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_cost_is_the_derived_one(name: str) -> None:
    """``python tests/benchmarks/showo_cost.py --write`` states it anew."""
    expected = showo_cost.cost_of(load_recipe(f"masked/{name}"), COUNTS).comment()
    assert expected in (ROOT / "recipes" / "masked" / f"{name}.yaml").read_text()


def test_the_table_of_costs_is_the_derived_one() -> None:
    begin, end = showo_cost.BETWEEN
    text = showo_cost.README.read_text()
    assert begin + showo_cost.table(COUNTS) + end in text


def test_the_products_are_those_of_the_formula() -> None:
    """By hand: 12 width^2 weights a layer and position, and the scores and sums of attention."""
    count = showo_cost.Counted(**COUNTS["showo 1024, p1 drawn by 24, p1 updated by 24"])
    width, layers, image, prefix = 2048, 24, 1026, 129
    scores = 4 * image * (image + prefix) * width
    assert count.parameters == count.trained == 1_448_176_770
    drawn = layers * (2 * image * 12 * width**2 + scores)
    assert count.draw_flops["bfloat16"] == pytest.approx(drawn, rel=1e-3)
    assert count.draw_flops["float32"] == 2 * 1024 * width * 8192
    assert count.update_flops["float32"] == 3 * count.draw_flops["float32"]
    # Once forwards, twice backwards, and once again but for the last third, whose output nobody
    # needs; the prompts of four groups among 24 rows; attention's backward pass has 5 products.
    rows = image + prefix * 4 / 24
    update = layers * ((4 - 1 / 3) * 2 * rows * 12 * width**2 + (2 + 2.5) * scores)
    assert count.update_flops["bfloat16"] == pytest.approx(update, rel=0.01)


@pytest.mark.parametrize("name", showo_cost.SMALL)
def test_two_layers_counted_again_cost_the_same(name: str) -> None:
    """Else the counts are of another program: run ``showo_cost.py --derive --write``."""
    known = showo_cost.Counted(**COUNTS[f"small {name}"])
    found = showo_cost.small(name)
    assert found.parameters == known.parameters
    assert found.update_flops == pytest.approx(known.update_flops, rel=0.1)
    assert found.draw_flops == pytest.approx(known.draw_flops, rel=0.1)
    assert found.updating == pytest.approx(known.updating, rel=0.25)
    assert found.drawing == pytest.approx(known.drawing, rel=0.25)
