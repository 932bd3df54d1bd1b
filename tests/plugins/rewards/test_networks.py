"""Rewards with networks: equal to independent forwards under the published keys."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from genrl_core import Media, Prompt, Reward
from genrl_core.registry import Registry
from genrl_rewards import AestheticConfig, ClipScoreConfig, HpsConfig, NetworkRewardConfig
from genrl_rewards.image_reward import settings_of

from . import networks
from .networks import TEXTS, media, prompts


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each part, as the hub's repositories have them."""
    root = tmp_path_factory.mktemp("rewards")
    found = {name: root / name for name in ("clip", "bpe", "bert", "hps", "image_reward", "head")}
    with torch.random.fork_rng(devices=[]):
        networks.save_clip(found["clip"])
    networks.save_clip_tokenizer(found["bpe"])
    networks.save_bert_tokenizer(found["bert"])
    for name in ("hps", "image_reward"):
        found[name].mkdir()
    for version, seed in (("2", 11), ("2.1", 12)):
        half = {key: t.half() for key, t in networks.open_clip_state(seed).items()}
        torch.save({"epoch": 3, "state_dict": half}, found["hps"] / f"HPS_v{version}_compressed.pt")
    torch.save(networks.image_reward_state(), found["image_reward"] / "ImageReward.pt")
    networks.save_head(found["head"] / "sac+logos+ava1-l14-linearMSE.pth", 8)
    return found


def config(kind: str, published: dict[str, Path], **fields: Any) -> NetworkRewardConfig:
    places = {field: str(published[part]) for field, part in PARTS[kind].items()}
    found = Registry.discover().rewards[kind](**places, **fields)
    assert isinstance(found, NetworkRewardConfig)
    return found


PARTS = {
    "clip_score": {"weights": "clip"},
    "pick_score": {"weights": "clip", "tokenizer": "bpe"},
    "hps_v2": {"weights": "hps", "tokenizer": "bpe"},
    "image_reward": {"weights": "image_reward", "tokenizer": "bert"},
    "aesthetic": {"weights": "head", "clip": "clip"},
}
"""Of every reward, which of the published folders its fields name."""
KINDS = tuple(PARTS)


def direct(published: dict[str, Path], images: Media, texts: list[str]) -> Any:
    """CLIPModel by transformers' own loader, processor and forward, image by image."""
    network = CLIPModel.from_pretrained(published["clip"]).eval()
    tokenizer = CLIPTokenizer.from_pretrained(published["clip"])
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    pixels = processor([Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images.pixels])
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    stacked = torch.stack([torch.as_tensor(p) for p in pixels["pixel_values"]])
    with torch.no_grad():
        return network(**tokens, pixel_values=stacked)


def test_clip_score_is_the_cosine_of_a_direct_computation(published: dict[str, Path]) -> None:
    found = config("clip_score", published).build()(media(), prompts())
    whole = direct(published, media(), list(TEXTS))
    expected = (whole.image_embeds * whole.text_embeds).sum(-1)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.05, "the fixture tells samples apart"


def test_logits_are_the_papers_logits_per_image(published: dict[str, Path]) -> None:
    expected = direct(published, media(), list(TEXTS)).logits_per_image.diagonal()
    for kind, fields in (("clip_score", {"scale": "logits"}), ("pick_score", {})):
        found = config(kind, published, **fields).build()(media(), prompts())
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


def ids(tokenizer: Any, texts: list[str], longest: int) -> list[list[int]]:
    return [tokenizer(t, truncation=True, max_length=longest)["input_ids"] for t in texts]


LONG = ("a red cat and two blue dogs and the cat of the dog " * 4, *TEXTS[1:])
"""The first is longer than any of the networks reads."""


@pytest.mark.parametrize(("version", "seed"), [("2.0", 11), ("2.1", 12)])
def test_hps_is_open_clips_cosine(published: dict[str, Path], version: Any, seed: int) -> None:
    images = media(20, 20)
    found = config("hps_v2", published, version=version).build()(images, prompts(LONG))
    half = {key: t.half() for key, t in networks.open_clip_state(seed).items()}
    tokenizer = CLIPTokenizer.from_pretrained(published["bpe"])
    rows = ids(tokenizer, list(LONG), 12)
    assert max(map(len, rows)) == 12 and min(map(len, rows)) < 12
    expected = networks.open_clip_cosine(half, squares(images, 8), rows)
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05


