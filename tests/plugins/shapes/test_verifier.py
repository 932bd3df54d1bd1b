"""The verifier and the judge on scenes that are right, wrong, broken or noise."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import chisquare, kstest

from genrl_core import Media, Prompt, RewardError
from genrl_shapes import ShapesJudgeConfig, ShapesVerifierConfig, grammar, judge, tokens, verifier
from genrl_shapes.grammar import CATEGORIES
from genrl_shapes.verifier import Seen, dense
from genrl_shapes.world import COLOURS, SHAPES, Thing, render, scene_of, stands, thing_in

EVERY = [request for category in CATEGORIES for request in grammar.requests(category)]
PROMPTS = [Prompt(str(i), grammar.text_of(request)) for i, request in enumerate(EVERY)]


@pytest.fixture(scope="module")
def scenes():
    generator = np.random.default_rng(0)
    return [scene_of(request, generator.random(8).tolist()) for request in EVERY]


@pytest.fixture(scope="module", autouse=True)
def untouched():
    """Trains the judge, and says whether the global generators are where they were."""
    judge.classifier.cache_clear()
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    judge.classifier()
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    return torch.equal(before[0], after[0]) and before[1] == after[1]


def shown(images):
    return Media("image", torch.from_numpy(tokens.to_rgb(np.stack(images))))


def score(images, prompts=PROMPTS, **fields):
    return np.array(ShapesVerifierConfig(**fields).build()(shown(images), prompts))


def both(images, prompts=PROMPTS):
    """Both forms, which agree on what is perfect."""
    dense_, strict = (score(images, prompts, form=form) for form in ("dense", "strict"))
    assert ((dense_ >= 0) & (dense_ <= 1)).all()
    assert np.array_equal(strict, (dense_ == 1).astype(float))
    return dense_, strict


def test_every_request_drawn_as_asked_is_right(scenes):
    _, strict = both([render(scene) for scene in scenes])
    assert strict.all()


def test_what_is_seen_is_what_was_drawn(scenes):
    found = verifier.see(np.stack([render(scene) for scene in scenes]))
    for seen, scene in zip(found, scenes, strict=True):
        assert set(seen.things) == set(scene) and seen.junk == 0


def meets(scene, request):
    """An independent reading of a request: exactly these objects, in some order, that stand so."""
    if len(scene) != len(request.wishes):
        return False
    for order in permutations(scene):
        pairs = list(zip(order, request.wishes, strict=True))
        fits = all(t.shape == w.shape and w.colour in (None, t.colour) for t, w in pairs)
        if fits and (not request.relation or stands(request.relation, *order)):
            return True
    return False


def test_strict_is_right_for_every_scene_and_every_request(scenes):
    """All 236 scenes against all 236 requests: 55,696 verdicts."""
    for scene in scenes:
        seen = Seen(tuple(scene))
        for request in EVERY:
            assert (dense(seen, request) == 1) == meets(scene, request)


def test_perturbed_scenes_are_wrong(scenes):
    """One object more, one fewer, another shape, another colour where asked: by category."""
    for category in CATEGORIES:
        rows = [i for i, request in enumerate(EVERY) if request.category == category]
        asked = [PROMPTS[i] for i in rows]
        for change in (with_one_more, with_one_fewer, with_another_shape):
            dense_, strict = both([render(change(scenes[i])) for i in rows], asked)
            assert not strict.any(), (category, change.__name__)
            assert (dense_ < 1).all()
        _, strict = both([render(with_another_colour(scenes[i])) for i in rows], asked)
        assert strict.all() == (category not in ("colours", "attribution"))
        assert strict.any() == strict.all()


def with_one_more(scene):
    taken = {(thing.x, thing.y) for thing in scene}
    free = [c for c in range(9) if (t := thing_in(c, "circle", "red")) and (t.x, t.y) not in taken]
    return [*scene, thing_in(free[0], scene[0].shape, scene[0].colour)]


def with_one_fewer(scene):
    return scene[1:]


def with_another_shape(scene):
    first = scene[0]
    present = {thing.shape for thing in scene}
    other = next(shape for shape in SHAPES if shape not in present)
    return [Thing(other, first.colour, first.x, first.y), *scene[1:]]


def with_another_colour(scene):
    first = scene[0]
    other = COLOURS[(COLOURS.index(first.colour) + 1) % 4]
    return [Thing(first.shape, other, first.x, first.y), *scene[1:]]


@pytest.mark.parametrize("category", ["position", "attribution"])
def test_exchanged_objects_are_wrong(scenes, category):
    rows = [i for i, request in enumerate(EVERY) if request.category == category]
    images = []
    for i in rows:
        a, b = scenes[i]
        images.append(
            render([Thing(b.shape, a.colour, a.x, a.y), Thing(a.shape, b.colour, b.x, b.y)])
        )
    dense_, strict = both(images, [PROMPTS[i] for i in rows])
    assert not strict.any()
    # Both objects without the relation are 2 of 3 parts; four attributes that fit in half, 1 of 2.
    assert np.allclose(dense_, 2 / 3 if category == "position" else 1 / 2)


def test_one_wrong_code_is_seen(scenes):
    """Any other code at any place."""
    generator = np.random.default_rng(1)
    codes = tokens.encode(np.stack([render(scene) for scene in scenes]))
    for row in codes:
        place = generator.integers(36)
        row[place] = (row[place] + generator.integers(1, 65)) % 65
    dense_, strict = both(list(tokens.decode(codes)), PROMPTS)
    assert not strict.any() and dense_.mean() > 0.6


def test_dense_values_by_hand():
    cross, circle = thing_in(0, "cross", "red"), thing_in(5, "circle", "blue")
    ask = {text: grammar.request_of(Prompt("x", text)) for text in (
        "a cross", "a cross and a circle", "three crosses", "a blue cross",
        "a cross left of a circle", "a cross right of a circle", "a red circle and a blue cross",
    )}  # fmt: skip
    alone, pair = Seen((cross,)), Seen((cross, circle))
    assert dense(alone, ask["a cross"]) == 1
    assert dense(pair, ask["a cross"]) == 3 / 4  # one of two is asked for
    assert dense(Seen((cross,), junk=3), ask["a cross"]) == 5 / 8
    assert dense(Seen((), junk=1), ask["a cross"]) == dense(Seen(()), ask["a cross"]) == 0
    assert dense(alone, ask["a cross and a circle"]) == 1 / 2
    assert dense(alone, ask["three crosses"]) == pytest.approx(1 / 3)
    assert dense(Seen((cross,) * 4), ask["three crosses"]) == 7 / 8
    assert dense(alone, ask["a blue cross"]) == 1 / 2
    assert dense(alone, ask["a cross left of a circle"]) == pytest.approx(1 / 3)
    assert dense(pair, ask["a cross left of a circle"]) == 1
    assert dense(pair, ask["a cross right of a circle"]) == pytest.approx(2 / 3)
    assert dense(pair, ask["a red circle and a blue cross"]) == 1 / 2


def test_dense_rises_as_objects_are_added_and_falls_as_others_come():
    request = grammar.request_of(Prompt("x", "four squares"))
    squares = [thing_in(cell, "square", "red") for cell in range(9)]
    values = [dense(Seen(tuple(squares[:n])), request) for n in range(10)]
    assert values[:5] == sorted(values[:5]) and values[4] == 1
    falling = values[4:]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 6


def test_noise_has_no_objects():
    generator = torch.Generator().manual_seed(0)
    asked = PROMPTS[::10]
    pixels = torch.randint(0, 256, (24, 3, 30, 30), generator=generator, dtype=torch.uint8)
    codes = np.random.default_rng(0).integers(0, 65, (24, 36))
    for media in (Media("image", pixels), shown(list(tokens.decode(codes)))):
        assert max(ShapesVerifierConfig().build()(media, asked)) < 0.6
        assert np.mean(ShapesVerifierConfig().build()(media, asked)) < 0.05
        assert not any(ShapesVerifierConfig(form="strict").build()(media, asked))
        assert not any(ShapesJudgeConfig().build()(media, asked))


def test_objects_are_found_anywhere_and_under_a_little_noise(scenes):
    """Off the grid by up to two pixels, and with every level off by up to 15."""
    images = np.stack([render(scene) for scene in scenes])
    moved = np.stack([np.roll(image, (1, -1), (0, 1)) for image in images])
    assert both(list(moved))[1].all()
    noise = np.random.default_rng(0).integers(-15, 16, (236, 3, 30, 30))
    noisy = (tokens.to_rgb(images).astype(int) + noise).clip(0, 255).astype(np.uint8)
    media = Media("image", torch.from_numpy(noisy))
    assert all(ShapesVerifierConfig(form="strict").build()(media, PROMPTS))


def test_a_colour_of_no_palette_is_junk():
    image = tokens.to_rgb(render([thing_in(4, "cross", "red")])[None])
    grey = np.where(image == image[:, :, :1, :1], image, 128).astype(np.uint8)
    media = Media("image", torch.from_numpy(grey))
    assert ShapesVerifierConfig().build()(media, [Prompt("x", "a cross")]) == [0.0]
    (seen,) = verifier.see(verifier.to_palette(grey.astype(float)))
    assert seen == Seen((), junk=1)


def test_regions_are_those_of_scipy():
    images = np.random.default_rng(2).integers(0, 4, (40, 12, 12))
    found = verifier.regions(images)
    for image, labels in zip(images, found, strict=True):
        assert np.array_equal(labels >= 0, image > 0)
        for index in (1, 2, 3):
            expected, count = ndimage.label(image == index, structure=np.ones((3, 3)))
            mine = labels[image == index]
            assert len(np.unique(mine)) == count
            assert len({*zip(mine, expected[image == index], strict=True)}) == count


def test_a_value_does_not_depend_on_the_batch(scenes):
    images = [render(scene) for scene in scenes]
    wrong = PROMPTS[1:] + PROMPTS[:1]
    whole = score(images, wrong)
    for row in (0, 17, 200):
        assert score(images[row : row + 1], wrong[row : row + 1]) == whole[row]


def test_a_summary_is_the_mean_over_categories(scenes):
    """Weighted by category and not by prompt, as GenEval's overall score."""
    images = [render(scene) for scene in scenes]
    blank = np.zeros_like(images[0])
    images = [blank if EVERY[i].category == "attribution" else x for i, x in enumerate(images)]
    found = ShapesVerifierConfig(form="strict").build().summary(shown(images), PROMPTS)
    assert found == {"": pytest.approx(5 / 6)} | {
        category: float(category != "attribution") for category in CATEGORIES
    }


