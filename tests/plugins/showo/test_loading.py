"""Checkpoints in every published form, and a sentence for each that does not fit."""

import json
import math
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from genrl_core import Prompt, RecipeError
from genrl_showo import ShowoConfig
from genrl_showo.magvit import MagvitLayout, random_magvit, save_magvit

from .conftest import LENGTH, NUM_TOKENS, TINY, WORDS, save_tokenizer, settings, tiny_network


def same(policy):
    """Whether the policy holds the tiny network's weights."""
    found = policy.network.state_dict()
    expected = tiny_network().state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


def folder_with(path, published, **stated):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings(published["text"]) | stated))
    return path


def test_the_published_layout(build):
    policy = build()
    assert same(policy)
    assert (policy.num_tokens, policy.codebook_size) == (NUM_TOKENS, TINY.codes)
    assert policy.vocabulary == TINY
    assert not policy.network.training
    assert all(p.requires_grad and not p.is_meta for p in policy.network.parameters())
    assert not any(b.is_meta for b in policy.network.buffers())
    assert not any(isinstance(m, torch.nn.Dropout) and m.p for m in policy.network.modules())


def test_loading_leaves_the_global_generator_alone(build):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "mycheckpoint.pth"])
def test_other_file_names(build, published, tmp_path, name):
    folder = folder_with(tmp_path / "x", published)
    tensors = tiny_network().state_dict()
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    assert same(build(weights=folder))


def test_shards(build, published, tmp_path):
    folder = folder_with(tmp_path / "x", published)
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (key, tensor) in enumerate(tiny_network().state_dict().items()):
        parts[index % 2][key] = tensor
    weight_map = {}
    for index, part in enumerate(parts):
        save_file(part, folder / f"shard-{index}.safetensors")
        weight_map |= dict.fromkeys(part, f"shard-{index}.safetensors")
    index = {"weight_map": weight_map}
    (folder / "pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(build(weights=folder))
    (folder / "shard-1.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has none of shard-1.safetensors"):
        build(weights=folder)


def test_mask_grpo_ships_a_state_dict_and_no_config(build, published, tmp_path):
    """As happyyifu/Mask-GRPO: a base gives the config, or the recipe says N (and the sizes are
    Show-o's)."""
    file = tmp_path / "mycheckpoint.pth"
    torch.save(tiny_network().state_dict(), file)
    with pytest.raises(RecipeError, match=r"policy.num_image_tokens is missing.*1024"):
        build(weights=file)
    assert same(build(weights=file, base=published["showo"]))
    with pytest.raises(RecipeError, match=r"11 ids, and the model reads 50295|config.json belongs"):
        build(weights=file, num_image_tokens=16, text_tokenizer=published["text"])


def test_half_precision_and_the_understanding_variant(build, published, tmp_path):
    """Weights saved in bfloat16 become float32; projector and rotary tables are left out."""
    folder = folder_with(tmp_path / "x", published, w_clip_vit=True)
    tensors = {key: tensor.bfloat16() for key, tensor in tiny_network().state_dict().items()}
    tensors["mm_projector.0.weight"] = torch.zeros(2, 2)
    tensors["showo.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    save_file(tensors, folder / "pytorch_model.safetensors")
    found = build(weights=folder).network.state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    key = "showo.lm_head.weight"
    assert torch.equal(found[key], tensors[key].float())


def test_mismatches_stand_in_one_sentence(build, published, tmp_path):
    folder = folder_with(tmp_path / "x", published)
    tensors = tiny_network().state_dict()
    del tensors["showo.model.layers.1.mlp.fc2.bias"]
    tensors["showo.model.layers.0.mlp.fc2.weight"] = torch.zeros(32, 47)
    tensors["showo.extra"] = torch.zeros(1)
    save_file(tensors, folder / "pytorch_model.safetensors")
    with pytest.raises(RecipeError) as caught:
        build(weights=folder)
    said = str(caught.value)
    assert "1 missing (showo.model.layers.1.mlp.fc2.bias)" in said
    assert "1 unexpected (showo.extra)" in said
    assert "showo.model.layers.0.mlp.fc2.weight [32, 47] instead of [32, 48]" in said


def test_another_model_is_named_as_such(build, published, tmp_path):
    folder = folder_with(tmp_path / "x", published)
    save_file({"wte.weight": torch.zeros(2, 2)}, folder / "pytorch_model.safetensors")
    with pytest.raises(RecipeError, match=r"is no Show-o.*q_layernorm.*wte.weight"):
        build(weights=folder)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"codebook_size": 15}, r"38 embeddings, and 11 ids of text.*15 codes.*make 37"),
        ({"num_vq_tokens": 15}, r"square num_vq_tokens"),
        ({"num_vq_tokens": "16"}, r"num_vq_tokens in config.json is '16'"),
        ({"llm_vocab_size": 60}, r"38 embeddings, and 60 ids.*16 codes and a mask make 87"),
        ({"mask_token_id": 21}, r"mask last, mask_token_id 37, and config.json says 21"),
        ({"vocab_size": 39}, r"vocab_size 38, and config.json says 39"),
    ],
)
def test_a_config_that_belongs_elsewhere(build, published, tmp_path, stated, message):
    folder = folder_with(tmp_path / "x", published, **stated)
    shutil.copy(published["showo"] / "pytorch_model.safetensors", folder)
    with pytest.raises(RecipeError, match=message):
        build(weights=folder)


