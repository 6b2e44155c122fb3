"""The checkout that a sweep works for: what a cell must come from to be recorded, and whether that still holds."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import resnet_cifar
from resnet_cifar import params
from resnet_cifar.cells import DATA, RUNS, Cell, RunFiles, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.files import sha256
from resnet_cifar.params import Study
from resnet_cifar.training.engines import code_digest, read_run
from resnet_cifar.training.record import Question, Record, RecordError

FILES = ("weights", "history", "record")
"""The files of a run, as :class:`RunFiles` names them."""
PACKAGE = Path(resnet_cifar.__file__).resolve().parent


@dataclass(frozen=True)
class Checkout:
    """A checkout as a sweep found it.

    Parameters
    ----------
    study : Study
        What params.yaml said.
    code, data : str
        Digests as run.json carries them.
    state : str
        Digest of everything that the train stage is defined by and depends on.
    """

    study: Study
    code: str
    data: str
    state: str

    @classmethod
    def read(cls) -> "Checkout":
        """The one in the working directory, its data set made already."""
        state = _state()
        return cls(params.load(), code_digest(), sha256(DATA), state)

    def check_unchanged(self) -> None:
        """Raise :class:`InputError` if the train stage's code, data or parameters are not what they were."""
        if _state() != self.state:
            raise InputError(
                "the code, the parameters or the data changed while cells were training, so that no more can be "
                "recorded: put them back, or start the sweep again for the cells as they are now."
            )

    def read_run(self, cell: Cell, files: RunFiles) -> Record:
        """Read a run of ``cell`` that may be recorded here: see :func:`~resnet_cifar.training.engines.read_run`.

        Raises
        ------
        RecordError
            If it may not, in words.
        """
        question = Question(cell=cell.name, parameters=self.study.recipe(cell).digest, data=self.data)
        return read_run(files, question, self.code)

    def engine(self, cell: Cell) -> str | None:
        """The engine of the cell's finished run in ``runs/``; None if there is none."""
        try:
            return self.read_run(cell, run_files(RUNS, cell)).arithmetic.engine
        except RecordError:
            return None

    def has_run(self, cell: Cell) -> bool:
        """Whether a finished run of the cell lies in ``runs/``."""
        return self.engine(cell) is not None

    def engines(self, cells: list[Cell]) -> dict[Cell, str]:
        """The engines of those of the cells whose finished runs lie in ``runs/``."""
        return {cell: engine for cell in cells if (engine := self.engine(cell))}


def check_checkout() -> None:
    """Raise :class:`InputError` if the code that runs is not the one of the checkout in the working directory."""
    here = Path("src/resnet_cifar").resolve()
    if here != PACKAGE:
        raise InputError(
            f"resnet-cifar runs the code in {PACKAGE}, but this checkout's is {here}: "
            "install this checkout with `pip install --editable .` and use its own resnet-cifar."
        )


def _state() -> str:
    code = sorted(Path("src/resnet_cifar/numerics").glob("*.py"))
    paths = [Path("dvc.yaml"), Path("params.yaml"), DATA, Path("stages/train.py"), *code]
    try:
        return hashlib.sha256("".join(f"{path} {sha256(path)}\n" for path in paths).encode()).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; without it no cell can be recorded.") from None
