"""Files of published models: sought in a folder of this machine or on the Hugging Face hub.

Where one is not to be had, the message says which file was sought where and what to do. Nothing is
read that could run code: JSON, and tensors by ``tensor_files``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from genrl_core import RecipeError, Tensors
from genrl_models.tensor_files import WEIGHT_FILES, listing, read_tensors


class ModelFiles:
    """Where the files of a published model are: one file, a folder, or a repository of the hub.

    Every method that asks the hub raises ``RecipeError`` where the source is neither a path nor a
    hub id, is closed, or cannot be reached.

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
            RecipeError: it is not a JSON object.
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
        """The first of the names that is there, or None."""
        if (folder := self._folder()) is not None:
            return next((folder / name for name in names if (folder / name).is_file()), None)
        for name in names:
            with self._asking((name,)):
                try:
                    return Path(
                        huggingface_hub.hf_hub_download(
                            self.source, name, revision=self.revision,
                            local_files_only=self._offline,
                        )
                    )  # fmt: skip
                except errors.LocalEntryNotFoundError:  # comes after 20 s of retries: ask no more
                    self._offline = True
                except errors.EntryNotFoundError:
                    continue
        return None

    def path(self, names: tuple[str, ...]) -> Path:
        """The first of the names that is there.

        Raises:
            RecipeError: none of them is there.
        """
        if (found := self.find(names)) is not None:
            return found
        folder = self._folder()
        if folder is None and self._offline:
            raise RecipeError(f"{self.field}: {self._unreachable(names)}")
        where, there = f"the hub repository {self.source}", ""
        if folder is not None:
            where = f"the folder {folder.resolve()}"
            there = f"; it holds {listing(path.name for path in folder.iterdir())}"
        raise RecipeError(
            f"{self.field}: {where} has none of {', '.join(names)}{there}. Give the folder or hub "
            "id that holds one of them, or the weight file itself"
        )

    def expect(self, names: tuple[str, ...]) -> None:
        """Raise where none of the names is there, as far as that is known without a download.

        Call it before complaining about a setting that is missing, so that a wrong folder or an
        unreachable hub is reported as such.
        """
        single = Path(self.source).expanduser().is_file()
        if not single and (self._folder() is not None or self._offline):
            self.path(names)

    def folder(self, patterns: Sequence[str], without: Sequence[str] = ()) -> Path:
        """The folder itself; of a hub repository the snapshot that holds what fits ``patterns``.

        Args:
            patterns: of the files to download, as ``tokenizer/*``.
            without: patterns of files to leave out all the same.
        """
        folder = self._folder()
        if folder is not None:
            return folder
        with self._asking(patterns):
            return Path(
                huggingface_hub.snapshot_download(
                    self.source, revision=self.revision, allow_patterns=list(patterns),
                    ignore_patterns=list(without),
                )
            )  # fmt: skip

    def _folder(self) -> Path | None:
        """The folder of this machine that holds the files; None for a repository of the hub."""
        place = Path(self.source).expanduser()
        place = place.parent if place.is_file() else place
        return place if place.is_dir() else None

    @contextmanager
    def _asking(self, names: Sequence[str]) -> Iterator[None]:
        """Around a question to the hub: whatever its library raises becomes one sentence."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", self.source):
            raise RecipeError(
                f"{self.field}: there is no file or folder {self.source!r} (sought from "
                f"{Path.cwd()}), nor is that a hub id owner/name"
            )
        try:
            yield
        except errors.LocalEntryNotFoundError as error:
            raise RecipeError(f"{self.field}: {self._unreachable(names)}") from error
        except Exception as error:  # of the network, the disk or the library
            raise RecipeError(f"{self.field}: {self._refused(error)}") from error

    def _unreachable(self, names: Sequence[str]) -> str:
        return (
            f"there is no folder {self.source} in {Path.cwd()}, the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set), and its cache {constants.HF_HUB_CACHE} has none of "
            f"{', '.join(names)} of {self.source}. Where there is a network run `hf download "
            f"{self.source} --local-dir FOLDER`, and give that folder"
        )

    def _refused(self, error: Exception) -> str:
        source, page = self.source, f"https://huggingface.co/{self.source}"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        match error:
            case errors.GatedRepoError():  # also a RepositoryNotFoundError
                return (
                    f"{source} is gated: accept its conditions at {page}, then log in with "
                    "`hf auth login` or set HF_TOKEN"
                )
            case errors.RevisionNotFoundError():
                return f"{source} has no revision {self.revision!r}: see {page}/tree/main"
            case errors.RepositoryNotFoundError():
                return (
                    f"{source} is neither a folder in {Path.cwd()} nor a repository of the hub "
                    "that you may read: check the name, or log in with `hf auth login` if it is "
                    "private"
                )
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            return (
                f"the hub refuses to give {source}: {first}. The token that is set may be wrong or "
                "expired: log in with `hf auth login`, or set HF_TOKEN anew or not at all"
            )
        return (
            f"{source} cannot be had from the hub: {first}. Try again, or run `hf download "
            f"{source} --local-dir FOLDER` and give that folder"
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