def test_weights_that_are_no_numbers_with_a_fraction(build, published, tmp_path):
    folder = folder_with(tmp_path / "x", published)
    tensors = tiny_network().state_dict()
    key = "showo.model.layers.0.mlp.fc1.weight"
    save_file(tensors | {key: tensors[key].to(torch.int8)}, folder / "pytorch_model.safetensors")
    with pytest.raises(RecipeError, match=rf"1 quantised, or of another kind.*{key} int8"):
        build(weights=folder)


@pytest.mark.parametrize("bits", [3, 6])
def test_an_image_tokenizer_of_another_codebook(build, tmp_path, bits):
    """With fewer codes it would stop at the first image, with more show those of other codes."""
    save_magvit(random_magvit(MagvitLayout(width=4, norm_groups=2, bits=bits)), tmp_path / "x")
    with pytest.raises(RecipeError, match=rf"image_tokenizer: .* has {2**bits} codes.* from 16"):
        build(image_tokenizer=tmp_path / "x")


@pytest.mark.parametrize("tokens", [256, 1024])
def test_the_published_numbers_of_tokens(build, published, tmp_path, tokens):
    """256 x 256 and 512 x 512 pixels: N is config.json's, and the image has 16 pixels a code."""
    folder = folder_with(tmp_path / "x", published, num_vq_tokens=tokens)
    shutil.copy(published["showo"] / "pytorch_model.safetensors", folder)
    policy = build(weights=folder)
    canvas = torch.full((1, tokens), policy.mask_code)
    with torch.no_grad():
        logits = policy.logits(canvas, policy.encode([Prompt("x", "red cube")]))
    assert logits.shape == (1, tokens, TINY.codes) and logits.isfinite().all()
    media = policy.decode({"tokens": torch.zeros_like(canvas)})
    side = 16 * math.isqrt(tokens)
    assert media.pixels.shape == (1, 3, side, side)


def test_the_wrong_text_tokenizer(build, tmp_path):
    save_tokenizer(tmp_path, [*WORDS, "more"])
    with pytest.raises(RecipeError, match=r"policy.text_tokenizer: .* has 12 ids, .* 11 ids"):
        build(text_tokenizer=tmp_path)
    with pytest.raises(RecipeError, match=r"no such folder.*hf download microsoft/phi") as caught:
        build(text_tokenizer=tmp_path / "missing")
    assert "config.json" not in str(caught.value)


def test_a_text_tokenizer_that_config_json_names_and_is_gone(build, published, tmp_path):
    folder = folder_with(tmp_path / "x", published, llm_model_path=str(tmp_path / "gone"))
    shutil.copy(published["showo"] / "pytorch_model.safetensors", folder)
    with pytest.raises(RecipeError, match=r"gone', which llm_model_path in config.json names: th"):
        build(weights=folder)
    assert same(build(weights=folder, text_tokenizer=published["text"]))


