"""What the cells of one process share: parameters, data on the device, engines, folders."""

from pathlib import Path

from resnet_cifar import dataset
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.files import sha256
from resnet_cifar.machine import usable
from resnet_cifar.native.engine import NativeEngine, native_can
from resnet_cifar.params import Study
from resnet_cifar.progress import Say
from resnet_cifar.settings import Settings
from resnet_cifar.training import states
from resnet_cifar.training.engines import Computer, read_run
from resnet_cifar.training.record import Arithmetic, Question, RecordError


class Session:
    """What the cells of one process share.

    Parameters
    ----------
    study : Study
        The parameters.
    data : Path
        The preprocessed data set.
    runs, scratch : Path
        Where finished runs and interrupted ones are kept; the latter's states where :func:`states.home` says.
    settings : Settings
        What the environment says.
    say : callable
        Gets the lines that a user should see.
    """

    def __init__(self, study: Study, data: Path, runs: Path, scratch: Path, settings: Settings, say: Say) -> None:
        self.study, self.runs, self.scratch, self.settings = study, runs, scratch, settings
        self.states = states.home(scratch)
        loaded = dataset.load(data)
        study.check_batch(len(loaded.train))
        for folder in (runs, scratch, self.states):  # now, and not after the training
            folder.mkdir(parents=True, exist_ok=True)
        self.data_digest = sha256(data)
        self.computer = Computer(settings, say)  # which may compile the native engine
        with usable(self.computer.device):
            self.dataset = loaded.to(self.computer.device)

    def question(self, cell: Cell) -> Question:
        return Question(cell=cell.name, parameters=self.study.recipe(cell).digest, data=self.data_digest)

    def arithmetic(self, cell: Cell) -> Arithmetic:
        return self.computer.arithmetic(self.study.recipe(cell))

    def is_trained(self, cell: Cell) -> bool:
        """Whether the cell's files are there, from this code, whichever engine and machine made them."""
        return self._engine(cell) is not None

    def check_engine(self, cells: list[Cell]) -> None:
        """Refuse to train ``cells`` with another engine where the native one has trained cells of the study already.

        Raises
        ------
        InputError
            If it cannot be used here any more, one of the cells is to be trained by it, and a finished run is its.
        """
        shortcut = self.study.model.shortcut
        wanted = [cell for cell in cells if native_can(cell.net, shortcut) and not self.is_trained(cell)]
        if not (self.computer.fallback and wanted):
            return
        for cell in self.study.list_cells():
            if self._engine(cell) == NativeEngine.name:
                raise InputError(
                    f"{cell} was trained by the native engine, which cannot be used here ({self.computer.fallback}), "
                    "and a table must not mix engines: mend that, or set RESNET_CIFAR_SIMD=none to train with PyTorch."
                )

    def _engine(self, cell: Cell) -> str | None:
        """That of the cell's finished run; None if there is none of this code."""
        try:
            return read_run(run_files(self.runs, cell), self.question(cell), self.computer.code).arithmetic.engine
        except RecordError:
            return None
