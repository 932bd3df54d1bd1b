"""What is written, atomically; what is resumed, exactly: verified checkpoints without pickle.

    <run folder>/checkpoints/
        step_000120/<group>.safetensors ...  state.json  MANIFEST.json
        latest.json

A checkpoint appears in one step, by the renaming of a finished folder, so whatever is named
``step_*`` was complete once; the manifest's sizes and hashes show whether it still is.
"""

import json
import math
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl_core.errors import CheckpointError
from genrl_core.run.files import sync, with_umask, write_atomically
from genrl_core.run.manifest import FILE, NAME, seal, verify
from genrl_core.run.moments import load_optimizer, optimizer_state, optimizer_tensors

__all__ = [
    "Snapshot", "latest", "load", "load_optimizer", "newest", "optimizer_state",
    "optimizer_tensors", "save", "snapshots", "understood",
]  # fmt: skip

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
    folder: Path,
    iteration: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
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
    text = _state_text(iteration, state)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        _write(temporary, iteration, tensors, text)
        _move_in(temporary, final)
        latest_text = json.dumps({"path": final.name, "iteration": iteration})
        write_atomically(root / "latest.json", latest_text + "\n")
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
    manifest = verify(path)
    tensors = {}
    try:
        content = json.loads((path / "state.json").read_bytes())
        for name in manifest["files"]:
            if name != "state.json":
                tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be read: {error}") from error
    iteration, state = content["iteration"], content["state"]
    return Snapshot(iteration, tensors, state, path)


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of a run folder.

    Returns:
        Its folder, or None where there is none, and one message for every newer one that was passed
        over and for a ``latest.json`` that names something else.
    """
    root = folder / "checkpoints"
    messages = []
    for path in reversed(_steps(root)):
        try:
            verify(path)
        except CheckpointError as error:
            messages.append(f"passed over: {error}")
            continue
        return path, messages + _pointer_problem(root)
    return None, messages + _pointer_problem(root)


def snapshots(folder: Path, skipped: list[str]) -> Iterator[Snapshot]:
    """The valid checkpoints of a run folder, newest first, read one at a time.

    Args:
        folder: the run folder.
        skipped: why others were passed over is added here.
    """
    root = folder / "checkpoints"
    skipped += _pointer_problem(root)
    for path in reversed(_steps(root)):
        try:
            snapshot = load(path)
            if snapshot.iteration != _number(path):
                raise CheckpointError(f"{path}: it says that it is of {snapshot.iteration}")
        except CheckpointError as error:
            skipped.append(f"passed over: {error}")
            continue
        yield snapshot


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, which is not read; it was complete when written."""
    return next(reversed(_steps(folder / "checkpoints")), None)


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Whatever breaks on contents that no save wrote is said in one way.

    Raises:
        CheckpointError: with the folder and what broke.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: it holds what no GenRL wrote ({error!r})") from error


def _state_text(iteration: int, state: Mapping[str, Any]) -> str:
    problem = _not_json(state, "state")
    if problem:
        raise CheckpointError(f"iteration {iteration}: {problem}, which a checkpoint cannot hold")
    content = {"iteration": iteration, "state": state}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _not_json(value: Any, where: str) -> str | None:
    """What would not come back from JSON as it went in (tuples aside)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{where} has the key {key!r}"
            if problem := _not_json(item, f"{where}.{key}"):
                return problem
        return None
    if isinstance(value, list | tuple):
        problems = (_not_json(item, f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where} is {value}"
    if value is None or isinstance(value, bool | int | float | str):
        return None
    return f"{where} is a {type(value).__name__}"


def _write(
    temporary: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], text: str
) -> None:
    temporary.mkdir()
    for group, named in tensors.items():
        if not FILE.fullmatch(f"{group}.safetensors"):
            raise ValueError(f"{group!r} is no name of a group of tensors")
        with with_umask(file := temporary / f"{group}.safetensors"):
            save_file(_plain(named), file)
    (temporary / "state.json").write_text(text, encoding="utf-8")
    seal(temporary, iteration)


def _plain(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors wants them."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in named.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.nbytes:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        plain[name] = own
    return plain


def _move_in(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.replace(final)
    elif _damage(final) or (final / NAME).read_bytes() != (temporary / NAME).read_bytes():
        aside = final.with_name(f".tmp-old-{final.name}-{uuid.uuid4().hex[:8]}")
        final.replace(aside)
        try:
            temporary.replace(final)
        except OSError:
            aside.replace(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync(final.parent)


def _sweep(root: Path) -> None:
    """Remove what dead writes left; the run folder's lock says that no other write is alive."""
    for path in root.glob(".tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _prune(root: Path, newest: Path, keep: int) -> None:
    older = [path for path in _steps(root) if _number(path) < _number(newest)]
    kept = {newest, *older[max(0, len(older) - keep + 1) :]}
    for path in _steps(root):
        if path not in kept:
            try:
                # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
                doomed = path.with_name(f".tmp-old-{path.name}-{uuid.uuid4().hex[:8]}")
                path.replace(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            except OSError:
                continue  # an old checkpoint too many is no reason to lose the run


def _steps(root: Path) -> list[Path]:
    """The folders named like checkpoints, oldest first; links and strays are not looked at."""
    found = root.iterdir() if root.is_dir() else ()
    steps = [p for p in found if _STEP.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(steps, key=lambda p: (_number(p), p.name))


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _pointer_problem(root: Path) -> list[str]:
    """What is wrong with ``latest.json``, which people and scripts read; nothing here obeys it."""
    pointer = root / "latest.json"
    try:
        name = json.loads(pointer.read_bytes())["path"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{pointer} is unreadable ({error!r})"]
    known = [path.name for path in _steps(root)]
    return [] if name in known else [f"{pointer} names {name!r}, which does not exist"]


def _damage(path: Path) -> str | None:
    try:
        verify(path)
    except CheckpointError as error:
        return str(error)
    return None
