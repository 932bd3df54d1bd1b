"""The world, its prompts and its tokens: all of the grammar, enumerated."""

import json
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from genrl_core import GenRLError, Prompt, RewardError
from genrl_core.recipe.prompts import load_prompts
from genrl_shapes import grammar, prompts, tokens, world
from genrl_shapes.grammar import CATEGORIES, HELD_COLOURS, HELD_COUNTS, HELD_PAIRS
from genrl_shapes.world import COLOURS, RELATIONS, SHAPES, Request, Thing, Wanted

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "recipes" / "shapes" / "prompts"
EVERY = [request for category in CATEGORIES for request in grammar.requests(category)]


def scenes(count, seed=0):
    generator = np.random.default_rng(seed)
    return [[world.scene_of(r, generator.random(8).tolist()) for r in EVERY] for _ in range(count)]


def test_the_entry_module_loads_no_torch():
    code = "import sys, genrl_shapes; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sprites_are_told_apart_with_room():
    """No two overlap as much as the verifier asks for, and each has a pixel on all four sides."""
    found = world.sprites()
    for one, other in combinations(found, 2):
        assert (one & other).sum() / (one | other).sum() < 0.82
    for sprite in found:
        assert sprite[0].any() and sprite[-1].any() and sprite[:, 0].any() and sprite[:, -1].any()


def test_how_many_requests_there_are():
    counts = {category: len(grammar.requests(category)) for category in CATEGORIES}
    assert counts == {
        "single": 4, "two": 12, "counting": 12, "colours": 16, "position": 48, "attribution": 144,
    }  # fmt: skip
    assert len(set(EVERY)) == len({grammar.text_of(r) for r in EVERY}) == 236


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request("single", (Wanted("cross"),)), "a cross"),
        (Request("two", (Wanted("cross"), Wanted("circle"))), "a cross and a circle"),
        (Request("counting", (Wanted("cross"),) * 3), "three crosses"),
        (Request("colours", (Wanted("square", "red"),)), "a red square"),
        (
            Request("position", (Wanted("circle"), Wanted("square")), "left of"),
            "a circle left of a square",
        ),
        (
            Request("attribution", (Wanted("circle", "red"), Wanted("square", "blue"))),
            "a red circle and a blue square",
        ),
    ],
)
def test_texts(request_, text):
    assert grammar.text_of(request_) == text
    assert grammar.request_of(Prompt("x", text)) == request_
    assert grammar.request_of(Prompt("x", f"  {text.upper()} ")) == request_
    asked = Prompt("x", "whatever", columns=grammar.columns_of(request_))
    assert grammar.request_of(asked) == request_


def test_every_text_has_words_of_its_own():
    ids = {tuple(grammar.word_ids(Prompt("x", grammar.text_of(r)))) for r in EVERY}
    assert len(ids) == 236
    assert max(len(i) - i.count(0) for i in ids) == grammar.PREFIX
    used = {word for i in ids for word in i}
    assert used == set(range(len(grammar.VOCABULARY))) - {grammar.VOCABULARY.index("anything")}


def test_what_cannot_be_read_is_named():
    with pytest.raises(GenRLError, match=r"'here'.*the word 'purple', which .* knows anything, a,"):
        grammar.word_ids(Prompt("here", "a purple cross"))
    with pytest.raises(GenRLError, match=r"'here'.* 8 words; the shapes policy reads at most 7"):
        grammar.word_ids(Prompt("here", "a a a a a a a a"))
    with pytest.raises(
        RewardError, match=r"'here'.*write it like 'a red circle and a blue square'"
    ):
        grammar.request_of(Prompt("here", "anything"))
    columns = {"category": "colours", "shapes": ["circle"], "colours": ["pink"], "relation": ""}
    with pytest.raises(RewardError, match=r"'here'.*pink.*python -m genrl_shapes\.prompts"):
        grammar.request_of(Prompt("here", "a red circle", columns=columns))


