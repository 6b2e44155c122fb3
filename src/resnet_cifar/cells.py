"""A cell is one network trained once; its name is the key of everything that belongs to it."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from resnet_cifar.errors import InputError

NETS = {"resnet": "ResNet", "plain": "Plain"}
SEEDS = 2**32
"""Seeds are below it: a longer one would share some of its random numbers with another seed."""
DATA, RUNS, RESULTS, SCRATCH = Path("data/cifar10.safetensors"), Path("runs"), Path("results"), Path("scratch")
"""Where a checkout has the preprocessed data set, finished runs, their evaluations and the interrupted ones' states."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training run: a kind of network, its n (the depth is 6n+2, section 4.2 of the paper) and a seed."""

    net: str
    n: int
    seed: int

    @classmethod
    def parse(cls, name: str) -> "Cell":
        """Read a cell's name, as in ``resnet-3-0``.

        Raises
        ------
        InputError
            If the name is not NET-N-SEED with NET resnet or plain, N at least 1 and SEED from 0 to 2^32 - 1.
        """
        # Python's int reads 4,300 digits.
        match = re.fullmatch(rf"({'|'.join(NETS)})-([1-9][0-9]{{0,4299}})-(0|[1-9][0-9]{{0,9}})", name)
        if not match or int(match[3]) >= SEEDS:
            raise InputError(f"{name!r} is not a cell: cells are written NET-N-SEED, as in resnet-3-0 or plain-9-4.")
        return cls(match[1], int(match[2]), int(match[3]))

    @property
    def name(self) -> str:
        return f"{self.net}-{self.n}-{self.seed}"

    @property
    def network(self) -> str:
        """The paper's name of the network, as in ``ResNet-20``."""
        return f"{NETS[self.net]}-{self.depth}"

    @property
    def depth(self) -> int:
        """The number of layers with weights, 6n+2."""
        return 6 * self.n + 2

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class RunFiles:
    """The files that training leaves for a cell under ``runs/``."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"


def run_files(runs: Path, cell: Cell) -> RunFiles:
    """The files of ``cell`` under the folder ``runs``."""
    return RunFiles(runs / cell.name)


def select(names: list[str], known: list[Cell]) -> list[Cell]:
    """The cells that names and shell patterns stand for, each once.

    Parameters
    ----------
    names : list of str
        Cells, which need not be known, and patterns as in ``resnet-9-*``, which select from ``known``.

    Raises
    ------
    InputError
        If a name is not a cell, or a pattern matches no known one.
    """
    cells: dict[Cell, None] = {}
    for name in names:
        if any(mark in name for mark in "*?["):
            found = [cell for cell in known if fnmatchcase(cell.name, name)]
            if not found:
                raise InputError(f"no cell matches {name!r}; params.yaml has {', '.join(map(str, known))}.")
        else:
            found = [Cell.parse(name)]
        cells |= dict.fromkeys(found)
    return list(cells)