def test_image_reward_is_blips_number(published: dict[str, Path]) -> None:
    images = media(20, 20)
    found = config("image_reward", published).build()(images, prompts(LONG))
    rows = ids(BertTokenizer.from_pretrained(published["bert"]), list(LONG), 35)
    assert max(map(len, rows)) == 35 and min(map(len, rows)) < 35
    expected = networks.image_reward(networks.image_reward_state(), squares(images, 8), rows)
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05


def test_hps_frames_its_images_and_the_others_crop_them(published: dict[str, Path]) -> None:
    """The same as judging the small square that each makes of a picture of 20 x 32 pixels."""
    wide = media(20, 32)
    framed = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    framed[:, :, 1:6] = resized(wide, 8, 5)
    small = {
        "hps_v2": framed,
        "image_reward": resized(wide, 12, 8)[:, :, :, 2:10],
        "clip_score": resized(wide, 38, 24)[:, :, :, 7:31],
    }
    for kind, square in small.items():
        reward = config(kind, published).build()
        found = reward(wide, prompts())
        assert found == pytest.approx(reward(Media("image", square), prompts()), abs=1e-6), kind


def resized(images: Media, width: int, height: int) -> torch.Tensor:
    """By PIL: ``[B, 3, height, width]`` uint8."""
    assert images.pixels is not None
    shown = [
        Image.fromarray(i.permute(1, 2, 0).numpy()).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for i in images.pixels
    ]
    flat = [torch.frombuffer(bytearray(s.tobytes()), dtype=torch.uint8) for s in shown]
    return torch.stack([f.view(height, width, 3).permute(2, 0, 1) for f in flat])


def test_the_prompt_matters_to_image_reward_and_not_to_aesthetic(
    published: dict[str, Path],
) -> None:
    other = prompts(("two", "red", "a", "the", "of"))
    for kind, same in (("image_reward", False), ("aesthetic", True)):
        reward = config(kind, published).build()
        assert (reward(media(), prompts()) == reward(media(), other)) is same


def squares(images: Media, side: int) -> torch.Tensor:
    """Square images resized by PIL, scaled in float64."""
    return (resized(images, side, side).double() / 255 - networks.MEAN) / networks.STD


@pytest.mark.parametrize("form", [".pth", ".safetensors", "prefixed"])
def test_aesthetic_is_linear_layers_on_the_embedding(
    published: dict[str, Path], tmp_path: Path, form: str
) -> None:
    path = tmp_path / ("model.safetensors" if form == "prefixed" else f"mine{form}")
    networks.save_head(path, 8)
    if form == "prefixed":
        save_file({f"predictor.{key}": t for key, t in load_file(path).items()}, path)
    found = AestheticConfig(weights=str(path), clip=str(published["clip"])).build()(
        media(), prompts()
    )
    embedding = direct(published, media(), ["a"]).image_embeds
    expected = networks.head(networks.head_state(8), embedding)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_and_values_follow_their_samples(
    published: dict[str, Path], kind: str
) -> None:
    whole = config(kind, published).build()(media(), prompts())
    for size in (1, 2, 4):
        parts = config(kind, published, batch_size=size).build()(media(), prompts())
        assert parts == pytest.approx(whole, abs=1e-5)
    order = [3, 0, 4, 2, 1]
    asked = [prompts()[place] for place in order]
    turned = config(kind, published).build()(media().select(order), asked)
    assert turned == pytest.approx([whole[place] for place in order], abs=1e-5)
    assert len(set(map("{:.3f}".format, whole))) == len(whole)
    assert all(type(value) is float for value in whole)
    assert config(kind, published).build()(media().select([]), []) == []


