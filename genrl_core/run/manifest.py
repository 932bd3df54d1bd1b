"""The manifest of a checkpoint: which files it has, how long they are, and their hashes."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from genrl_core.errors import CheckpointError
from genrl_core.run.files import sync, write_atomically

NAME = "MANIFEST.json"
FORMAT = 1
"""The version of the layout; a checkpoint of another version is refused."""
FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors|state\.json")
"""The only names that a manifest may list."""


def seal(folder: Path, iteration: int) -> None:
    """Flush every file of ``folder`` to the disk and write the manifest last."""
    files = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    manifest = {"format": FORMAT, "iteration": iteration, "files": files}
    write_atomically(folder / NAME, json.dumps(manifest, indent=1) + "\n")


def verify(path: Path) -> dict[str, Any]:
    """The manifest, after every file in it was found whole.

    Raises:
        CheckpointError: what is wrong, with the name of the file.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        manifest = json.loads((path / NAME).read_bytes())
        version, iteration, files = (manifest[k] for k in ("format", "iteration", "files"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: MANIFEST.json is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: MANIFEST.json is unreadable ({error!r})") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: format version {version!r} is unknown; this GenRL reads {FORMAT}"
        )
    if "state.json" not in expected:
        raise CheckpointError(f"{path}: MANIFEST.json does not list state.json")
    for name, (size, digest) in expected.items():
        if problem := _file_problem(path, name, size, digest):
            raise CheckpointError(f"{path}: {problem}")
    if problem := _state_problem(path / "state.json", iteration):
        raise CheckpointError(f"{path}: {problem}")
    return dict(manifest)


def _state_problem(file: Path, iteration: Any) -> str | None:
    try:
        content = json.loads(file.read_bytes())
        number, state = content["iteration"], content["state"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"state.json is unreadable ({error!r})"
    if number != iteration:
        return "MANIFEST.json and state.json disagree on the iteration"
    if type(number) is not int or number < 0 or not isinstance(state, dict):
        return f"state.json is no state after a number of iterations ({number!r})"
    return None


def _file_problem(path: Path, name: str, size: int, digest: str) -> str | None:
    if not FILE.fullmatch(name):
        return f"MANIFEST.json lists {name!r}, which is no file of a checkpoint"
    file = path / name
    if not file.is_file() or file.is_symlink():
        return f"{name} is missing"
    try:
        if file.stat().st_size != size:
            return f"{name} is truncated or replaced ({file.stat().st_size} bytes, not {size})"
        return None if sha256(file) == digest else f"{name} is damaged (sha256 differs)"
    except OSError as error:
        return f"{name} is unreadable ({error})"


def sha256(file: Path) -> str:
    """The hash of a file's contents, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
