"""Ctrl-C and SIGTERM while work must not be lost."""

import ctypes
import signal
import sys
import threading
from types import FrameType
from typing import Self

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is killed; elsewhere than on Linux it goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopSignal:
    """While it is entered, SIGINT and SIGTERM are noted in ``received`` and nothing else."""

    def __enter__(self) -> Self:
        self.received = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.received = signum

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
