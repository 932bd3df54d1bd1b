"""GenEval: rules by hand-made cases and a second reading, networks on tiny weights, prompts."""

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerForUniversalSegmentationOutput,
)

from genrl_core import Media, Prompt, RecipeError, RewardError
from genrl_core.cli.app import main
from genrl_core.recipe.prompts import load_prompts
from genrl_models import ModelFiles
from genrl_rewards import GenEvalConfig, geneval_prompts
from genrl_rewards.clip import ClipScore, load_clip
from genrl_rewards.coco import CLASSES, COLOURS, RELATIONS, TAGS
from genrl_rewards.detector import detections, load_detector, padded, resized_to
from genrl_rewards.geneval import ColourJudge, crop
from genrl_rewards.geneval_rules import (
    Clause,
    Detection,
    Request,
    by_tag,
    dense,
    kept,
    relations,
    request_of,
    strict,
)
from genrl_rewards.loading import load_tokenizer

PROMPTS = Path(__file__).parents[3] / "recipes/masked/prompts"
ROWS = geneval_prompts


def prompt(row, name="one"):
    return Prompt(name, row["text"], columns={k: v for k, v in row.items() if k != "text"})


def thing(name, left=0, top=0, size=10, score=0.95, colour="red"):
    """A detection that carries its colour where its mask would be."""
    return Detection(name, score, (left, top, left + size, top + size), np.array(colour))


def seen(objects):
    return [str(one.mask) for one in objects]


def verdicts(row, *things):
    """Strict and dense."""
    request = request_of(prompt(row))
    found = kept(things, request.tag)
    return strict(found, request, seen), dense(found, request, seen)


CAT, DOG, FAR_DOG = thing("cat"), thing("dog"), thing("dog", left=40)
BLUE_DOG = thing("dog", colour="blue")
CASES = [
    (ROWS.single("cat"), [CAT], True, 1),
    (ROWS.single("cat"), [], False, 0),
    (ROWS.single("cat"), [DOG], False, 0),
    (ROWS.single("cat"), [CAT, DOG], True, 1),
    (ROWS.single("cat"), [CAT, thing("cat", left=9)], True, 0),  # two count as none
    (ROWS.single("cat"), [CAT] * 4, True, -2),
    (ROWS.single("cat"), [thing("cat", score=0.3)], False, 0),
    (ROWS.single("cat"), [thing("cat", score=0.31)], True, 1),
    (ROWS.two("cat", "dog"), [CAT, DOG], True, 1),
    (ROWS.two("cat", "dog"), [CAT, CAT], False, 0),
    (ROWS.two("cat", "dog"), [DOG], False, 1 / 2),
    (ROWS.counting("cat", 3), [CAT] * 3, True, 1),
    (ROWS.counting("cat", 3), [CAT] * 2, False, 2 / 3),
    (ROWS.counting("cat", 3), [CAT] * 4, False, 2 / 3),
    (ROWS.counting("cat", 3), [CAT] * 3 + [thing("cat", score=0.9)], True, 1),
    (ROWS.counting("cat", 3), [CAT] * 3 + [DOG], True, 1),
    (ROWS.coloured("dog", "red"), [DOG], True, 1),
    (ROWS.coloured("dog", "red"), [BLUE_DOG], False, 1 / 2),
    (ROWS.coloured("dog", "red"), [], False, 0),
    (ROWS.coloured("dog", "red"), [DOG, thing("dog", score=0.5, colour="blue")], True, 0),
    (ROWS.coloured("dog", "red"), [thing("dog", score=0.5), BLUE_DOG], False, 0),
    (ROWS.position("dog", "right of", "cat"), [CAT, FAR_DOG], True, 1),
    (ROWS.position("dog", "left of", "cat"), [CAT, FAR_DOG], False, 2 / 3),
    (ROWS.position("dog", "right of", "cat"), [CAT, DOG], False, 2 / 3),
    (ROWS.position("dog", "right of", "cat"), [FAR_DOG], False, 1 / 3),
    (ROWS.position("dog", "right of", "cat"), [CAT, CAT, FAR_DOG], True, 1 / 3),
    (ROWS.attribution("red", "cat", "blue", "dog"), [CAT, BLUE_DOG], True, 1),
    (ROWS.attribution("red", "cat", "blue", "dog"), [CAT, DOG], False, 3 / 4),
    (ROWS.attribution("blue", "cat", "red", "dog"), [CAT, BLUE_DOG], False, 1 / 2),
]  # fmt: skip


