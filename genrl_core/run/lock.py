"""One writer per run folder: a lock that dies with its process and names its holder."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from genrl_core.errors import RecipeError

if sys.platform != "win32":
    import fcntl

NAME = ".lock"


class RunLock:
    """The right to write a run folder.

    The kernel's lock on the file decides, since it ends with the process however that dies and no
    reused pid can imitate it. The content (pid, host) tells people who holds it and, where the
    folder is shared between machines, keeps a second machine out. Windows has no such lock: there
    the content keeps everybody out.

    Attributes:
        stale: the pid of a dead process whose lock was taken over, or None.
    """

    def __init__(self, folder: Path):
        """Take the lock.

        Raises:
            RecipeError: another process holds it, or held it on another machine.
        """
        self._path = folder / NAME
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._file: IO[str] = os.fdopen(os.open(self._path, flags, 0o666), "r+", encoding="utf-8")
        try:
            self.stale = self._take(folder)
        except BaseException:
            self._file.close()
            raise

    def _take(self, folder: Path) -> int | None:
        pid, host = _holder(self._file.read())
        try:
            if sys.platform != "win32":
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(
                f"{folder} is being written by process {pid} on {host}: stop that run first, or "
                "choose another run.name"
            ) from None
        here = socket.gethostname()
        if pid is not None and (host != here or sys.platform == "win32"):
            raise RecipeError(
                f"{folder} is locked by process {pid} on {host} (this is {here}): if that run is "
                f"certainly over, delete {self._path} and try again"
            )
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"pid": os.getpid(), "host": here}) + "\n")
        self._file.flush()
        return pid

    def release(self) -> None:
        """Give the lock back; the empty file stays, since removing it would race with a taker."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _holder(text: str) -> tuple[int | None, str | None]:
    try:
        holder = json.loads(text)
        return int(holder["pid"]), str(holder["host"])
    except (ValueError, KeyError, TypeError):
        return None, None
