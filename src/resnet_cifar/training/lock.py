"""One process trains a cell at a time: a second one would take its saved state away and write its files beside it."""

import fcntl
import os
from pathlib import Path

from resnet_cifar.cells import Cell
from resnet_cifar.errors import TrainingError


class CellLock:
    """Held from its making to :meth:`release`, or to the end of the process, whatever ends it.

    Parameters
    ----------
    scratch : Path
        The folder of the interrupted runs' states.
    cell : Cell
        What is to be trained.

    Raises
    ------
    TrainingError
        If another process trains the cell; the sentence names it.
    """

    def __init__(self, scratch: Path, cell: Cell) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.file = (scratch / f"{cell}.lock").open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            other = self.file.read().strip()
            self.file.close()
            raise TrainingError(
                f"process {other} trains it already with the same {scratch}: stop it with `kill {other}`, which saves "
                "its state, or wait for its end"
            ) from None
        self.file.truncate(0)
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()

    def release(self) -> None:
        """Let others train the cell."""
        self.file.close()