def test_placements_are_what_a_relation_means():
    """By brute force over rows and columns; 27 of 72 ordered pairs of cells stand so."""
    for relation in RELATIONS:
        expected = set()
        for one, other in product(range(9), repeat=2):
            (y, x), (v, u) = divmod(one, 3), divmod(other, 3)
            if {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[relation]:
                expected.add((one, other))
        assert set(world.placements(relation)) == expected
        assert len(expected) == 27
    assert len(world.placements("")) == 72
    first, near = Thing("circle", "red", 10, 10), Thing("circle", "red", 14.5, 10)
    assert not world.stands("left of", first, near)


def test_scenes_have_what_is_asked_and_no_more():
    for found in scenes(2):
        for request, scene in zip(EVERY, found, strict=True):
            assert [t.shape for t in scene] == [w.shape for w in request.wishes]
            assert len({(t.x, t.y) for t in scene}) == len(scene)
            for thing, wish in zip(scene, request.wishes, strict=True):
                assert wish.colour in (None, thing.colour)
            assert not request.relation or world.stands(request.relation, *scene)


def test_scenes_are_uniform_over_places_and_colours():
    generator = np.random.default_rng(1)
    two = Request("position", (Wanted("circle"), Wanted("square")), "above")
    drawn = [world.scene_of(two, generator.random(8).tolist()) for _ in range(2700)]
    places = {}
    for a, b in drawn:
        key = (a.x, a.y, b.x, b.y)
        places[key] = places.get(key, 0) + 1
    assert len(places) == 27
    assert chisquare(list(places.values())).pvalue > 1e-3
    colours = [COLOURS.index(a.colour) * 4 + COLOURS.index(b.colour) for a, b in drawn]
    assert chisquare(np.bincount(colours, minlength=16)).pvalue > 1e-3
    four = Request("counting", (Wanted("circle"),) * 4)
    cells = [t for _ in range(900) for t in world.scene_of(four, generator.random(8).tolist())]
    counts = np.bincount([int(t.y // 10 * 3 + t.x // 10) for t in cells], minlength=9)
    assert chisquare(counts).pvalue > 1e-3


def test_tokens_are_lossless_on_every_object():
    assert tokens.codebook().shape == (65, 25)
    assert not tokens.codebook()[0].any()
    images = np.stack([world.render(scene) for found in scenes(2, 3) for scene in found])
    codes = tokens.encode(images)
    assert codes.shape == (472, 36)
    assert np.array_equal(tokens.decode(codes), images)
    assert set(np.unique(codes)) == set(range(65))
    shifted = np.roll(images, 1, axis=2)
    with pytest.raises(GenRLError, match="image 0 has a patch"):
        tokens.encode(shifted)


def test_features_say_where_and_in_which_colour():
    found = tokens.features()
    assert found.shape == (65, 29)
    assert len(np.unique(found, axis=0)) == 65
    assert (found[1:, 25:].sum(1) == 1).all() and not found[0].any()


def rows_of(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def test_the_prompt_files_are_what_the_command_writes(tmp_path):
    prompts.write(tmp_path / "made")
    made = sorted((tmp_path / "made").iterdir())
    assert [path.stem for path in made] == ["base", "evaluate", "train", "validate"]
    for path in made:
        assert path.read_text() == (FOLDER / path.name).read_text()
        assert len(load_prompts(path)) == len(rows_of(path.stem))


@pytest.mark.parametrize(("name", "count"), [("train", 24), ("validate", 12), ("evaluate", 16)])
def test_categories_are_drawn_alike(name, count):
    found = [grammar.request_of(p).category for p in load_prompts(FOLDER / f"{name}.jsonl")]
    assert {category: found.count(category) for category in CATEGORIES} == dict.fromkeys(
        CATEGORIES, count
    )


def test_columns_agree_with_texts():
    for name in ("train", "validate", "evaluate"):
        for prompt in load_prompts(FOLDER / f"{name}.jsonl"):
            assert grammar.request_of(prompt) == grammar.request_of(Prompt("x", prompt.text))


def test_the_base_sees_all_and_reinforcement_learning_never_what_is_held_out():
    texts = {name: {row["text"] for row in rows_of(name)} for name in ("base", *prompts.ROWS)}
    assert texts["base"] == {grammar.text_of(r) for r in EVERY} | {"anything"}
    single = {grammar.text_of(r) for r in grammar.requests("single")}
    assert texts["train"] & texts["validate"] == single
    assert (texts["train"] | texts["validate"]) & texts["evaluate"] == single
    for row in rows_of("train") + rows_of("validate"):
        shapes, colours = row["shapes"], row["colours"]
        assert frozenset(shapes) not in HELD_PAIRS
        assert not {*zip(colours, shapes, strict=True)} & {*HELD_COLOURS}
        assert row["category"] != "counting" or (len(shapes), shapes[0]) not in HELD_COUNTS
    for category in CATEGORIES[1:]:
        held = [row for row in rows_of("evaluate") if row["category"] == category]
        assert all(grammar.is_held_out(grammar.request_of(Prompt("x", r["text"]))) for r in held)
        assert {shape for row in held for shape in row["shapes"]} == set(SHAPES)