def test_every_text_is_encoded_once(
    published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reward: Any = config("clip_score", published, batch_size=2).build()
    rows: list[int] = []
    reward.network.text_model.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]))
    )
    reward(media(), prompts())
    assert rows == [2, 1]
    asked: list[int] = []
    inner: Any = config("image_reward", published).build()
    monkeypatch.setattr(inner, "_tokenizer", counting(inner._tokenizer, asked))
    inner(media(), prompts())
    assert asked == [3]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "aesthetic"])
def test_what_a_reward_cuts_off_is_said_once(
    published: dict[str, Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two prompts that differ in what is cut off have one reward, and that is no secret."""
    images = media(count=1).select([0, 0])
    for count in range(1, 60):
        alike = prompts(tuple(f"{'a ' * count}{end}" for end in ("red", "cat")))
        caplog.clear()
        reward = config(kind, published).build()
        first, second = reward(images, alike)
        said = caplog.text
        if first == second:
            break
        assert "cuts off" not in said, "the end was read"
    assert first == second and count > 3
    assert said.count("cuts off the rest: 2 are longer") == 1, said or "nothing was said"
    assert f"{'a ' * 20}"[:20] in said and "which ends in" in said
    reward(images, alike)
    assert caplog.text == said, "each prompt once"


def test_a_reward_that_was_asked_has_said_it(
    published: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A run asks before it begins, and says it itself; CLIP's tokens count, both ends included."""
    reward = config("clip_score", published).build()
    limit = reward.network.config.text_config.max_position_embeddings
    texts = tuple("a " * count for count in (1, limit - 2, limit - 1, 3 * limit))
    [found] = reward.reading(prompts(texts))
    assert found.lengths == [3, limit, limit + 1, 3 * limit + 2]
    assert (found.limit, found.cut) == (limit, True)
    reward(media(count=4), prompts(texts))
    assert "cuts off" not in caplog.text
    assert config("aesthetic", published).build().reading(prompts(texts)) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_strange_images_and_texts_are_judged(published: dict[str, Path], kind: str) -> None:
    """One alone, grey, a line of pixels, no text, no letter that the tokenizer knows."""
    reward = config(kind, published).build()
    grey = torch.full((1, 3, 9, 5), 128, dtype=torch.uint8)
    given = [Media("image", grey), *(media(*s, count=1) for s in ((1, 1), (1, 90), (90, 1)))]
    for images in given:
        for text in ("", " ", "a red cat", "\N{SNOWMAN} \u65e5\u672c", "cat " * 200):
            (value,) = reward(images, prompts((text,)))
            assert value == value and abs(value) < 1e3


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_prompts_as_images(published: dict[str, Path], kind: str) -> None:
    """One prompt is not stretched over five images, where it could be by broadcasting."""
    reward = config(kind, published).build()
    for count in (1, 4, 6):
        with pytest.raises(ValueError, match="zip"):
            reward(media(), prompts(("a red cat",) * count))


def counting(tokenizer: Any, asked: list[int]) -> Any:
    def count(texts: list[str], **fields: Any) -> Any:
        asked.append(len(texts))
        return tokenizer(texts, **fields)

    return count


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_frozen_and_leave_the_generator_alone(
    published: dict[str, Path], kind: str
) -> None:
    before = torch.random.get_rng_state()
    reward: Any = config(kind, published).build()
    assert torch.equal(torch.random.get_rng_state(), before)
    modules = list(reward.network.modules())
    assert not any(p.requires_grad or p.is_meta for p in reward.network.parameters())
    assert {p.dtype for p in reward.network.parameters()} == {torch.float32}
    assert not any(buffer.is_meta for buffer in reward.network.buffers())
    assert not any(module.training for module in modules)
    assert reward.device.type == "cpu"
    reward.to(torch.device("meta"))
    assert reward.device.type == "meta"
    assert all(buffer.is_meta for buffer in reward.network.buffers())


def test_older_files_hold_tables_of_positions(published: dict[str, Path], tmp_path: Path) -> None:
    """And weights in half precision under another name; both are read."""
    state = {k: t.half() for k, t in load_file(published["clip"] / "model.safetensors").items()}
    for tower, count in (("text", 12), ("vision", 10)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    stated = json.loads((published["clip"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated))
    networks.save_clip_tokenizer(tmp_path)
    found = ClipScoreConfig(weights=str(tmp_path)).build()(media(), prompts())
    expected = config("clip_score", published).build()(media(), prompts())
    assert found == pytest.approx(expected, abs=2e-3)
    assert found != expected


def test_full_sizes_are_the_published_ones() -> None:
    """Parameters of ViT-H/14 (986,109,441) and of ImageReward, by shapes alone."""
    from transformers import CLIPModel

    from genrl_rewards import hps, image_reward

    with torch.device("meta"):
        settings = hps.settings_of(full_open_clip(), "x")
        count = sum(p.numel() for p in CLIPModel(settings).parameters())
    assert count == 986_109_441
    assert (settings.vision_config.image_size, settings.vision_config.patch_size) == (224, 14)
    vision, text = settings_of(full_blip(), "x")
    assert image_reward.IMAGE_HEADS * 64 == vision["hidden_size"] == 1024
    assert image_reward.TEXT_HEADS * 64 == text["hidden_size"] == 768
    assert (vision["image_size"], vision["num_hidden_layers"]) == (224, 24)


def full_open_clip() -> networks.State:
    """The tensors of ViT-H/14 from which sizes are read."""
    found = {
        "visual.conv1.weight": torch.empty(1280, 3, 14, 14),
        "visual.positional_embedding": torch.empty(257, 1280),
        "token_embedding.weight": torch.empty(49408, 1024),
        "positional_embedding": torch.empty(77, 1024),
        "text_projection": torch.empty(1024, 1024),
    }
    for tower, width, layers in (("visual.transformer", 1280, 32), ("transformer", 1024, 24)):
        for number in range(layers):
            found[f"{tower}.resblocks.{number}.mlp.c_fc.weight"] = torch.empty(4 * width, width)
    return found


def full_blip() -> networks.State:
    image, words = "blip.visual_encoder", "blip.text_encoder"
    with torch.device("meta"):
        found = {
            f"{image}.patch_embed.proj.weight": torch.empty(1024, 3, 16, 16),
            f"{image}.pos_embed": torch.empty(1, 197, 1024),
            f"{words}.embeddings.word_embeddings.weight": torch.empty(30524, 768),
            f"{words}.embeddings.position_embeddings.weight": torch.empty(512, 768),
            f"{words}.encoder.layer.0.intermediate.dense.weight": torch.empty(3072, 768),
        }
        for number in range(24):
            found[f"{image}.blocks.{number}.mlp.fc1.weight"] = torch.empty(4096, 1024)
    return found


def test_every_reward_is_one_and_its_config_loads_no_torch() -> None:
    assert all(issubclass(kind, NetworkRewardConfig) for kind in (ClipScoreConfig, HpsConfig))
    import subprocess

    code = (
        "import sys; from genrl_core.registry import Registry; r = Registry.discover().rewards; "
        f"assert set({KINDS!r}) < set(r), list(r); [r[k]() for k in {KINDS!r}]; "
        "assert not {'torch', 'transformers', 'PIL', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes_are_looked_at_without_torch(tmp_path: Path) -> None:
    """Prompts included, which a reward may have something to say about."""
    import subprocess

    recipe = "masked/showo_mask_grpo_paper"
    asking = ["reward.clip_score=null", "reward.geneval={}"]
    code = (
        "import sys; from genrl_core.cli.app import main; "
        f"assert main(['check', {recipe!r}]) == main(['check', {recipe!r}, *{asking!r}]) == 0; "
        f"assert main(['show', {recipe!r}]) == main(['ls', 'rewards']) == 0; "
        "assert not {'torch', 'transformers', 'PIL', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_reward_is_a_reward(published: dict[str, Path]) -> None:
    reward = config("clip_score", published).build()
    assert isinstance(reward, Reward)
    given = reward.summary(media(), [Prompt("a", "cat")] * 5)
    assert given[""] == pytest.approx(sum(reward(media(), [Prompt("a", "cat")] * 5)) / 5)
