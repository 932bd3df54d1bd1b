"""The masked shapes policy, its data and its recipes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import binomtest, chisquare

from genrl_core import Capability, Media, Plan, Prompt, RecipeError, Reward, load_recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import check_sampler
from genrl_masked import ConfidenceConfig
from genrl_shapes import (
    SHIPPED,
    ShapesDataConfig,
    ShapesMaskedConfig,
    ShapesVerifierConfig,
    bases,
    grammar,
    tokens,
    verifier,
    world,
)
from genrl_shapes.bases import FOLDER, RECIPE, shipped

ROOT = Path(__file__).parents[3]
PROMPTS = [
    Prompt("a", "a cross"),
    Prompt("b", "a red circle and a blue square"),
    Prompt("c", "a circle left of a square"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy():
    return ShapesMaskedConfig().build()


def plan_of(prompts, samples, seed=0):
    group = torch.arange(len(prompts)).repeat_interleave(samples)
    return Plan(seed, 0, 0, tuple(prompts), group, torch.arange(samples).repeat(len(prompts)))


def test_size_and_capabilities(policy):
    assert sum(p.numel() for p in policy.network.parameters()) == SIZE
    assert ShapesMaskedConfig().provides() == {
        Capability.ELBO, Capability.DENOISING, Capability.IMAGE,
    }  # fmt: skip
    assert (policy.num_tokens, policy.codebook_size) == (36, 65)
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.network.modules())
    with pytest.raises(ValidationError, match="width 30 is not a multiple of heads 4"):
        ShapesMaskedConfig(width=30)


SIZE = 183_809
"""Parameters, as the config's docstring says."""


def test_building_is_deterministic_and_leaves_the_global_generator_alone(policy):
    state = torch.get_rng_state()
    other = ShapesMaskedConfig().build().network
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in other.modules())
    for name, tensor in policy.network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert "features" not in other.state_dict()  # made from the world, not from a file


def test_what_changes_anywhere_changes_the_logits_everywhere(policy):
    cond = policy.encode(PROMPTS[2:])
    canvas = torch.full((1, 36), policy.mask_code)
    before = policy.logits(canvas, cond)
    assert before.shape == (1, 36, 65) and before.dtype == torch.float32
    changed = canvas.clone()
    changed[0, 7] = 3
    assert (policy.logits(changed, cond) - before).abs().amax(-1).min() > 1e-4
    other = policy.encode([Prompt("x", "a square left of a circle")])
    assert (policy.logits(canvas, other) - before).abs().amax(-1).min() > 1e-4


def test_a_cell_is_a_row_and_a_column(policy):
    """Positions are sums, all 36 of them different."""
    found = (policy.network.rows + policy.network.columns).flatten(0, 1)
    assert found.shape == (36, 64)
    assert torch.cdist(found, found).fill_diagonal_(1).min() > 1e-2


def test_the_unconditional_and_the_hidden_prompt(policy):
    cond = policy.encode(PROMPTS)
    anything = policy.encode([Prompt("x", "anything")])["words"]
    assert torch.equal(policy.unconditional(cond)["words"], anything.expand(3, -1))
    hidden = policy.mask_prompt(cond, torch.tensor([[True] + [False] * 6]).expand(3, -1))["words"]
    assert (hidden[:, 0] == 0).all() and torch.equal(hidden[:, 1:], cond["words"][:, 1:])


@pytest.mark.parametrize("transition", ["p1", "p2"])
def test_conformance(policy, transition):
    sampler = ConfidenceConfig(num_inference_steps=4, transition=transition, guidance_scale=2.0)
    check_sampler(policy, sampler.build(), PROMPTS, samples=4, tolerance=1e-5)


