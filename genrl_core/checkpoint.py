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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrl_core.errors import CheckpointError
from genrl_core.files import sync, with_umask, write_atomically
from genrl_core.manifest import FILE, NAME, seal, verify

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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors (not copied) and JSON, for ``load_optimizer``.

    Tensors are named ``<parameter>.<name>`` and, where a setting of a group is a tensor,
    ``group<number>.<name>``.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entry in packed["state"].items():
        for name, value in entry.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    groups = []
    for number, group in enumerate(packed["param_groups"]):
        held = {name: value for name, value in group.items() if isinstance(value, Tensor)}
        tensors |= {f"group{number}.{name}": value for name, value in held.items()}
        groups.append({name: value for name, value in group.items() if name not in held})
    kind, shapes = type(optimizer).__name__, _shapes(optimizer)
    return tensors, {"class": kind, "shapes": shapes, "scalars": scalars, "groups": groups}


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], json_state: Mapping[str, Any]
) -> None:
    """Put back what ``optimizer_tensors`` gave, bit for bit.

    Raises:
        CheckpointError: it belongs to another optimizer or to other parameters.
    """
    if json_state["class"] != type(optimizer).__name__:
        raise CheckpointError(
            f"the checkpoint's optimizer is {json_state['class']}, "
            f"the recipe's is {type(optimizer).__name__}"
        )
    if json_state["shapes"] != _shapes(optimizer):
        raise CheckpointError(
            "the checkpoint's optimizer trains parameters of other shapes or in another order "
            f"({_first_difference(json_state['shapes'], _shapes(optimizer))})"
        )
    groups = [
        # JSON knows no tuples; torch compares betas and the like as they were given.
        {
            name: tuple(value) if isinstance(live.get(name), tuple) else value
            for name, value in saved.items()
        }
        for saved, live in zip(json_state["groups"], optimizer.param_groups, strict=True)
    ]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **json_state["scalars"]}.items():
        owner, _, name = key.partition(".")
        numbered = owner.removeprefix("group")
        entry = state.setdefault(int(owner), {}) if numbered == owner else groups[int(numbered)]
        # Cloned, since the optimizer would otherwise write into the snapshot.
        entry[name] = value.clone() if isinstance(value, Tensor) else value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]


def _first_difference(saved: list[list[Any]], live: list[list[Any]]) -> str:
    if [len(group) for group in saved] != [len(group) for group in live]:
        return f"groups of {[len(g) for g in saved]} parameters, here {[len(g) for g in live]}"
    pairs = ((a, b) for x, y in zip(saved, live, strict=True) for a, b in zip(x, y, strict=True))
    return next(f"shape {a}, here {b}" for a, b in pairs if a != b)


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
