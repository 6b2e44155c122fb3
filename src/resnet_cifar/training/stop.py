"""Ctrl-C and SIGTERM while work must not be lost."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Self

PR_SET_PDEATHSIG = 1
LOOK_EVERY = 0.5  # seconds


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is killed; elsewhere than on Linux it goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_dvc(stage: str) -> None:
    """Have a thread send this process SIGTERM when the ``dvc`` that runs it as ``stage`` is killed; only on Linux.

    DVC starts a shell. bash becomes the command that it is given, but dash stays in between, and would outlive DVC.
    """
    if sys.platform == "linux":
        child = os.getpid()
        while _is_of(_parent(child), stage):
            child = _parent(child)
        threading.Thread(target=_end_without, args=(_parent(child), child), daemon=True).start()


def _end_without(dvc: int, child: int) -> None:
    while _parent(child) == dvc:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


def _parent(pid: int) -> int:
    """A process's parent, another one when that has ended; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _is_of(pid: int, stage: str) -> bool:
    """Whether DVC has started the process for the stage."""
    try:
        return f"DVC_STAGE={stage}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return False


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