@pytest.mark.parametrize(("row", "things", "right", "share"), CASES)
def test_verdicts_by_hand(row, things, right, share):
    assert verdicts(row, *things) == (right, pytest.approx(share))


def test_every_category_has_a_case_of_either_verdict():
    assert {(row["tag"], right) for row, _, right, _ in CASES} == {
        (tag, right) for tag in TAGS for right in (True, False)
    }


def test_an_excluded_class_apart_from_those_asked_for():
    request = Request("single_object", (Clause("cat", 1),), (Clause("dog", 1),))
    assert strict({"cat": [CAT]}, request, seen)
    assert not strict({"cat": [CAT], "dog": [DOG]}, request, seen)
    assert dense({"cat": [CAT], "dog": [DOG]}, request, seen) == 0.5
    assert dense({"cat": [CAT]}, request, seen) == 1


def exact_relations(box, other):
    """GenEval's rule in whole numbers: with centres and sizes doubled, squares compared."""
    names = (("left of", "right of"), ("above", "below"))
    centre = [(box[i] + box[i + 2], other[i] + other[i + 2]) for i in (0, 1)]
    offset = [Fraction(a - b, 2) for a, b in centre]
    distance = offset[0] ** 2 + offset[1] ** 2
    found = set()
    for axis, (before, after) in enumerate(names):
        size = box[axis + 2] - box[axis] + other[axis + 2] - other[axis]
        rest = abs(offset[axis]) - Fraction(size, 10)
        if rest > 0 and 4 * rest**2 > distance:
            found.add(after if offset[axis] > 0 else before)
    return found


def test_relations_equal_exact_arithmetic():
    draw = random.Random(0)
    tally = Counter()
    for _ in range(4000):
        boxes = []
        for _ in range(2):
            left, top = draw.randrange(30), draw.randrange(30)
            boxes.append((left, top, left + draw.randrange(1, 12), top + draw.randrange(1, 12)))
        found = relations(*boxes)
        assert found == exact_relations(*boxes), boxes
        tally[frozenset(found)] += 1
    assert len(tally) == 9  # none, four, and the four diagonals
    assert relations(*boxes[:1] * 2) == set()


def second_reading(request, things):
    """GenEval once more, from its paper: whole lists, no early end, relations exact."""
    least = 0.9 if request.tag == "counting" else 0.3
    ranked = sorted((t for t in things if t.score > least), key=lambda t: t.score, reverse=True)
    there = {name: [t for t in ranked if t.name == name][:16] for name in CLASSES}
    right, terms = [], []
    for place, clause in enumerate(request.include):
        every = there[clause.name]
        surest = every[: clause.count]
        right.append(len(every) >= clause.count)
        terms.append(1 - Fraction(abs(clause.count - len(every)), clause.count))
        exact = len(every) == clause.count
        if clause.colour:
            fits = Counter(str(t.mask) for t in surest)[clause.colour]
            right.append(fits >= clause.count)
            terms.append(1 - Fraction(clause.count - fits, clause.count) if exact else 0)
        if clause.relation:
            aim = request.include[clause.target]
            pairs = [(a, b) for a in surest for b in there[aim.name][: aim.count]]
            stands = all(clause.relation in exact_relations(a.box, b.box) for a, b in pairs)
            right.append(bool(pairs) and stands)
            target_exact = len(there[aim.name]) == aim.count
            terms.append(int(exact and target_exact and stands and bool(pairs)))
        assert place or not clause.relation
    right += [len(there[clause.name]) < clause.count for clause in request.exclude]
    return all(right), sum(terms) / len(terms)