def test_data_show_what_is_asked_and_decode_to_themselves(policy):
    asked = [
        Prompt(str(i), grammar.text_of(r))
        for i, category in enumerate(grammar.CATEGORIES)
        for r in grammar.requests(category)
    ]
    plan = plan_of([Prompt(f"{i}", p.text) for i, p in enumerate(asked)], 2)
    cond = policy.encode(plan.sample_prompts())
    drawn = ShapesDataConfig().build().rollout(policy, cond, plan)
    assert drawn.terms.num_evals == 0
    media = policy.decode(drawn.final)
    strict = ShapesVerifierConfig(form="strict").build()
    assert all(strict(media, plan.sample_prompts()))
    again = ShapesDataConfig().build().examples(plan)
    assert np.array_equal(tokens.decode(drawn.final["tokens"].numpy()), again)
    assert not np.array_equal(again[0::2], again[1::2])


def test_anything_is_of_any_category():
    plan = plan_of([Prompt("x", "anything")], 1200)
    images = ShapesDataConfig().build().examples(plan)
    counts = np.bincount([len(seen.things) for seen in verifier.see(images)], minlength=5)
    # Objects: one in single and colours, two in three categories; a third of counting has each.
    expected = np.array([2, 3 + 1 / 3, 1 / 3, 1 / 3]) / 6 * 1200
    assert counts[0] == 0 and chisquare(counts[1:], expected).pvalue > 1e-3


def test_some_captions_are_of_another_scene():
    """With probability c the scene is a random one of the category, n in all of which the prompted
    one is one: a caption is right with probability ``1 - c (1 - 1 / n)``.
    """
    prompts = [Prompt("x", "a red square"), Prompt("y", "three crosses")]
    plan = plan_of(prompts, 1500)
    images = ShapesDataConfig(caption_noise=0.4).build().examples(plan)
    strict = ShapesVerifierConfig(form="strict").build()
    media = Media("image", torch.from_numpy(tokens.to_rgb(images)))
    right = np.array(strict(media, plan.sample_prompts())).reshape(2, 1500).sum(1)
    for count, category in zip(right.tolist(), ("colours", "counting"), strict=True):
        others = 1 - 1 / len(grammar.requests(category))
        assert binomtest(int(count), 1500, 1 - 0.4 * others).pvalue > 1e-3
    shown = [len(seen.things) for seen in verifier.see(images)]
    assert set(shown[:1500]) == {1} and set(shown[1500:]) == {2, 3, 4}


def test_data_are_for_the_policies_of_this_world():
    plan = plan_of(PROMPTS, 1)
    with pytest.raises(RecipeError, match="a policy of genrl_shapes"):
        ShapesDataConfig().build().rollout(object(), {}, plan)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_base_is_what_its_recipe_trains(name):
    """The header holds the digest of the recipe as it stands: who changes it must train anew."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    recipe = load_recipe(RECIPE, [f"run.seed={name[-1]}", "run.device=cpu"])
    assert header == {"seed": name[-1], "recipe": recipe.digest()}
    network = ShapesMaskedConfig(weights=name).build().network
    for key, tensor in shipped(name).items():
        assert torch.equal(network.state_dict()[key], tensor) and tensor.dtype == torch.float32


def test_the_shipped_bases_are_small_and_differ():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    first, second, third = (shipped(name)["words.weight"] for name in SHIPPED)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_pretraining_writes_what_a_policy_loads(tmp_path, monkeypatch):
    """The command's own code, two iterations of it."""
    monkeypatch.setattr(bases, "RECIPE", tmp_path / "short.yaml")
    (tmp_path / "short.yaml").write_text(
        "extends: shapes/masked_base\ntrain: {iterations: 2, num_prompts: 2}\n"
    )
    bases.pretrain(5, tmp_path / "weights" / "base-0.safetensors")
    monkeypatch.setattr(bases, "FOLDER", tmp_path / "weights")
    network = ShapesMaskedConfig(weights="base-0").build().network
    untrained = ShapesMaskedConfig().build().network.state_dict()
    assert any(not torch.equal(t, untrained[key]) for key, t in network.state_dict().items())
    with safe_open(tmp_path / "weights" / "base-0.safetensors", "pt") as file:
        assert file.metadata()["seed"] == "5"


