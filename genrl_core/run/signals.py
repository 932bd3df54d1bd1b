"""Signals that stop a run, noted instead of obeyed at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Hand the signals that stop a run to ``handler``: SIGTERM, SIGINT, SIGUSR1 and SIGHUP.

    Who ignores SIGHUP (nohup) goes on ignoring it.
    """
    kinds = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        kinds.append(signal.SIGHUP)
    try:
        before = {kind: signal.signal(kind, handler) for kind in kinds}
    except ValueError:  # not the main thread: whoever owns it handles signals
        before = {}
    try:
        yield
    finally:
        for kind, old in before.items():
            signal.signal(kind, old)


class Signals:
    """The signals that came; the second one ends the process at once.

    Attributes:
        seen: how many came.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._spared = False

    def noted(self) -> AbstractContextManager[None]:
        """Take the signals for a while."""
        return handled(self._note)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """What a second signal must not break: it ends the process afterwards."""
        before = self.seen
        self._spared = True
        try:
            yield
        finally:
            self._spared = False
        if before < 2 <= self.seen:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.seen += 1
        if self.seen > 1 and not self._spared:
            raise KeyboardInterrupt