def random_row(draw, tag):
    first, second = draw.sample(["cat", "dog", "car"], 2)
    one, other = draw.sample(["red", "blue", "green"], 2)
    return {
        "single_object": lambda: ROWS.single(first),
        "two_object": lambda: ROWS.two(first, second),
        "counting": lambda: ROWS.counting(first, draw.choice([2, 3, 4])),
        "colors": lambda: ROWS.coloured(first, one),
        "position": lambda: ROWS.position(first, draw.choice(RELATIONS), second),
        "color_attr": lambda: ROWS.attribution(one, first, other, second),
    }[tag]()


def random_things(draw):
    return [
        thing(
            draw.choice(["cat", "dog", "car"]), draw.randrange(30), draw.randrange(30),
            draw.randrange(1, 12), draw.choice([0.2, 0.5, 0.95]) + draw.random() / 100,
            draw.choice(["red", "blue", "green"]),
        )
        for _ in range(draw.choice([0, 1, 2, 2, 3, 3, 4, 6, 24]))
    ]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_verdicts_equal_a_second_reading(tag):
    draw = random.Random(tag)
    tally = Counter()
    for _ in range(700):
        row, things = random_row(draw, tag), random_things(draw)
        found = verdicts(row, *things)
        wanted = second_reading(request_of(prompt(row)), things)
        assert found == (wanted[0], pytest.approx(float(wanted[1]))), (row, things)
        tally[found[0]] += 1
        assert found[0] or found[1] < 1
    assert min(tally.values()) > 15 and len(tally) == 2


def test_the_surest_sixteen_objects_are_kept():
    things = [thing("cat", left=i, score=0.4 + i / 100) for i in range(20)]
    found = kept([*things, thing("dog", score=0.29)], "single_object")
    assert list(found) == ["cat"] and found["cat"] == things[:3:-1]


def test_colours_are_asked_only_where_the_verdict_depends_on_them():
    def never(objects):
        raise AssertionError(objects)

    request = request_of(prompt(ROWS.coloured("cat", "red")))
    for found in ({}, {"dog": [DOG]}):
        assert not strict(found, request, never)
        assert dense(found, request, never) == 0
    assert dense({"cat": [CAT, CAT, CAT]}, request, never) == -0.5


