"""Files of published models: sought in a folder of this machine or on the Hugging Face hub.

Where one is not to be had, the message says which file was sought where and what to do. Nothing is
read that could run code: JSON, and tensors by ``tensor_files``.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genrl_core import RecipeError, Tensors
from genrl_models.tensor_files import WEIGHT_FILES, listing, read_tensors


class ModelFiles:
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

    def settings(self, name: str = "config.json") -> dict[str, Any]:
        """What a JSON file holds; empty where there is none.

        Raises:
            RecipeError: it is not a JSON object, or the source cannot be reached.
        """
        path = self.find((name,))
        if path is None:
            return {}
        found = _json(path, self.field)
        if not isinstance(found, dict):
            raise RecipeError(f"{self.field}: {path} holds no JSON object")
        return found

    def tensors(
        self, names: tuple[str, ...] = WEIGHT_FILES, inside: str | None = None
    ) -> tuple[Path, Tensors]:
        """The first of the weight files that is there, and its tensors on the CPU by key.

        Args:
            names: what the file may be called.
            inside: the key under which the file may hold its state dict among other things.

        Raises:
            RecipeError: none of them is there, or one cannot be read or holds more than tensors.
        """
        place = Path(self.source).expanduser()
        path = place if place.is_file() else self.path(names)
        if path.suffix != ".json":
            return path, read_tensors(path, self.field, inside)
        state: Tensors = {}
        for shard in _shards(path, self.field):
            state |= read_tensors(self.path((shard,)), self.field)
        return path, state

    def find(self, names: tuple[str, ...]) -> Path | None:
        """The first of the names that is there, or None.

        Raises:
            RecipeError: there is no such source, or it is closed.
        """
        folder = self._folder()
        if folder is None:
            return self._download(names, required=False)
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def path(self, names: tuple[str, ...]) -> Path:
        """The first of the names that is there.

        Raises:
            RecipeError: none of them is there.
        """
        folder = self._folder()
        found = self._download(names, required=True) if folder is None else self.find(names)
        if found is None:
            assert folder is not None
            raise RecipeError(self._missing(f"the folder {folder.resolve()}", names, folder))
        return found

    def expect(self, names: tuple[str, ...]) -> None:
        """Stop where none of the names is there, as far as that is known without a download.

        For a caller that lacks what a small file says: where the folder is the wrong one, or the
        hub out of reach, that is what the message has to be about.

        Raises:
            RecipeError: the folder has none of them, or an unreachable hub's cache has none.
        """
        if Path(self.source).expanduser().is_file():
            return
        if self._folder() is not None or self._offline:
            self.path(names)

    def folder(self, patterns: Sequence[str], without: Sequence[str] = ()) -> Path:
        """The folder itself; of a hub repository the snapshot that holds what fits ``patterns``.

        Args:
            patterns: of the files to download, as ``tokenizer/*``.
            without: patterns of files to leave out all the same.

        Raises:
            RecipeError: there is no such source, it is closed, or the hub is out of reach.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        folder = self._folder()
        if folder is not None:
            return folder
        self._check_id()
        try:
            return Path(
                snapshot_download(
                    self.source, revision=self.revision, allow_patterns=list(patterns),
                    ignore_patterns=list(without),
                )
            )  # fmt: skip
        except LocalEntryNotFoundError as error:
            raise RecipeError(f"{self.field}: {self._unreachable(tuple(patterns))}") from error
        except Exception as error:  # of the network, the disk or the library
            raise RecipeError(f"{self.field}: {self._refused(error)}") from error

    def _folder(self) -> Path | None:
        """The folder of this machine that holds the files; None for a repository of the hub."""
        place = Path(self.source).expanduser()
        place = place.parent if place.is_file() else place
        return place if place.is_dir() else None

    def _check_id(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", self.source):
            raise RecipeError(
                f"{self.field}: there is no file or folder {self.source!r} (sought from "
                f"{Path.cwd()}), nor is that a hub id owner/name"
            )

    def _download(self, names: tuple[str, ...], *, required: bool) -> Path | None:
        """The first of the names from the hub, or from its cache on this machine."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        self._check_id()
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
            except Exception as error:  # of the network, the disk or the library
                raise RecipeError(f"{self.field}: {self._refused(error)}") from error
        if not required:
            return None
        if self._offline:
            raise RecipeError(f"{self.field}: {self._unreachable(names)}")
        raise RecipeError(self._missing(f"the hub repository {self.source}", names, None))

    def _missing(self, where: str, names: tuple[str, ...], folder: Path | None) -> str:
        there = "" if folder is None else f"; it holds {listing(p.name for p in folder.iterdir())}"
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
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            return (
                f"the hub refuses to give {self.source}: {first}. The token that is set may be "
                "wrong or expired: log in with `hf auth login`, or set HF_TOKEN anew or not at all"
            )
        return (
            f"{self.source} cannot be had from the hub: {first}. Try again, or run `hf download "
            f"{self.source} --local-dir FOLDER` and give that folder"
        )


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
