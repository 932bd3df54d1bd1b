"""What can go wrong with a download says which file was sought where, and what to do."""

import http.server
import json
import re
import shutil
import threading

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from genrl_amused import AmusedConfig, loading
from genrl_core import Prompt, RecipeError

HUB_ID = "amused/amused-256"


@pytest.fixture
def folder(published, tmp_path):
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "model")


def refusal(source, **fields) -> str:
    with pytest.raises(RecipeError) as caught:
        AmusedConfig(weights=str(source), **fields).build()
    return str(caught.value)


@pytest.mark.parametrize("names", loading.FILES, ids=lambda names: names[0])
def test_a_missing_file_is_named(folder, names):
    for name in names:
        (folder / name).unlink(missing_ok=True)
    told = refusal(folder)
    assert f"policy.weights: {folder} lacks {' or '.join(names)}. " in told
    assert "`hf download amused/amused-256 --local-dir FOLDER`" in told


def test_an_empty_folder_lacks_everything(tmp_path):
    told = refusal(tmp_path)
    assert all(name in told for names in loading.FILES for name in names)


def edit(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_another_pipeline_is_not_taken_for_it(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "holds a model of kind StableDiffusionPipeline, by model_index.json" in refusal(folder)


@pytest.mark.parametrize("name", [
    "transformer/diffusion_pytorch_model.safetensors",
    "vqvae/diffusion_pytorch_model.safetensors", "vqvae/config.json",
    "text_encoder/model.safetensors", "text_encoder/config.json",
    "tokenizer/vocab.json", "scheduler/scheduler_config.json", "model_index.json",
])  # fmt: skip
def test_a_broken_download_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    told = refusal(folder)
    assert f"cannot read the files in {path.parent}: " in told
    assert "get the folder again" in told


@pytest.mark.parametrize(("part", "file", "key"), [
    ("transformer", "diffusion_pytorch_model", "mlm_layer.conv2.weight"),
    ("vqvae", "diffusion_pytorch_model", "quantize.embedding.weight"),
    ("text_encoder", "model", "text_projection.weight"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "reshaped"])
def test_weights_that_the_config_does_not_describe(folder, part, file, key, how):
    path = folder / part / f"{file}.safetensors"
    tensors = load_file(path)
    found = tensors.pop(key)
    if how == "reshaped":
        tensors[key] = torch.cat([found, found])
    save_file(tensors, path, metadata={"format": "pt"})
    told = refusal(folder)
    assert str(folder / part) in told
    assert key in told


def test_parts_of_different_models_do_not_fit(folder):
    edit(folder / "scheduler/scheduler_config.json", mask_token_id=3)
    edit(folder / "vqvae/config.json", lookup_from_codebook=False)
    told = refusal(folder)
    assert "do not belong together: mask_token_id 3 is a code" in told
    assert "lookup_from_codebook: false" in told


def test_a_pickle_is_not_read(folder):
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_name("diffusion_pytorch_model.bin"))
    path.unlink()
    assert "lacks transformer/diffusion_pytorch_model.safetensors" in refusal(folder)


def test_weights_are_missing_and_base_takes_their_place(published):
    with pytest.raises(RecipeError, match=r"policy\.weights is missing: give amused a folder"):
        AmusedConfig().build()
    assert AmusedConfig(base=str(published)).build().codebook_size == 16


def offline(monkeypatch, cache) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_the_hubs_cache_serves_an_offline_run(published, tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    repository = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(published, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    mine = AmusedConfig(weights=HUB_ID).build().encode([Prompt("a", "cat")])
    theirs = AmusedConfig(weights=str(published)).build().encode([Prompt("a", "cat")])
    assert torch.equal(mine["hidden"], theirs["hidden"])


def test_an_offline_run_without_a_cache_says_how_to_get_the_files(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    told = refusal(HUB_ID)
    assert told.startswith("policy.weights: there is no folder amused/amused-256 in ")
    assert "the hub cannot be reached (or HF_HUB_OFFLINE is set)" in told
    assert f"its cache {tmp_path} has none of model_index.json, transformer/*.json" in told
    assert "`hf download amused/amused-256 --local-dir FOLDER`" in told


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that answers every request with ``(status, error code)``."""
    answer = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "code", "told"), [
    (403, "GatedRepo", r"gated: accept .* https://huggingface.co/amused/amused-256, then "),
    (404, "RepoNotFound", "nor a repository of the hub that you may read: check the name"),
    (404, "RevisionNotFound", "amused/amused-256 has no revision 'x': see https://hugg"),
])  # fmt: skip
def test_what_the_hub_refuses_is_a_sentence(hub, status, code, told):
    hub.update(status=status, code=code)
    assert re.search(told, refusal(HUB_ID, revision="x"))


def test_a_download_that_fails_in_another_way_says_how(monkeypatch):
    def full(*args, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    told = refusal(HUB_ID)
    assert "cannot be had from the hub: [Errno 28] No space left on device. Try again, or" in told


def test_neither_a_folder_nor_an_id():
    told = refusal("my/own/folder")
    assert "policy.weights: there is no file or folder 'my/own/folder' (sought from " in told
    assert "nor is that a hub id owner/name" in told