BAD = [
    ({"tag": "colours"}, "column `tag` is 'colours'"),
    ({"include": []}, "asks for nothing"),
    ({"include": "cat"}, "expected a list of objects"),
    ({"include": ["cat"]}, "class None"),
    ({"include": [{"class": "unicorn", "count": 1}]}, "'unicorn', which is none of COCO's 80"),
    ({"include": [{"class": "cat", "count": 0}]}, "count 0"),
    ({"include": [{"class": "cat", "count": True}]}, "count True"),
    ({"include": [{"class": "cat", "count": 1, "color": "cyan"}]}, "color 'cyan'"),
    ({"include": [{"class": "cat", "count": 1, "colour": "red"}]}, "unknown key 'colour'"),
    ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "earlier clause"),
    ({"exclude": [{"class": "cat", "count": 2.0}]}, "`exclude`[0] has the count 2.0"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_columns_that_cannot_be_judged_are_named(change, words):
    row = ROWS.single("cat") | change
    with pytest.raises(RewardError, match="a photo of a cat") as caught:
        request_of(prompt(row))
    assert words in str(caught.value)


def test_a_recipe_with_prompts_that_cannot_be_judged_is_refused(tmp_path, capsys):
    """Before anything is loaded, by the prompts' own names, and those that fit are let through."""
    (tmp_path / "mine.jsonl").write_text(
        json.dumps(ROWS.single("cat")) + '\n{"text": "a red cat", "id": "bare"}\n'
    )
    asked = ["masked/amused_mask_grpo", "reward={geneval: {}}", "prompts.file=", "weights.ema=null"]
    asked[2] += str(tmp_path / "mine.jsonl")
    assert main(["check", *asked, "prompts.evaluate=null", "evaluate=null"]) == 2
    told = "".join(capsys.readouterr())
    assert "1 of 2 prompts do not fit" in told and "'bare'" in told and "column `tag`" in told
    asked[2] = f"prompts.file={PROMPTS / 'train.jsonl'}"
    assert main(["check", *asked, "prompts.evaluate=null", "evaluate=null"]) == 0


def test_the_summary_is_the_mean_of_categories():
    requests = [request_of(prompt(row)) for row, *_ in CASES[:12]]
    values = [float(right) for _, _, right, _ in CASES[:12]]
    found = by_tag(values, requests)
    assert found["single_object"] == 5 / 8 and found["two_object"] == 1 / 3
    assert found[""] == pytest.approx((5 / 8 + 1 / 3 + 1) / 3)


# The networks.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mask2Former that takes everything for a cat, and a CLIP, both tiny and random."""
    root = tmp_path_factory.mktemp("geneval")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Mask2FormerForUniversalSegmentation(detector_settings(80))
        with torch.no_grad():
            detector.class_predictor.bias[CLASSES.index("cat")] = 20.0
        detector.save_pretrained(root / "mask2former")
        CLIPModel(clip_settings()).save_pretrained(root / "clip")
    words = [w + end for w in "abcdefghijklmnopqrstuvwxyz-" for end in ("", "</w>")]
    words += ["ca", "re", "<|startoftext|>", "<|endoftext|>"]
    (root / "clip/vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (root / "clip/merges.txt").write_text("#version: 0.2\nc a\nr e\n")
    return root


def detector_settings(labels):
    backbone = SwinConfig(
        image_size=32, embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=8, hidden_dim=32,
        encoder_feedforward_dim=8, dim_feedforward=8, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=5, num_labels=labels,
    )  # fmt: skip


def clip_settings():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    return CLIPConfig(
        text_config=sizes | {"vocab_size": 60, "max_position_embeddings": 60, "eos_token_id": 57},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=12,
    )


def config(folder, **fields):
    given = {"weights": str(folder / "mask2former"), "clip": str(folder / "clip")}
    return GenEvalConfig(**given | {"resolution": 64} | fields)


def noise(count, height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def test_a_detector_that_sees_cats_alone(folder):
    before = torch.get_rng_state()
    reward = config(folder, form="strict").build()
    reward.to(torch.device("cpu"))
    rows = [ROWS.single("cat"), ROWS.single("dog"), ROWS.two("cat", "dog"), ROWS.single("cat")]
    prompts = [prompt(row, str(i)) for i, row in enumerate(rows)]
    media = Media("image", noise(4, 32, 48))
    assert reward(media, prompts) == [1, 0, 0, 1]
    assert reward.summary(media, prompts) == {
        "": pytest.approx(1 / 3), "single_object": pytest.approx(2 / 3), "two_object": 0.0,
    }  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    one_by_one = config(folder, form="dense", batch_size=1).build()(media, prompts)
    together = config(folder, form="dense").build()(media, prompts)
    assert one_by_one == together
    assert together[1] == 0 and together[0] <= 0  # several cats, since five masks are cats


def test_masks_scores_and_labels_equal_transformers():
    """Its own reading works at 384 x 384: there the two must agree to the last bit of rounding."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randn(1, 12, 81, generator=generator)
    classes[0, range(12), torch.randint(0, 80, (12,), generator=generator)] += 6
    coarse = torch.randn(1, 12, 6, 6, generator=generator) * 4
    masks = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic")
    said = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes, masks_queries_logits=masks
    )
    [wanted] = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        said, threshold=0.3, target_sizes=[(384, 384)], return_binary_maps=True
    )
    size = (384, 384)
    found = detections(classes[0], masks[0], size, size, size)
    assert len(found) == len(wanted["segments_info"]) > 5
    pairs = zip(wanted["segments_info"], wanted["segmentation"], strict=True)
    expected = {(CLASSES[i["label_id"]], round(i["score"], 4)): m.bool().numpy() for i, m in pairs}
    for one in found:
        mask = expected[(one.name, round(one.score, 4))]
        assert np.array_equal(one.mask, mask)
        left, top, right, bottom = (int(edge) for edge in one.box)
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert mask[top].any() and mask[bottom - 1].any()
        assert mask[:, left].any() and mask[:, right - 1].any()


def test_a_mask_comes_back_to_its_place_in_the_image():
    """An object planted in the padded picture of an oblong image: its box, scaled."""
    size, inner, outer = (60, 100), (480, 800), (480, 800 + 32)
    logits = torch.full((1, outer[0] // 4, outer[1] // 4), -20.0)
    logits[:, 20:60, 100:140] = 20.0  # 80 to 240 of 480 rows, 400 to 560 of 800 columns
    logits[:, :, 200:] = 20.0  # nothing but padding
    classes = torch.zeros(1, 81)
    classes[0, CLASSES.index("dog")] = 30.0
    [found] = detections(classes, logits, outer, inner, size)
    assert found.name == "dog" and found.score == pytest.approx(1, abs=0.02)
    assert found.box == (50, 10, 70, 30)
    assert found.mask.shape == size and found.mask.sum() == 400


def test_a_mask_of_nothing_is_no_object():
    classes = torch.zeros(1, 81)
    classes[0, 3] = 30.0
    empty = torch.full((1, 8, 8), -5.0)
    assert detections(classes, empty, (32, 32), (32, 32), (16, 16)) == []
    assert detections(torch.zeros(4, 81), -empty.expand(4, 8, 8), (32, 32), (32, 32), (8, 8)) == []


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (40, 40)])
def test_preprocessing_equals_transformers(size):
    image = Image.fromarray(noise(1, *size)[0].permute(1, 2, 0).numpy())
    inner = resized_to(size, 64)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 106})
    wanted = torch.from_numpy(np.stack(processor(image)["pixel_values"]))
    assert (padded([image], inner) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(50, 64), (37, 90), (10, 160), (512, 512)])
def test_images_keep_their_proportions_and_are_padded(size):
    inner = resized_to(size, 64)
    assert min(inner) == 64 or max(inner) == round(64 * 1333 / 800)
    assert inner[0] * size[1] == pytest.approx(inner[1] * size[0], rel=0.08)  # whole pixels
    image = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    pixels = padded([image, image], inner)
    assert pixels.shape[-2] % 32 == pixels.shape[-1] % 32 == 0
    assert (pixels[..., : inner[0], : inner[1]] > 1).all()
    assert pixels[..., inner[0] :, :].abs().sum() + pixels[..., inner[1] :].abs().sum() == 0


def judge_of(folder):
    from transformers import CLIPTokenizer

    network = load_clip(CLIPModel, ModelFiles(str(folder / "clip"), "clip"))
    tokenizer = load_tokenizer(CLIPTokenizer, str(folder / "clip"), "clip", None, 60)
    clip = ClipScore(network, tokenizer, scale="cosine", batch_size=4)
    return ColourJudge(clip), network, tokenizer


def test_colours_equal_a_direct_computation(folder):
    """The class vectors, the crops and the argmax from CLIPModel's own outputs, one by one."""
    judge, network, tokenizer = judge_of(folder)
    picture = noise(1, 40, 40)[0].permute(1, 2, 0).numpy()
    draw = np.random.default_rng(0)
    objects, grey = [], []
    for _ in range(12):
        left, top = draw.integers(0, 20, 2).tolist()
        mask = np.zeros((40, 40), dtype=bool)
        mask[top : top + 16, left : left + 16] = draw.random((16, 16)) < 0.7
        objects.append(Detection("hot dog", 0.9, (left, top, left + 16, top + 16), mask))
        cut = np.where(mask[..., None], picture, 0x99)[top : top + 16, left : left + 16]
        assert np.array_equal(
            np.asarray(crop(Image.fromarray(picture), objects[-1].box, mask)), cut
        )
        grey.append(cut)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    scores = np.zeros((12, 10))
    for column, colour in enumerate(COLOURS):
        texts = [f"a photo of a {colour} hot dog", f"a photo of a {colour}-colored hot dog"]
        texts.append(f"a photo of a {colour} object")
        total = 0
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            for row, cut in enumerate(grey):
                pixels = torch.tensor((cut / 255 - mean) / std, dtype=torch.float32)
                out = network(input_ids=ids, pixel_values=pixels.permute(2, 0, 1)[None])
                scores[row, column] += (out.image_embeds @ out.text_embeds.T).item() / 3
            total = total + out.text_embeds[0] / 3
        scores[:, column] /= total.norm().item()
    wanted = [COLOURS[i] for i in scores.argmax(1)]
    assert judge(Image.fromarray(picture), objects) == wanted
    assert judge(Image.fromarray(picture), objects[3:5]) == wanted[3:5]  # kept class vectors


def test_what_is_no_detector_on_coco_is_said(folder, tmp_path):
    def refusal(**fields):
        with pytest.raises(RecipeError) as caught:
            config(folder, **fields).build()
        return str(caught.value)

    assert "geneval.weights" in refusal(weights=str(tmp_path))
    said = refusal(weights=str(folder / "clip"))
    assert "type 'clip' with" in said and "facebook/mask2former-swin-small-coco-instance" in said
    said = refusal(clip=str(folder / "mask2former"))
    assert "geneval.clip" in said and "not a 'clip'" in said


def test_a_detector_with_other_labels_or_damaged_is_refused(folder, tmp_path):
    settings = json.loads((folder / "mask2former/config.json").read_text())
    weights = (folder / "mask2former/model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    files = ModelFiles(str(tmp_path), "weights")
    few = settings | {"id2label": dict(list(settings["id2label"].items())[:8])}
    (tmp_path / "config.json").write_text(json.dumps(few))
    with pytest.raises(RecipeError, match="with 8 labels, not a 'mask2former' with COCO's 80"):
        load_detector(files, resolution=64, batch_size=1)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"mask_feature_size": 16}))
    with pytest.raises(RecipeError, match="tensors are missing or of another shape"):
        load_detector(files, resolution=64, batch_size=1)


# The prompt files.


def committed(name):
    return [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text().splitlines()]


def test_the_prompt_files_are_those_that_the_generator_writes(tmp_path):
    geneval_prompts.write(tmp_path)
    for name in geneval_prompts.ROWS:
        written = (tmp_path / f"{name}.jsonl").read_bytes()
        assert written == (PROMPTS / f"{name}.jsonl").read_bytes()
        assert len(written) < 400_000


@pytest.mark.parametrize(("name", "each"), [("train", 200), ("evaluate", 20)])
def test_every_prompt_can_be_judged_and_says_what_it_asks(name, each):
    prompts = load_prompts(PROMPTS / f"{name}.jsonl")
    requests = [request_of(one) for one in prompts]
    assert Counter(request.tag for request in requests) == dict.fromkeys(TAGS, each)
    assert [request.tag for request in requests[:6]] == list(TAGS)
    for one, request in zip(prompts, requests, strict=True):
        assert one.text.startswith("a photo of ")
        assert all(clause.name in one.text for clause in request.include)
        assert all((clause.colour or "") in one.text for clause in request.include)
        assert all((clause.relation or "") in one.text for clause in request.include)


def composition(row):
    """What must not be in both files: for two classes the pair, whatever the category."""
    objects = [(o["class"], o["count"], o.get("color")) for o in row["include"]]
    if len(objects) == 2:
        return frozenset(name for name, _, _ in objects)
    return objects[0]


def test_no_composition_is_in_both_files():
    train, evaluate = ({composition(row) for row in committed(n)} for n in ("train", "evaluate"))
    assert len(evaluate) == 120 and len(train) == 200 * 5 + 60
    assert not train & evaluate
    assert not {r["text"] for r in committed("train")} & {r["text"] for r in committed("evaluate")}


def test_captions_are_geneval_s():
    assert ROWS.single("orange")["text"] == "a photo of an orange"
    assert ROWS.counting("bus", 3)["text"] == "a photo of three buses"
    assert ROWS.coloured("car", "orange")["text"] == "a photo of an orange car"
    assert ROWS.position("bird", "below", "skateboard") == {
        "text": "a photo of a bird below a skateboard", "tag": "position",
        "include": [{"class": "skateboard", "count": 1},
                    {"class": "bird", "count": 1, "position": ["below", 0]}],
    }  # fmt: skip
    said = ROWS.attribution("purple", "sink", "black", "oven")["text"]
    assert said == "a photo of a purple sink and a black oven"
