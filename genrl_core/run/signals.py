"""Signals that stop a run, noted instead of obeyed at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """SIGTERM, SIGINT, SIGHUP and SIGUSR1, noted; the second one ends the process at once.

    Attributes:
        seen: how many came.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._spared = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take the signals for a while; who ignores SIGHUP (nohup) goes on ignoring it."""
        kinds = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            kinds.append(signal.SIGHUP)
        try:
            before = {kind: signal.signal(kind, self._note) for kind in kinds}
        except ValueError:  # not the main thread: whoever owns it handles signals
            before = {}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

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

    def _note(self, _number: int, _frame: object) -> None:
        self.seen += 1
        if self.seen > 1 and not self._spared:
            raise KeyboardInterrupt