def test_nothing_there(build, tmp_path, published):
    with pytest.raises(RecipeError, match=r"names no published Show-o.*showlab/show-o-512x512"):
        ShowoConfig().build()
    folder = folder_with(tmp_path / "x", published)
    with pytest.raises(RecipeError, match=r"has none of pytorch_model.safetensors.*mycheckpoint"):
        build(weights=folder)
    with pytest.raises(RecipeError, match=r"policy.weights: there is no file or folder"):
        build(weights=tmp_path / "missing")
    with pytest.raises(RecipeError, match=r"policy.image_tokenizer: there is no file or folder"):
        build(image_tokenizer=tmp_path / "missing")


def test_folders_of_other_models(build, published, tmp_path):
    """What is wrong is the folder: not a number that it happens not to state."""
    with pytest.raises(RecipeError, match=r"describes a model of kind 'MAGVITv2', not a Showo"):
        build(weights=published["image"])
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(RecipeError, match=r"describes a model of kind 'clip', not a Showo"):
        build(weights=tmp_path)
    with pytest.raises(RecipeError, match=r"image_tokenizer: .*is no image tokenizer.*showlab/mag"):
        build(image_tokenizer=published["showo"])
    with pytest.raises(RecipeError, match=r"none of tokenizer.json, vocab.json\. Where there is a"):
        build(text_tokenizer=published["image"])


def test_offline(build, monkeypatch, tmp_path, published):
    """Nothing is asked of a network here: the switch says that there is none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"hub cannot be reached.*hf download showlab/show-o-512"):
        build(
            weights="showlab/show-o-512x512", num_image_tokens=16, text_tokenizer=published["text"]
        )
    with pytest.raises(RecipeError, match=r"hub cannot be reached") as caught:
        build(weights="showlab/show-o-512x512", text_tokenizer=published["text"])
    assert "num_image_tokens" not in str(caught.value), "that is not what is wrong"


def test_a_folder_without_any_config_still_says_what_is_missing(build, tmp_path):
    shutil.copytree(build().text_tokenizer.name_or_path, tmp_path / "x")
    with pytest.raises(RecipeError, match=r"x has none of pytorch_model.safetensors"):
        build(weights=tmp_path / "x")
    torch.save(tiny_network().state_dict(), tmp_path / "x" / "mycheckpoint.pth")
    with pytest.raises(RecipeError, match=r"policy.num_image_tokens is missing"):
        build(weights=tmp_path / "x")


def test_base_holds_what_weights_of_our_own_lack(build, published):
    policy = build(weights=None, base=published["showo"])
    assert same(policy)


@pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers may run here")
def test_an_attention_that_cannot_be_ends_the_loading(build):
    for weights in (None, "showlab/never-asked-for"):
        with pytest.raises(RecipeError, match=r"policy.attention: xformers does not run here"):
            build(attention="xformers", **({"weights": weights} if weights else {}))
    assert same(build(attention="sdpa"))


def test_num_image_tokens_is_a_square():
    with pytest.raises(ValueError, match="15 is no square"):
        ShowoConfig(num_image_tokens=15)


def test_prompts_end_up_as_the_layout_says(build):
    policy = build()
    tokenizer = AutoTokenizer.from_pretrained(policy.text_tokenizer.name_or_path)
    assert len(tokenizer) == TINY.text
    cond = policy.encode([Prompt("x", "red cube", negative="cat"), Prompt("y", "a " * 20)])
    pad, t2i = TINY.pad, TINY.t2i
    assert cond["prompt"][0].tolist() == [pad] * (LENGTH + 1 - 5) + [t2i, 0, 2, 4, 0]
    assert cond["prompt"][1].tolist() == [t2i, 0, *[1] * (LENGTH - 2), 0]
    assert cond["negative"][0].tolist() == [pad] * (LENGTH + 1 - 4) + [t2i, 0, 9, 0]
    assert cond["negative"][1].tolist() == [pad] * (LENGTH + 1 - 3) + [t2i, 0, 0]
