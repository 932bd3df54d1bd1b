"""Files of published models: folders, the hub's snapshots, and pickles of several things.

Weight files, shards, and each answer of the hub: ``tests/plugins/showo/test_magvit_weights.py``.
"""

import types
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors as errors
import pytest
import torch

from genrl_core import RecipeError
from genrl_models import ModelFiles, read_tensors


def files(source: Path | str, revision: str | None = None) -> ModelFiles:
    return ModelFiles(str(source), "policy.part", revision)


def test_a_folder_is_itself_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert files(tmp_path).folder(["*.json"]) == tmp_path
    (tmp_path / "a.pt").write_text("")
    assert files(tmp_path / "a.pt").folder([]) == tmp_path
    assert files(tmp_path).find(("b", "a.pt")) == tmp_path / "a.pt"
    assert files(tmp_path).find(("b",)) is None


def test_a_snapshot_holds_what_fits_the_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def snapshot(repository: str, **fields: Any) -> str:
        calls.append((repository, fields))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert files("a/b", "v1").folder(("x/*",), without=("*.bin",)) == tmp_path
    asked = {"revision": "v1", "allow_patterns": ["x/*"], "ignore_patterns": ["*.bin"]}
    assert calls == [("a/b", asked)]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (errors.GatedRepoError, "a/b is gated: accept its conditions at https://huggingface.co/a"),
        (errors.RepositoryNotFoundError, "a/b is neither a folder in"),
        (errors.RevisionNotFoundError, "a/b has no revision 'v1'"),
        (errors.LocalEntryNotFoundError, "has none of x/* of a/b. Where there is a network run"),
        (PermissionError, "a/b cannot be had from the hub: first. Try again"),
        (RuntimeError, "a/b cannot be had from the hub: first. Try again"),
        (errors.HfHubHTTPError, "the hub refuses to give a/b: first. The token that is set may be"),
    ],
)
def test_a_snapshot_that_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, kind: Any, told: str
) -> None:
    def snapshot(repository: str, **fields: Any) -> str:
        if issubclass(kind, errors.HfHubHTTPError):
            answer = types.SimpleNamespace(headers={}, request=0, status_code=401)
            raise kind("first", response=answer)
        raise kind("first\nsecond")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(RecipeError) as caught:
        files("a/b", "v1").folder(("x/*",))
    assert str(caught.value).startswith("policy.part: ") and told in str(caught.value)


def test_settings_by_name(tmp_path: Path) -> None:
    assert files(tmp_path).settings() == {}
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert files(tmp_path).settings("other.json") == {"a": 1}


def test_a_state_dict_among_other_things_is_asked_for_by_its_key(tmp_path: Path) -> None:
    path, state = tmp_path / "x.pt", {"a": torch.ones(2)}
    torch.save({"epoch": 3, "state_dict": state}, path)
    with pytest.raises(RecipeError, match="holds no plain state dict"):
        read_tensors(path, "policy.part")
    assert read_tensors(path, "policy.part", inside="state_dict")["a"].equal(state["a"])
    torch.save(state, path)  # the key is where it may be, not where it must be
    assert read_tensors(path, "policy.part", inside="state_dict")["a"].equal(state["a"])


@pytest.mark.parametrize("found", [RuntimeError, PermissionError, KeyError])
@pytest.mark.parametrize("required", [True, False])
def test_a_download_that_breaks_off_is_told_whatever_the_library_raises(
    monkeypatch: pytest.MonkeyPatch, found: type[Exception], required: bool
) -> None:
    """A connection that breaks in mid-file is neither an OSError nor one of the hub's own."""

    def download(*_: Any, **__: Any) -> str:
        raise found("first\nsecond")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    ask = files("a/b").path if required else files("a/b").find
    with pytest.raises(RecipeError, match=r"^policy\.part: a/b cannot be had from the hub: "):
        ask(("x.json",))


@pytest.mark.parametrize("data", [b"", b"0", b"h\x05", b"J\x01", b"\x80\x02cbuiltins\neval\n."])
def test_bytes_that_are_no_pickle_are_told_whatever_reading_them_raises(
    tmp_path: Path, data: bytes
) -> None:
    """As opcodes: an empty stack, an unknown memory cell, half a number, code."""
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=rf"x\.pt \({len(data)} bytes\) cannot be read as tens"):
        read_tensors(path, "policy.part")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_pickle_is_told_wherever_the_damage_is(tmp_path: Path) -> None:
    path, refused = tmp_path / "x.pt", 0
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    sound = path.read_bytes()
    for place in range(0, len(sound), 3):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x55]) + sound[place + 1 :])
        try:
            read_tensors(path, "policy.part")
        except RecipeError:
            refused += 1
    assert refused > len(sound) / 6


def test_a_file_that_the_system_does_not_give(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.pt cannot be read: No such file"):
        read_tensors(tmp_path / "gone.pt", "policy.part")
