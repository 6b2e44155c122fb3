"""Training on this machine: one process of ``stages/train.py`` a GPU, or one on the CPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from resnet_cifar.cells import DATA, RUNS, SCRATCH, Cell, run_files
from resnet_cifar.errors import Interrupted
from resnet_cifar.progress import Say
from resnet_cifar.settings import Settings
from resnet_cifar.training.stop import StopSignal, end_with_parent

LOOK_EVERY = 0.2


def devices(settings: Settings) -> list[str]:
    """The devices that train: the one that the environment names, or all GPUs, or the CPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [settings.device] if settings.device else [f"cuda:{index}" for index in range(gpus)] or ["cpu"]


def share(cells: list[Cell], parts: int) -> list[list[Cell]]:
    """Split cells into so many parts of about the same work; fewer if there are fewer cells."""
    shares: list[list[Cell]] = [[] for _ in range(parts)]
    for cell in sorted(cells, key=lambda cell: -cell.n):
        min(shares, key=lambda part: sum(other.n for other in part)).append(cell)
    return [part for part in shares if part]


def train(
    cells: list[Cell],
    on: list[str],
    has_run: Callable[[Cell], bool],
    record: Callable[[Cell], None],
    say: Say,
    lock: int,
) -> list[str]:
    """Train cells on all devices, and record each as soon as its files are there.

    Parameters
    ----------
    cells : list of Cell
        What to train.
    on : list of str
        The devices.
    has_run : callable
        Whether a cell's finished run is there.
    record : callable
        Called once for each cell that is.
    say : callable
        Gets the processes' lines.
    lock : int
        A file descriptor that the processes hold as long as they live.

    Returns
    -------
    list of str
        Why cells failed, by name; empty if none did.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM, when every process has saved its cells' states.
    """
    SCRATCH.mkdir(exist_ok=True)
    parts = share(cells, len(on))
    workers: list[_Worker] = []
    with StopSignal() as stop:
        try:
            for device, part in zip(on, parts, strict=False):
                workers.append(_Worker(device, part, lock, device if len(parts) > 1 else ""))
            while not stop.received and any(worker.running for worker in workers):
                for worker in workers:
                    worker.look(has_run, record, say)
                time.sleep(LOOK_EVERY)
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.wait()
        for worker in workers:
            worker.look(has_run, record, say)
        if stop.received:
            raise Interrupted(stop.received)
    return [worker.reason for worker in workers if worker.waiting]


class _Worker:
    """One process and what is still expected of it.

    It writes to a file rather than a pipe, so that it can still save its state when this process is gone.
    """

    def __init__(self, device: str, cells: list[Cell], lock: int, prefix: str) -> None:
        self.device, self.waiting, self.prefix = device, list(cells), prefix
        self.seen: dict[Cell, int] = {}
        log = SCRATCH / f"sweep-{device.replace(':', '-')}.log"
        command = [sys.executable, "stages/train.py", "--data", DATA, "--runs", RUNS, "--scratch", SCRATCH]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--cells", *map(str, cells)],
                env=os.environ | {"RESNET_CIFAR_DEVICE": device},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
                pass_fds=[lock],
                preexec_fn=end_with_parent,
            )
        self.log = log.open()
        self.unread = self.last = ""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def reason(self) -> str:
        """Why the process left cells undone, once it is gone."""
        if self.process.returncode > 0 and self.last.startswith("error: "):
            return self.last.removeprefix("error: ")
        ended = f"by signal {-self.process.returncode}" if self.process.returncode < 0 else f"with {self.last!r}"
        return f"{', '.join(map(str, self.waiting))}: the training process on {self.device} ended {ended}"

    def look(self, has_run: Callable[[Cell], bool], record: Callable[[Cell], None], say: Say) -> None:
        """Pass on the new lines and record the cells that are done."""
        *lines, self.unread = (self.unread + self.log.read()).split("\n")
        for line in lines:
            self.last = line
            if not line.startswith("error: "):
                say(f"{self.prefix} {line}".strip())
        for cell in [cell for cell in self.waiting if self._is_new(cell) and has_run(cell)]:
            self.waiting.remove(cell)
            record(cell)

    def _is_new(self, cell: Cell) -> bool:
        """Whether the cell's record was written since this was asked last."""
        try:
            written = run_files(RUNS, cell).record.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        before, self.seen[cell] = self.seen.get(cell), written
        return written != before
