"""Checkpoints: written in one step, verified byte by byte when read, without pickle.

    <run folder>/checkpoints/
        step_000120/<group>.safetensors ...  state.json  MANIFEST.json
        latest.json

A checkpoint appears by the renaming of a finished folder, so whatever is named ``step_*`` was
complete once; the sizes and hashes in its manifest show whether it still is.
"""

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl_core.errors import CheckpointError
from genrl_core.run.files import json_problem, sha256, sync, with_umask, write_atomically

MANIFEST = "MANIFEST.json"
FORMAT = 2
"""The version of the layout; a checkpoint of another version is refused."""
_FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors|state\.json")
"""The only names that a manifest may list."""
_STEP = re.compile(r"step_[0-9]+")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        iteration: how many iterations were complete.
        tensors: group (policy, optimizer, ...) -> name -> tensor on the CPU.
        state: everything else, as JSON gave it back: lists for tuples, text keys.
        path: the folder it was read from.
    """

    iteration: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any], keep: int,
) -> Path:  # fmt: skip
    """Write ``folder/checkpoints/step_<iteration>`` and prune older ones.

    Only one process may save into a run folder at a time. The newest ``keep`` stay; checkpoints of
    later iterations go too, since they belong to a run that was abandoned by resuming earlier.

    Args:
        folder: the run folder.
        iteration: how many iterations are complete.
        tensors: group -> name -> tensor; a group's name is letters, digits and underscores.
        state: JSON: text keys, finite floats.
        keep: how many checkpoints to keep, the new one included; at least 1.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: it could not be written, say because the disk is full. What stood before
            still stands.
    """
    root = folder / "checkpoints"
    final = root / f"step_{iteration:06d}"
    temporary = root / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
    if problem := json_problem(state, "state"):
        raise CheckpointError(f"iteration {iteration}: {problem}, which a checkpoint cannot hold")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        _write(temporary, iteration, tensors, state)
        _move_in(temporary, final)
        pointer = json.dumps({"path": final.name, "iteration": iteration})
        write_atomically(root / "latest.json", pointer + "\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final}: the checkpoint could not be written: {error}; "
            "make room or mend the folder; the older checkpoints are untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(root, final, keep)
    return final


def load(path: Path) -> Snapshot:
    """Read one checkpoint, every byte of it verified.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of an unknown format version.
    """
    files, iteration, state = _verified(path)
    try:
        tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in files}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be read: {error}") from error
    return Snapshot(iteration, tensors, state, path)


def latest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest valid checkpoint of a run folder.

    Returns:
        The checkpoint, or None where there is none, and one message for every newer one that was
        passed over and for a ``latest.json`` that names something else.
    """
    skipped: list[str] = []
    return next(snapshots(folder, skipped), None), skipped


def snapshots(folder: Path, skipped: list[str]) -> Iterator[Snapshot]:
    """The valid checkpoints of a run folder, newest first, read one at a time.

    Args:
        folder: the run folder.
        skipped: why others were passed over is added here.
    """
    skipped += _pointer_problem(folder)
    for path in reversed(saved_steps(folder)):
        try:
            snapshot = load(path)
            if snapshot.iteration != _number(path):
                raise CheckpointError(f"{path}: it says that it is of {snapshot.iteration}")
        except CheckpointError as error:
            skipped.append(f"passed over: {error}")
            continue
        yield snapshot


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first, unread; each was complete when written."""
    root = folder / "checkpoints"
    found = root.iterdir() if root.is_dir() else ()
    # Links and strays are not looked at.
    steps = [p for p in found if _STEP.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(steps, key=lambda p: (_number(p), p.name))


@contextmanager
def as_checkpoint_error(path: Path) -> Iterator[None]:
    """Say in one way whatever breaks on contents that no save wrote.

    Raises:
        CheckpointError: with the folder and what broke.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: it holds what no GenRL wrote ({error!r})") from error


