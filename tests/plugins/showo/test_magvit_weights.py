"""MAGVIT-v2 from a file, a folder or the hub: what is read, what is refused, and in which words."""

import json
import types

import huggingface_hub
import huggingface_hub.errors as hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from genrl_core import RecipeError
from genrl_showo.magvit import SMALL, load_magvit, random_magvit, save_magvit

CODES = torch.randint(8192, (2, 4), generator=torch.Generator().manual_seed(0))
FILE = "pytorch_model.safetensors"
BUFFERS = ("quantize.embedding", "quantize.power_vals")


@pytest.fixture(scope="module")
def network():
    return random_magvit(SMALL, seed=7)


@pytest.fixture
def folder(network, tmp_path):
    save_magvit(network, tmp_path / "magvit")
    return tmp_path / "magvit"


def edited(folder, **changes):
    """Change the saved state dict; None removes a key."""
    state = load_file(folder / FILE)
    for key, tensor in changes.items():
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    save_file(state, folder / FILE)


def same(found, network):
    expected = network.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(tensor.equal(expected[key]) for key, tensor in found.state_dict().items())
    assert found.decode(CODES).equal(network.decode(CODES))
    assert not any(p.requires_grad for p in found.parameters()) and not found.training


# --- what is read ---


def test_saved_and_loaded_in_the_published_layout(network, folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", FILE]
    settings = json.loads((folder / "config.json").read_text())
    assert settings == {"_class_name": "MAGVITv2", "layout": {"width": 4, "norm_groups": 2}}
    before = torch.random.get_rng_state()
    same(load_magvit(str(folder)), network)
    assert torch.random.get_rng_state().equal(before)


def test_one_file_beside_its_config(network, folder):
    (folder / FILE).rename(folder / "mine.safetensors")
    same(load_magvit(str(folder / "mine.safetensors")), network)


def test_another_name_and_a_pickle_of_tensors(network, folder):
    (folder / FILE).rename(folder / "model.safetensors")
    same(load_magvit(str(folder)), network)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    same(load_magvit(str(folder)), network)


def test_shards(network, folder):
    state = load_file(folder / FILE)
    (folder / FILE).unlink()
    parts = {f"model-{i}-of-2.safetensors": sorted(state)[i - 1 :: 2] for i in (1, 2)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(load_magvit(str(folder)), network)
    same(load_magvit(str(folder / "model.safetensors.index.json")), network)
    (folder / "model-2-of-2.safetensors").unlink()
    refused(folder, "has none of model-2-of-2.safetensors")


def test_buffers_may_be_absent(network, folder):
    edited(folder, **dict.fromkeys(BUFFERS))
    same(load_magvit(str(folder)), network)


def test_dtype_of_the_file_and_of_the_network(network, folder):
    state = load_file(folder / FILE)
    half = {key: t.bfloat16() if t.is_floating_point() else t.int() for key, t in state.items()}
    save_file(half, folder / FILE)
    found = load_magvit(str(folder))
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    found = load_magvit(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert found.quantize.power_vals.dtype == torch.int64


# --- what is refused ---


def refused(source, *parts, **fields):
    with pytest.raises(RecipeError) as caught:
        load_magvit(str(source), **fields)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, (part, message)
    return message


def test_keys_that_do_not_fit_are_listed_in_one_sentence(folder):
    edited(
        folder, **{"encoder.conv_in.bias": None, "decoder.conv_out.bias": torch.zeros(4)},
        extra=torch.zeros(1),
    )  # fmt: skip
    refused(
        folder, f"policy.tokenizer: MAGVIT-v2 from {folder / FILE} does not fit: of 382 keys, ",
        "1 missing (encoder.conv_in.bias)", "1 unexpected (extra)",
        "1 of another shape (decoder.conv_out.bias [4] instead of [3])",
    )  # fmt: skip


def test_long_lists_are_counted(folder):
    (folder / "config.json").write_text('{"_class_name": "MAGVITv2"}')
    message = refused(
        folder, "encoder.conv_in.weight [4, 3, 3, 3] instead of [128, 3, 3, 3]", "and 369 more"
    )
    assert "missing" not in message and len(message) < 700


def test_another_codebook_is_refused(folder):
    flipped = load_file(folder / FILE)["quantize.embedding"].flip(1)
    edited(folder, **{"quantize.embedding": flipped})
    refused(folder, "another quantize.embedding", "channel 0 the highest")


def test_float16_is_refused(folder):
    refused(folder, "not torch.float16", "overflow", dtype=torch.float16)


def test_layouts_are_read_strictly(folder):
    config = folder / "config.json"
    config.write_text('{"layout": {"widht": 4}}')
    refused(folder, "config.json", "layout.widht: Extra inputs")
    config.write_text('{"layout": {"width": 5, "norm_groups": 2}}')
    refused(folder, "width 5 is not a multiple")
    config.write_text("[1]")
    refused(folder, "config.json holds no JSON object")
    config.write_text("{")
    refused(folder, "config.json is not JSON")


def test_damaged_files_and_pointers(folder):
    (folder / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    refused(folder, str(folder / FILE), "bytes) cannot be read as tensors", "Git LFS pointer")
    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "(0 bytes) cannot be read as tensors")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_not_opened(folder, tmp_path):
    (folder / FILE).unlink()
    torch.save({"key": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    refused(folder, "cannot be read as tensors", "does not open")
    assert not (tmp_path / "sprung").exists()


def test_nested_state_dicts_are_refused(folder):
    state = load_file(folder / FILE)
    (folder / FILE).unlink()
    torch.save({"state_dict": state}, folder / "pytorch_model.bin")
    refused(folder, "holds no plain state dict")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {"a": "../other.safetensors"}}', "3"])
def test_indexes_that_lead_elsewhere(folder, index):
    (folder / FILE).unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, "has no weight_map from keys to names of files beside it")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    refused(
        tmp_path, f"policy.decoder: the folder {tmp_path} has none of {FILE}, model.safetensors",
        "it holds readme.txt", "Give the folder or hub id", field="policy.decoder",
    )  # fmt: skip


@pytest.mark.parametrize("source", ["/no/such/place", "./magvit", "magvit", "a/b/c", "~/none"])
def test_what_is_neither_path_nor_hub_id(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(source, f"no file or folder {source!r}", f"sought from {tmp_path}", "hub id owner/name")


# --- the hub, with its own library and errors but no network ---


def cached(cache, folder):
    """A repository as the hub's library keeps it."""
    root, commit = cache / "models--showlab--magvitv2", "0" * 40
    for name in ("refs", "snapshots"):
        (root / name).mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    folder.rename(root / "snapshots" / commit)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_an_offline_hub_without_a_cached_copy(offline):
    refused(
        "showlab/magvitv2", "the hub cannot be reached (or HF_HUB_OFFLINE is set)", str(offline),
        FILE, "pytorch_model.bin", "hf download showlab/magvitv2 --local-dir FOLDER",
    )  # fmt: skip


def test_an_offline_hub_with_a_cached_copy(offline, folder, network):
    (folder / FILE).rename(folder / "model.safetensors")  # not the first name that is sought
    cached(offline, folder)
    same(load_magvit("showlab/magvitv2"), network)


def answers(monkeypatch, answer):
    """The hub's function with another answer; returns the calls it gets."""
    calls = []

    def download(repo, name, *, revision=None, local_files_only=False):
        calls.append((repo, name, revision, local_files_only))
        return answer(name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def raising(kind):
    def answer(name):
        if issubclass(kind, hub.HfHubHTTPError):
            raise kind("first line\nsecond", response=types.SimpleNamespace(headers={}, request=0))
        raise kind("first line\nsecond")

    return answer


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (hub.GatedRepoError, ("is gated: accept its conditions at https://", "hf auth login")),
        (hub.RepositoryNotFoundError, ("neither a folder in", "nor a repository of the hub")),
        (hub.RevisionNotFoundError, ("has no revision 'v9'",)),
        (hub.HfHubHTTPError, ("cannot be had from the hub: first line", "--local-dir")),
        (PermissionError, ("cannot be had from the hub: first line",)),
        (hub.RemoteEntryNotFoundError, ("hub repository showlab/magvitv2 has none of", FILE)),
        (hub.LocalEntryNotFoundError, ("the hub cannot be reached",)),
    ],
)
def test_what_the_hub_says_is_passed_on(monkeypatch, kind, parts):
    answers(monkeypatch, raising(kind))
    refused("showlab/magvitv2", "policy.tokenizer: ", "magvitv2", *parts, revision="v9")


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    """Its library tries for 20 seconds, and there are seven names to ask for."""
    calls = answers(monkeypatch, raising(hub.LocalEntryNotFoundError))
    refused("showlab/magvitv2")
    assert [local for *_, local in calls] == [False] + [True] * (len(calls) - 1)
    assert [name for _, name, *_ in calls][:2] == ["config.json", FILE]


def test_the_hub_is_asked_for_one_weight_file_of_the_revision(monkeypatch, folder, network):
    def answer(name):
        if not (folder / name).exists():
            raising(hub.RemoteEntryNotFoundError)(name)
        return str(folder / name)

    calls = answers(monkeypatch, answer)
    same(load_magvit("showlab/magvitv2", revision="abc"), network)
    assert [call[1:3] for call in calls] == [("config.json", "abc"), (FILE, "abc")]
