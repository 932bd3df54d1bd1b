"""What can go wrong with a reward's files: which was sought where, and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl_core import RecipeError, load_recipe
from genrl_core.recipe.check import check_recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.run.saving import save
from genrl_rewards import (
    AestheticConfig,
    ClipScoreConfig,
    HpsConfig,
    ImageRewardConfig,
    NetworkRewardConfig,
    PickScoreConfig,
)

from . import networks


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        return networks.save_clip(tmp_path / "clip")


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    return networks.save_clip_tokenizer(tmp_path / "bpe")


@pytest.fixture
def hps(tmp_path: Path) -> Path:
    (tmp_path / "hps").mkdir()
    torch.save(networks.open_clip_state(), tmp_path / "hps" / "HPS_v2.1_compressed.pt")
    return tmp_path / "hps"


def refused(config: NetworkRewardConfig, *parts: str) -> str:
    with pytest.raises(RecipeError) as caught:
        config.build()
    told = str(caught.value)
    assert "\n" not in told
    for part in parts:
        assert part in told, (part, told)
    return told


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (ClipScoreConfig, ["clip_score.weights: ", "none of config.json"]),
        (PickScoreConfig, ["pick_score.weights: ", "none of config.json"]),
        (HpsConfig, ["hps_v2.weights: ", "none of HPS_v2.1_compressed.pt"]),
        (ImageRewardConfig, ["image_reward.weights: ", "none of ImageReward.pt"]),
    ],
)
def test_an_empty_folder(tmp_path: Path, kind: Any, names: list[str]) -> None:
    (tmp_path / "readme.txt").write_text("")
    refused(kind(weights=str(tmp_path)), *names, f"the folder {tmp_path}", "it holds readme.txt")


def test_an_empty_folder_of_aesthetic(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused(
        AestheticConfig(weights=str(tmp_path / "none"), clip=str(clip)), "aesthetic.weights: ",
        "model.safetensors", "sac+logos+ava1-l14-linearMSE.pth", "it holds nothing",
    )  # fmt: skip
    refused(AestheticConfig(clip=str(tmp_path / "none")), "aesthetic.clip: ", "none of config.json")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("kind", "repository"),
    [
        (ClipScoreConfig, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        (PickScoreConfig, "yuvalkirstain/PickScore_v1"),
        (HpsConfig, "xswu/HPSv2"),
        (ImageRewardConfig, "THUDM/ImageReward"),
        (AestheticConfig, "openai/clip-vit-large-patch14"),
    ],
)
def test_offline_without_a_cache(offline: Path, kind: Any, repository: str) -> None:
    refused(
        kind(), f"{kind.called}.", "the hub cannot be reached (or HF_HUB_OFFLINE is set)",
        str(offline), f"hf download {repository} --local-dir FOLDER",
    )  # fmt: skip


def test_a_tokenizer_that_is_not_there(offline: Path, hps: Path, tmp_path: Path) -> None:
    refused(
        HpsConfig(weights=str(hps)), "hps_v2.tokenizer: ", "tokenizer.json, vocab.json",
        "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    )  # fmt: skip
    (tmp_path / "none").mkdir()
    refused(
        HpsConfig(weights=str(hps), tokenizer=str(tmp_path / "none")), "hps_v2.tokenizer: ",
        "none of tokenizer.json",
    )  # fmt: skip


def test_a_cached_hub_serves_an_offline_run(offline: Path, clip: Path) -> None:
    found = ClipScoreConfig(weights=str(clip)).build()(networks.media(), networks.prompts())
    root, commit = offline / "models--laion--CLIP-ViT-H-14-laion2B-s32B-b79K", "0" * 40
    for name in ("refs", "snapshots"):
        (root / name).mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    clip.rename(root / "snapshots" / commit)
    assert ClipScoreConfig().build()(networks.media(), networks.prompts()) == found


def test_a_broken_tokenizer(clip: Path) -> None:
    (clip / "vocab.json").write_text('{"a": ')
    refused(ClipScoreConfig(weights=str(clip)), "cannot read a CLIPTokenizer from", str(clip))


def test_a_tokenizer_of_another_model(clip: Path, tmp_path: Path) -> None:
    vocabulary = networks.clip_vocabulary()
    networks.save_clip_tokenizer(tmp_path / "larger")
    larger = vocabulary | {"more</w>": len(vocabulary)}
    (tmp_path / "larger" / "vocab.json").write_text(json.dumps(larger))
    refused(
        ClipScoreConfig(weights=str(clip), tokenizer=str(tmp_path / "larger")),
        f"has {len(larger)} ids and the network knows {len(vocabulary)}",
    )


def test_another_kind_of_model(clip: Path, hps: Path, tmp_path: Path) -> None:
    stated = json.loads((clip / "config.json").read_text()) | {"model_type": "siglip"}
    (clip / "config.json").write_text(json.dumps(stated))
    refused(ClipScoreConfig(weights=str(clip)), "a model of type 'siglip', not a 'clip'")
    torch.save({"wte.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    refused(
        HpsConfig(weights=str(tmp_path / "x.pt")), "HPS v2.1 from", "is another kind of model: it",
        "lacks visual.conv1.weight", "holds 1 keys, such as wte.weight. Give xswu/HPSv2",
    )  # fmt: skip
    refused(
        ImageRewardConfig(weights=str(tmp_path / "x.pt")), "lacks blip.visual_encoder.patch_embed",
        "Give THUDM/ImageReward",
    )  # fmt: skip
    refused(
        AestheticConfig(weights=str(tmp_path / "x.pt"), clip=str(ok_clip(tmp_path))),
        "is no chain of linear layers from 8 numbers to one: it holds no layers.N.weight",
    )


def test_settings_that_make_no_network(clip: Path, hps: Path, tmp_path: Path) -> None:
    stated = json.loads((clip / "config.json").read_text())
    stated["text_config"]["num_attention_heads"] = 3
    (clip / "config.json").write_text(json.dumps(stated))
    refused(
        ClipScoreConfig(weights=str(clip)), "clip_score.weights: config.json of ",
        "describes no CLIP: ", "number of attention heads (3)", "Download the files again",
    )  # fmt: skip
    narrow = {"token_embedding.weight": torch.zeros(90, 20)}
    torch.save(networks.open_clip_state() | narrow, hps / "HPS_v2.1_compressed.pt")
    refused(HpsConfig(weights=str(hps)), "HPS v2.1 from", "has sizes that make no network: ")
    name = "blip.text_encoder.embeddings.word_embeddings.weight"
    torch.save(networks.image_reward_state() | {name: torch.zeros(17, 20)}, tmp_path / "x.pt")
    refused(
        ImageRewardConfig(weights=str(tmp_path / "x.pt")), "text tower, has sizes that make no net"
    )


def ok_clip(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        return networks.save_clip(tmp_path / "ok")


def test_layers_of_another_width(clip: Path, tmp_path: Path) -> None:
    path = networks.save_head(tmp_path / "head.pth", 9)
    refused(
        AestheticConfig(weights=str(path), clip=str(clip)), "aesthetic.weights: the aesthetic",
        "from 8 numbers to one: it holds [10, 9], [8, 10], [6, 8], [4, 6], [1, 4]",
    )  # fmt: skip


def test_keys_that_do_not_fit(clip: Path, hps: Path, tmp_path: Path) -> None:
    state = load_file(clip / "model.safetensors")
    del state["logit_scale"]
    save_file(state | {"extra": torch.zeros(1)}, clip / "model.safetensors")
    refused(
        ClipScoreConfig(weights=str(clip)), "clip_score.weights: CLIP from", "does not fit: of ",
        "1 missing (logit_scale)", "1 unexpected (extra)",
    )  # fmt: skip
    torch.save(
        networks.open_clip_state() | {"visual.proj": torch.zeros(48, 20)},
        hps / "HPS_v2.1_compressed.pt",
    )
    refused(
        HpsConfig(weights=str(hps)), "1 of another shape (visual_projection.weight [20, 48] instead"
    )
    blip = networks.image_reward_state()
    del blip["blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"]
    torch.save(blip, tmp_path / "blip.pt")
    refused(
        ImageRewardConfig(weights=str(tmp_path / "blip.pt")), "text tower, does not fit",
        "1 missing (encoder.layer.1.crossattention.self.key.bias)",
    )  # fmt: skip


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"state_dict": {"key": Trap(tmp_path / "sprung")}}, tmp_path / "x.pt")
    refused(HpsConfig(weights=str(tmp_path / "x.pt")), "cannot be read as tensors")
    assert not (tmp_path / "sprung").exists()


def test_both_models_lie_in_one_folder_and_each_is_asked_for_by_its_version(
    hps: Path, bpe: Path
) -> None:
    config = HpsConfig(weights=str(hps), tokenizer=str(bpe), version="2.0")
    refused(config, "none of HPS_v2_compressed.pt", "it holds HPS_v2.1_compressed.pt")


RECIPE = """
extends: digits/mask_grpo
reward:
  digit_classifier: null
  {label}: {fields}