def _write(
    temporary: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:  # fmt: skip
    temporary.mkdir()
    for group, named in tensors.items():
        if not _FILE.fullmatch(f"{group}.safetensors"):
            raise ValueError(f"{group!r} is no name of a group of tensors")
        with with_umask(file := temporary / f"{group}.safetensors"):
            save_file(_plain(named), file)
    content = json.dumps({"iteration": iteration, "state": state}, indent=1, allow_nan=False)
    (temporary / "state.json").write_text(content + "\n", encoding="utf-8")
    write_manifest(temporary, iteration)


def _plain(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors wants them."""
    whole = torch.contiguous_format
    return {name: t.detach().cpu().clone(memory_format=whole) for name, t in named.items()}


def write_manifest(folder: Path, iteration: int) -> None:
    """Flush every file of ``folder`` to the disk and write the manifest last."""
    files = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    manifest = {"format": FORMAT, "iteration": iteration, "files": files}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _verified(path: Path) -> tuple[list[str], int, dict[str, Any]]:
    """The names of the tensor files, the iteration and the state, after all were found whole.

    Raises:
        CheckpointError: what is wrong, with the name of the file.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    if not (path / MANIFEST).exists():
        raise CheckpointError(f"{path}: {MANIFEST} is missing")
    version, iteration, files = _fields(path, MANIFEST, "format", "iteration", "files")
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: format version {version!r} is unknown; this GenRL reads {FORMAT}"
        )
    if not isinstance(files, dict) or "state.json" not in files:
        raise CheckpointError(f"{path}: {MANIFEST} does not list state.json")
    for name, entry in files.items():
        if problem := _file_problem(path, name, entry):
            raise CheckpointError(f"{path}: {problem}")
    number, state = _fields(path, "state.json", "iteration", "state")
    if number != iteration:
        raise CheckpointError(f"{path}: {MANIFEST} and state.json disagree on the iteration")
    if type(number) is not int or number < 0 or not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: state.json is no state after a number of iterations ({number!r})"
        )
    return [name for name in files if name != "state.json"], number, state


def _fields(path: Path, name: str, *keys: str) -> list[Any]:
    """The values of a JSON file under these keys."""
    try:
        content = json.loads((path / name).read_bytes())
        return [content[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {name} is unreadable ({error!r})") from None


def _file_problem(path: Path, name: str, entry: Any) -> str | None:
    file = path / name
    if not _FILE.fullmatch(name):
        return f"{MANIFEST} lists {name!r}, which is no file of a checkpoint"
    if not file.is_file() or file.is_symlink():
        return f"{name} is missing"
    try:
        found, expected = file.stat().st_size, entry["size"]
        if found != expected:
            return f"{name} is truncated or replaced ({found} bytes, not {expected})"
        whole = sha256(file) == entry["sha256"]
    except (OSError, LookupError, TypeError) as error:
        return f"{name} is unreadable ({error!r})"
    return None if whole else f"{name} is damaged (sha256 differs)"


def _move_in(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.replace(final)
    elif not _same(temporary, final):
        aside = _set_aside(final)
        try:
            temporary.replace(final)
        except OSError:
            aside.replace(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync(final.parent)


def _same(temporary: Path, final: Path) -> bool:
    """Whether a checkpoint that stands is whole and equal to a new one."""
    try:
        _verified(final)
    except CheckpointError:
        return False
    return (final / MANIFEST).read_bytes() == (temporary / MANIFEST).read_bytes()


def _set_aside(path: Path) -> Path:
    """Rename what is to be deleted: a half-deleted folder must not look like a checkpoint."""
    return path.replace(path.with_name(f".tmp-old-{path.name}-{uuid.uuid4().hex[:8]}"))


def _sweep(root: Path) -> None:
    """Remove what dead writes left; the run folder's lock says that no other write is alive."""
    for path in root.glob(".tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _prune(root: Path, newest: Path, keep: int) -> None:
    steps = saved_steps(root.parent)
    older = [path for path in steps if _number(path) < _number(newest)]
    kept = {newest, *older[max(0, len(older) - keep + 1) :]}
    for path in steps:
        if path not in kept:
            # An old checkpoint too many is no reason to lose the run.
            with suppress(OSError):
                shutil.rmtree(_set_aside(path), ignore_errors=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _pointer_problem(folder: Path) -> list[str]:
    """What is wrong with ``latest.json``, which people and scripts read; nothing here obeys it."""
    pointer = folder / "checkpoints" / "latest.json"
    try:
        name = json.loads(pointer.read_bytes())["path"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{pointer} is unreadable ({error!r})"]
    known = [path.name for path in saved_steps(folder)]
    return [] if name in known else [f"{pointer} names {name!r}, which does not exist"]
