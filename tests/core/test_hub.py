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

from genrl_core import ModelFiles, RecipeError, read_tensors


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
    ],
)
def test_a_snapshot_that_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, kind: Any, told: str
) -> None:
    def snapshot(repository: str, **fields: Any) -> str:
        if issubclass(kind, errors.HfHubHTTPError):
            raise kind("first", response=types.SimpleNamespace(headers={}, request=0))
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