"""


@pytest.mark.parametrize("label", ["clip_score", "hps_v2", "image_reward", "aesthetic"])
def test_a_recipe_is_checked_without_weights(tmp_path: Path, offline: Path, label: str) -> None:
    """And what does not fit is said by the schema."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(label=label, fields="{batch_size: 4, revision: abc}"))
    recipe = load_recipe(str(path))
    check_recipe(recipe)
    assert recipe.reward[label].model_dump()["revision"] == "abc"
    path.write_text(RECIPE.format(label=label, fields="{batch_size: 0}"))
    with pytest.raises(RecipeError, match=rf"reward.{label}.batch_size"):
        load_recipe(str(path))


def test_a_run_judges_with_the_network_on_its_device(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genrl_rewards.base import NetworkReward

    moved: list[torch.device] = []
    monkeypatch.setattr(NetworkReward, "to", lambda self, device: moved.append(device))
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(label="clip_score", fields=f"{{weights: {clip}}}"))
    short = ["policy.weights=null", "evaluate=null", "prompts.evaluate=null", "run.device=cpu"]
    recipe = load_recipe(str(path), [*short, "train.num_prompts=2"])
    trainer = build_trainer(recipe)
    record = trainer.step()
    assert moved == [torch.device("cpu")]
    (reward,) = [reward for _, reward in trainer.parts.rewards.values()]
    assert isinstance(reward, NetworkReward)
    frozen = {p.data_ptr() for p in reward.network.parameters()}
    groups = trainer.parts.optimizer.param_groups
    assert not frozen & {p.data_ptr() for group in groups for p in group["params"]}
    save(trainer, recipe, tmp_path / "checkpoints")
    saved = [load_file(file) for file in (tmp_path / "checkpoints").rglob("*.safetensors")]
    assert saved and not {k for state in saved for k in state if "text_model" in k or "clip" in k}
    most = sum(p.numel() for p in trainer.parts.policy.network.parameters())
    assert max(sum(t.numel() for t in state.values()) for state in saved) <= 3 * most
    assert -1 <= record.metrics["reward/clip_score"] <= 1
    assert record.metrics["reward_std"] > 0