def test_an_unknown_base_is_a_sentence():
    with pytest.raises(ValidationError, match="base-7 is none of base-0, base-1, base-4"):
        ShapesMaskedConfig(weights="base-7")
    with pytest.raises(RecipeError, match="none of the shipped bases base-0, base-1, base-4"):
        ShapesMaskedConfig(weights="elsewhere").build()
    with pytest.raises(RecipeError, match="base-0 does not fit"):
        ShapesMaskedConfig(weights="base-0", width=32).build()


SMALL = ["run.seed=10", "policy.width=32", "policy.layers=2"]


def test_the_base_learns(tmp_path):
    """On two prompts: the cross-entropy falls to about what the free choice of a cell leaves.

    Where one cell in nine is coloured, guessing alike at each of 36 positions costs
    ``36 H(1 / 9) = 12.6`` nats with everything masked, and less with some of it seen.
    """
    file = tmp_path / "two.jsonl"
    file.write_text('{"text": "a red square"}\n{"text": "a blue cross"}\n')
    more = [f"prompts.file={file}", "train.iterations=60", "train.num_prompts=2"]
    recipe = load_recipe("shapes/masked_base", [*SMALL, *more, "train.num_generations=8"])
    trainer = build_trainer(recipe)
    losses = [trainer.step().metrics["loss"] for _ in range(60)]
    print(f"loss: {np.mean(losses[:5]):.1f} -> {np.mean(losses[-10:]):.1f}")
    assert np.mean(losses[:5]) > 100
    assert np.mean(losses[-10:]) < 25


class Ink(Reward):
    """The share of coloured pixels, which varies among the images of a policy that knows nothing
    yet; the verifier finds no object in any of them.
    """

    def __call__(self, media, prompts):
        images = verifier.to_palette(verifier.pixels_of(media))
        return (images > 0).mean((1, 2)).tolist()


def test_mask_grpo_trains_on_this_world_and_is_measured_by_category():
    more = ["policy.weights=null", "train.iterations=2", "train.num_prompts=4"]
    more += ["filter.min_std=1e-6", "sampler.num_inference_steps=4"]
    more += ["evaluate.num_generations=1", "evaluate.sampler.num_inference_steps=2"]
    recipe = load_recipe("shapes/mask_grpo", [*SMALL, *more])
    assert recipe.train.num_generations == 8
    trainer = build_trainer(recipe, rewards={"shapes_verifier": Ink()})
    before = {n: p.detach().clone() for n, p in trainer.weight_sets.trainable.items()}
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert record.metrics["drift"] < 1e-5
        assert record.metrics["advantage_std"] > 0
    assert any(not torch.equal(p, before[n]) for n, p in trainer.weight_sets.trainable.items())
    found = trainer.evaluate().metrics
    for measure in ("strict", "judge"):
        assert {measure, *(f"{measure}/{c}" for c in grammar.CATEGORIES)} <= found.keys()


def test_recipes_are_short():
    paths = list((ROOT / "recipes" / "shapes").glob("*.yaml"))
    assert {path.stem for path in paths} >= {"masked_base", "mask_grpo"}
    assert all(len(path.read_text().splitlines()) <= 25 for path in paths)


def test_an_object_is_four_codes_that_agree():
    """Each cell is 2 x 2 tokens; every code but the empty one belongs to one quarter."""
    places = {}
    for shape in world.SHAPES:
        for colour in world.COLOURS:
            (codes,) = tokens.encode(world.render([world.thing_in(0, shape, colour)])[None])
            quarters = codes.reshape(6, 6)[:2, :2].ravel().tolist()
            for place, code in enumerate(quarters):
                places.setdefault(code, set()).add(place)
    assert len(places) == 64 and all(len(found) == 1 for found in places.values())
