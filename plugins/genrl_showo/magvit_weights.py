"""Checkpoints of Show-o's family: the file sought in a folder or on the hub, read, and compared.

Their repositories name the weights as neither transformers nor diffusers does. Nothing is read that
could run code: safetensors, or a pickle of tensors alone (``weights_only=True``).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrl_core import RecipeError, Tensors

WEIGHT_FILES = (
    "pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What the weights may be called, the first that is found being taken; an index names shards."""

_SHOWN = 5
"""How many keys of a kind a message lists before it counts the rest."""


class Checkpoint:
    """Where the files of a published model are: one file, a folder, or a repository of the hub.

    Args:
        source: a path, or a hub id ``owner/name``; a path that exists comes first.
        field: what the recipe calls it, for messages: ``policy.tokenizer``.
        revision: branch, tag or commit of a hub repository; None for its main branch.
    """

    def __init__(self, source: str, field: str, revision: str | None = None):
        self.source = source
        self.field = field
        self.revision = revision
        self._offline = False

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` holds; empty where there is none.

        Raises:
            RecipeError: it is not a JSON object, or the source cannot be reached.
        """
        path = self._first(("config.json",))
        if path is None:
            return {}
        found = _json(path, self.field)
        if not isinstance(found, dict):
            raise RecipeError(f"{self.field}: {path} holds no JSON object")
        return found

    def tensors(self, names: tuple[str, ...] = WEIGHT_FILES) -> tuple[Path, Tensors]:
        """The first of the weight files that is there, and its tensors on the CPU by key.

        Raises:
            RecipeError: none of them is there, or one cannot be read or holds more than tensors.
        """
        place = Path(self.source).expanduser()
        path = place if place.is_file() else self._required(names)
        if path.suffix != ".json":
            return path, read_tensors(path, self.field)
        state: Tensors = {}
        for shard in _shards(path, self.field):
            state |= read_tensors(self._required((shard,)), self.field)
        return path, state

    def _first(self, names: tuple[str, ...]) -> Path | None:
        """The first of the names that is there."""
        folder = self._folder()
        if folder is None:
            return self._download(names, required=False)
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def _required(self, names: tuple[str, ...]) -> Path:
        folder = self._folder()
        found = self._download(names, required=True) if folder is None else self._first(names)
        if found is None:
            assert folder is not None
            raise RecipeError(self._missing(f"the folder {folder.resolve()}", names, folder))
        return found

    def _folder(self) -> Path | None:
        """The folder of this machine that holds the files; None for a repository of the hub."""
        place = Path(self.source).expanduser()
        place = place.parent if place.is_file() else place
        return place if place.is_dir() else None

    def _download(self, names: tuple[str, ...], *, required: bool) -> Path | None:
        """The same from the hub, or from its cache on this machine."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", self.source):
            raise RecipeError(
                f"{self.field}: there is no file or folder {self.source!r} (sought from "
                f"{Path.cwd()}), nor is that a hub id owner/name"
            )
        for name in names:
            try:
                found = hf_hub_download(
                    self.source, name, revision=self.revision, local_files_only=self._offline
                )
                return Path(found)
            except LocalEntryNotFoundError:  # comes after 20 s of retries, so only once
                self._offline = True
            except EntryNotFoundError:
                continue
            except (OSError, HFValidationError) as error:
                raise RecipeError(f"{self.field}: {self._refused(error)}") from error
        if not required:
            return None
        if self._offline:
            raise RecipeError(f"{self.field}: {self._unreachable(names)}")
        raise RecipeError(self._missing(f"the hub repository {self.source}", names, None))

    def _missing(self, where: str, names: tuple[str, ...], folder: Path | None) -> str:
        there = "" if folder is None else f"; it holds {_listing(p.name for p in folder.iterdir())}"
        return (
            f"{self.field}: {where} has none of {', '.join(names)}{there}. Give the folder or hub "
            "id that holds one of them, or the weight file itself"
        )

    def _unreachable(self, names: tuple[str, ...]) -> str:
        from huggingface_hub.constants import HF_HUB_CACHE

        return (
            f"there is no folder {self.source} in {Path.cwd()}, the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set), and its cache {HF_HUB_CACHE} has none of {', '.join(names)} "
            f"of {self.source}. Where there is a network run `hf download {self.source} "
            "--local-dir FOLDER`, and give that folder"
        )

    def _refused(self, error: Exception) -> str:
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        page = f"https://huggingface.co/{self.source}"
        if isinstance(error, GatedRepoError):  # also a RepositoryNotFoundError
            return (
                f"{self.source} is gated: accept its conditions at {page}, then log in with "
                "`hf auth login` or set HF_TOKEN"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{self.source} has no revision {self.revision!r}: see {page}/tree/main"
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{self.source} is neither a folder in {Path.cwd()} nor a repository of the hub "
                "that you may read: check the name, or log in with `hf auth login` if it is private"
            )
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"{self.source} cannot be had from the hub: {first}. Try again, or run `hf download "
            f"{self.source} --local-dir FOLDER` and give that folder"
        )


def read_tensors(path: Path, field: str) -> Tensors:
    """The tensors of one file by key, on the CPU.

    Raises:
        RecipeError: it is damaged, or a pickle that holds anything but a dictionary of tensors.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[:1]
        raise RecipeError(
            f"{field}: {path} ({path.stat().st_size} bytes) cannot be read as tensors: "
            f"{''.join(first)}. It is damaged, half downloaded, a Git LFS pointer, or a pickle of "
            "other things, which GenRL does not open: download it again, as safetensors if possible"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise RecipeError(
            f"{field}: {path} holds no plain state dict, a tensor per key: save the model's "
            "state_dict() alone"
        )
    return {str(key): value for key, value in found.items()}


def fit(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put a state dict into a network, which may be on the meta device; all keys must agree.

    The tensors become the network's own, in the dtype and on the device that they have.

    Raises:
        RecipeError: keys are missing, unexpected or of another shape; ``where`` begins it.
    """
    expected = network.state_dict()
    problem = mismatch({key: tensor.shape for key, tensor in expected.items()}, state)
    if problem:
        raise RecipeError(f"{where} {problem}")
    network.load_state_dict(dict(state), assign=True)


def mismatch(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> str:
    """What differs between the expected shapes and a state dict, as half a sentence; or empty."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    kinds = ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
    parts = [f"{len(keys)} {name} ({_listing(keys)})" for keys, name in kinds if keys]
    if not parts:
        return ""
    return f"does not fit: of {len(expected)} keys, {', '.join(parts)}"


def _listing(names: Iterable[str]) -> str:
    """The first few names in the order given, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) or "nothing") + more


def _json(path: Path, field: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{field}: {path} is not JSON: {error}") from error


def _shards(index: Path, field: str) -> list[str]:
    """The names of the files that an index spreads the tensors over, each once."""
    found = _json(index, field)
    names = found.get("weight_map") if isinstance(found, dict) else None
    plain = isinstance(names, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    )
    if not plain or not names:
        raise RecipeError(
            f"{field}: {index} has no weight_map from keys to names of files beside it"
        )
    return sorted(set(names.values()))
