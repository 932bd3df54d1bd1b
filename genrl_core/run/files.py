"""Files that survive a crash: strict JSON, replacement in one step, whole lines or none."""

import errno
import hashlib
import json
import math
import os
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def json_safe(value: Any) -> Any:
    """The value as plain JSON: NaN and infinities become None, unknown objects their text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return json_safe(value.item())
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """``json_safe(value)`` as JSON that every parser reads."""
    return json.dumps(json_safe(value), indent=indent, allow_nan=False)


def json_problem(value: Any, where: str) -> str | None:
    """What would not come back from JSON as it went in (tuples aside)."""
    parts: dict[str, Any] = {}
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"{where} has the key {odd[0]!r}"
        parts = {f"{where}.{key}": item for key, item in value.items()}
    elif isinstance(value, list | tuple):
        parts = {f"{where}[{i}]": item for i, item in enumerate(value)}
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{where} is {value}"
    elif value is not None and not isinstance(value, bool | int | float | str):
        return f"{where} is a {type(value).__name__}"
    return next(filter(None, (json_problem(item, place) for place, item in parts.items())), None)


def one_line(text: str) -> str:
    """The text on one line without control and formatting characters (terminal escapes, bidi)."""
    kept = (" " if c in "\n\r\t" else c for c in text)
    return "".join(c for c in kept if not unicodedata.category(c).startswith("C"))


def sha256(file: Path) -> str:
    """The hash of a file's contents, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader sees the old content or the new, never a part.

    Raises:
        OSError: it could not be written; the old content stands.
    """
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` for one value."""
    write_atomically(path, dumps(value, 1) + "\n")


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """``write_atomically`` for a line per record."""
    write_atomically(path, "".join(dumps(record) + "\n" for record in records))


@contextmanager
def with_umask(path: Path) -> Iterator[None]:
    """Let a writer that chooses a mode of its own (safetensors: 0600) leave that of the umask.

    A shared folder is for a group to read, and who may is the umask's affair.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    yield
    path.chmod(mode)


def sync(path: Path) -> None:
    """Flush a finished file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush folders and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class JsonlWriter:
    """A file that grows by one JSON line at a time, whole and on the disk or not at all."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line.

        Raises:
            OSError: it could not be written (a full disk, say); its part in the file is taken back.
        """
        line = (dumps(record) + "\n").encode()
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(before)
            raise

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file of JSON lines, and how many lines were no whole record."""
    records, broken = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken += 1
    return records, broken


def drop_later(path: Path, iteration: int) -> tuple[int, int]:
    """Take the records of later iterations out of a file of JSON lines.

    Returns:
        How many records were dropped, and how many lines were broken (and dropped too).

    Raises:
        OSError: the file could not be rewritten; it stands as it was.
    """
    records, broken = read_jsonl(path)
    # An iteration that is no number is nobody's: such a record stays.
    kept = [r for r in records if not isinstance(n := r.get("iteration"), int) or n <= iteration]
    write_jsonl(path, kept)
    return len(records) - len(kept), broken
