"""One writer per run folder: a lock that ends with its process, and a note of who holds it."""

import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from genrl_core.errors import RecipeError
from genrl_core.run.files import write_atomically


class RunLock:
    """The right to write a run folder.

    The lock decides, since it ends with the process however that dies and no reused pid can imitate
    it. The file beside it (pid, host) tells people who holds it and, where the folder is shared
    between machines, keeps a second machine out.

    Attributes:
        stale: the pid of a dead process whose lock was taken over, or None.
    """

    def __init__(self, folder: Path):
        """Take the lock.

        Raises:
            RecipeError: another process holds it, or held it on another machine.
            OSError: it cannot be written.
        """
        self._lock, self._holder = FileLock(folder / ".lock", blocking=False), folder / ".lock.json"
        here = socket.gethostname()
        try:
            self._lock.acquire()
        except Timeout:
            pid, host = self._read()
            raise RecipeError(
                f"{folder} is being written by process {pid} on {host}: stop that run first, or "
                "choose another run.name"
            ) from None
        self.stale, host = self._read()
        if self.stale is not None and host != here:
            self._lock.release()
            raise RecipeError(
                f"{folder} is locked by process {self.stale} on {host} (this is {here}): if that "
                f"run is certainly over, delete {self._holder} and try again"
            )
        write_atomically(self._holder, json.dumps({"pid": os.getpid(), "host": here}) + "\n")

    def release(self) -> None:
        """Give the lock back; the lock's own file stays, since removing it would race."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _read(self) -> tuple[int | None, str | None]:
        try:
            holder = json.loads(self._holder.read_bytes())
            return int(holder["pid"]), str(holder["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, None
