"""``genrl run --processes N``: the same command again, N times, under torch's launcher.

The launcher turns every failure into exit code 1, so that rank 0 leaves its own code in a file.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from genrl_core.run.signals import handled

_CODE_FILE = "GENRL_EXIT_CODE_FILE"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``genrl ARGUMENTS`` in N processes of this machine and return its exit code.

    An interrupt or a termination is handed on, and the processes may still write a checkpoint.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc_per_node", str(processes), "-m", "genrl_core", *arguments,
    ]  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with tempfile.TemporaryDirectory(prefix="genrl-") as folder:
        code_file = Path(folder) / "code"
        environment = {"OMP_NUM_THREADS": threads} | dict(os.environ)
        environment[_CODE_FILE] = str(code_file)
        # Its own session, so that a terminal's interrupt reaches the processes once, from here.
        child = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603

        def hand_on(number: int, _frame: FrameType | None) -> None:
            # torch's launcher knows these two; the others would end it and leave its processes.
            child.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

        with handled(hand_on):
            code = child.wait()
        return int(code_file.read_text()) if code_file.is_file() else min(abs(code), 1)


def launched() -> bool:
    """Whether this process is one of several that ``launch`` started."""
    return _CODE_FILE in os.environ


def worker_code(code: int) -> int:
    """The code with which this process ends: under the launcher rank 0 writes it down first.

    Stopped and resumable (75) ends as success there, or the launcher would report a failure.
    """
    file = os.environ.get(_CODE_FILE)
    if file is None:
        return code
    if os.environ.get("RANK") == "0" or code not in (0, 75):
        Path(file).write_text(str(code))
    return 0 if code == 75 else code