def test_the_shuffled_control_ignores_the_prompt(scenes):
    images = [render(scene) for scene in scenes]
    given = score(images, shuffle=True)
    for category in CATEGORIES:
        rows = [i for i, request in enumerate(EVERY) if request.category == category]
        assert np.array_equal(
            score([images[i] for i in rows], [PROMPTS[rows[0]]] * len(rows), shuffle=True),
            given[rows],
        )
    assert given.mean() < 0.75 < score(images).mean()
    assert given.std() > 0.1
    several = np.random.default_rng(0).integers(0, 5, (3000, 6, 6))
    asked = [verifier.hashed_request(image, "colours") for image in several]
    counts = [asked.count(request) for request in grammar.requests("colours")]
    assert chisquare(counts).pvalue > 1e-3


def test_a_random_reward_knows_nothing():
    """Uniform, the same for the same group, new with any other image in it, alike for no twins."""
    several = np.random.default_rng(1).integers(0, 5, (2000, 30, 30)).astype(np.uint8)
    prompts = [PROMPTS[i // 8 % len(PROMPTS)] for i in range(2000)]
    given = score(several, prompts, form="random")
    assert kstest(given, "uniform").pvalue > 1e-3
    group = np.concatenate([several[:7], several[:1]])
    first = score(group, PROMPTS[:1] * 8, form="random")
    assert np.array_equal(first, score(group, PROMPTS[1:2] * 8, form="random"))
    assert first[0] != first[7]
    group[5] = several[9]
    assert score(group, PROMPTS[:1] * 8, form="random")[0] != first[0]


@pytest.mark.parametrize("config", [ShapesVerifierConfig(), ShapesJudgeConfig()])
def test_other_media_are_refused(config):
    reward = config.build()
    for media in (Media("text", texts=("a",)), Media("image", torch.zeros(1, 3, 8, 8).byte())):
        with pytest.raises(RewardError, match=r"judge images \[B, 3, 30, 30\] and found"):
            reward(media, PROMPTS[:1])


@pytest.mark.parametrize("config", [ShapesVerifierConfig(), ShapesJudgeConfig()])
def test_prompts_are_looked_at_before_a_run(config):
    for prompt in PROMPTS[::7]:
        config.check_prompt(prompt)
    with pytest.raises(RewardError, match="asks for nothing that the shapes verifier can see"):
        config.check_prompt(Prompt("x", "a red dog"))


def test_the_judge_is_held_out():
    assert ShapesJudgeConfig.evaluation_only and not ShapesVerifierConfig.evaluation_only


def test_the_judge_knows_renderings_that_it_did_not_learn_from():
    cells, classes = judge.renderings(1500, seed=7)
    found = judge.classifier().predict(judge.features(cells))
    whole = classes != judge.BROKEN
    assert np.mean(found[whole] == classes[whole]) > 0.9
    assert np.mean(found[~whole] == judge.BROKEN) > 0.8
    assert set(classes) == set(range(18))


def test_the_judge_agrees_on_clean_scenes_and_on_wrong_ones(scenes):
    measure = ShapesJudgeConfig().build()
    images = [render(scene) for scene in scenes]
    assert np.mean(measure(shown(images), PROMPTS)) > 0.98
    for change in (with_one_more, with_one_fewer, with_another_shape):
        wrong = [render(change(scene)) for scene in scenes]
        assert np.mean(measure(shown(wrong), PROMPTS)) < 0.02
    assert set(measure.summary(shown(images), PROMPTS)) == {"", *CATEGORIES}


def test_training_the_judge_leaves_the_global_generators_alone(untouched):
    assert untouched
