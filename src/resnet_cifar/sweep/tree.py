"""The checkout that a sweep works for: what a cell must come from to be recorded, and whether that still holds."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar import params
from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.training import provenance
from resnet_cifar.training.protocol import recipe

DATA, RUNS, SCRATCH = Path("data/cifar10.safetensors"), Path("runs"), Path("scratch")


@dataclass(frozen=True)
class Tree:
    """A checkout as a sweep found it.

    Parameters
    ----------
    params : Params
        What params.yaml said.
    code, data : str
        Digests as run.json carries them.
    state : str
        Digest of everything that the train stage is defined by and depends on.
    """

    params: Params
    code: str
    data: str
    state: str

    @classmethod
    def read(cls) -> "Tree":
        """The checkout in the working directory, its data set made already."""
        state = _state()
        return cls(params.load(), provenance.code_digest(), provenance.file_digest(DATA), state)

    def check_unchanged(self) -> None:
        """Raise :class:`InputError` if the train stage's code, data or parameters are not what they were."""
        if _state() != self.state:
            raise InputError(
                "the code, the parameters or the data changed while cells were training, so that no more can be "
                "recorded: put them back, or start the sweep again for the cells as they are now."
            )

    def mismatch(self, cell: Cell, files: RunFiles) -> str | None:
        """Why the files are not this tree's run of ``cell``, in words; None if they are.

        A precision other than the parameters' is accepted where the machine had to fall back to fp32.
        """
        try:
            record: dict[str, Any] = json.loads(files.record.read_text())
            digests, precision = record["digests"], record["precision"]
            wanted = self.params.train.precision
            if precision not in (wanted, "fp32"):
                return f"it was trained in {precision}; params.yaml has train.precision {wanted}"
            eval_every = self.params.train.eval_every
            comparisons = [
                ("name", record["cell"], cell.name),
                ("code digest", digests["code"], self.code),
                ("parameter digest", digests["parameters"], recipe(self.params, cell, precision).digest),
                ("data digest", digests["data"], self.data),
                ("train.eval_every", record["eval_every"], eval_every),
            ]
            for what, there, here in comparisons:
                if there != here:
                    return f"its {what} is {_short(there)}, not {_short(here)} as in this tree"
            for file, recorded in ((files.weights, "weights_sha256"), (files.history, "history_sha256")):
                found = provenance.file_digest(file)
                if found != record[recorded]:
                    return (
                        f"its {file.name} has the SHA-256 {_short(found)}, "
                        f"not {_short(record[recorded])} as its run.json says"
                    )
        except FileNotFoundError as error:
            return f"its {Path(error.filename).name} is missing"
        except (OSError, ValueError, KeyError, TypeError):
            return f"its {files.record.name} cannot be read"
        return None

    def has_run(self, cell: Cell) -> bool:
        """Whether the cell's finished run lies in ``runs/``."""
        return self.mismatch(cell, run_files(RUNS, cell)) is None


def check_checkout() -> None:
    """Raise :class:`InputError` if the code that runs is not the one of the checkout in the working directory."""
    here = Path("src/resnet_cifar").resolve()
    if here != provenance.PACKAGE:
        raise InputError(
            f"resnet-cifar runs the code in {provenance.PACKAGE}, but this checkout's is {here}: "
            "install this checkout with `pip install --editable .` and use its own resnet-cifar."
        )


def _short(value: object) -> str:
    return str(value)[:12]


def _state() -> str:
    paths = [Path("dvc.yaml"), Path("params.yaml"), DATA, *(provenance.PACKAGE / name for name in provenance.CODE)]
    try:
        return hashlib.sha256("".join(map(provenance.file_digest, paths)).encode()).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; without it no cell can be recorded.") from None
