"""What is reported, as tables: a row a cell, a row a point of a curve, and what others report."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_cifar.cells import Cell
from resnet_cifar.params import Study
from resnet_cifar.report import paper
from resnet_cifar.report.reading import Finished, read
from resnet_cifar.training.record import Record

PUBLISHED = Path(__file__).with_name("published.csv")
CURVE = {
    "iteration": "iteration",
    "lr": "lr",
    "train_loss": "train_loss",
    "train_error": "train_error",
    "test_loss": "curve_test_loss",
    "test_error": "curve_test_error",
    "validation_loss": "curve_validation_loss",
    "validation_error": "curve_validation_error",
}
"""The columns of curves.csv by those of history.csv: what training computes in its own precision is not called what the
checkpoint gives in fp32."""


@dataclass(frozen=True)
class Outcome:
    """The results of a study, sorted by net, depth and seed. Errors are in percent, losses in nats.

    Attributes
    ----------
    cells : DataFrame
        One row a cell: what it is, its errors and losses from the checkpoint, how, where and how long it was trained,
        the SHA-256 of its weights and its history. ``threads`` and ``torch`` are those of the last part.
    curves : DataFrame
        One row a cell and evaluated iteration; the columns that begin with ``curve_`` are of the training's precision.
    class_errors : ndarray of float, shape (cells, 10)
        Test error of each class; NaN for a class without a test image.
    confusion : ndarray of float, shape (cells, 10, 10)
        Test images by true (row) and predicted (column) class.
    responses : DataFrame
        One row a cell and layer, from 1 to 6n+1: the standard deviation of its response on test images.
    differences : list of str
        The parameters in which the study is not the paper's.
    published : DataFrame
        What others report for the same networks, one row a source and network: ``error``, ``std``, ``runs`` and
        ``kind``, which is ``single`` (one run), ``mean`` or ``figure`` (one run, read off a figure). Empty if the study
        compares with nothing.
    """

    cells: pd.DataFrame
    curves: pd.DataFrame
    class_errors: np.ndarray
    confusion: np.ndarray
    responses: pd.DataFrame
    differences: list[str]
    published: pd.DataFrame

    @property
    def networks(self) -> list[str]:
        """The names of the networks, in the order of the table."""
        return list(self.cells["network"].unique())

    @property
    def runs(self) -> int:
        """The runs of each network, one a seed."""
        return self.cells["seed"].nunique()

    @property
    def basis(self) -> str:
        """On how many runs of each network a figure or a mean stands, in words."""
        return "1 run" if self.runs == 1 else f"mean of {self.runs} runs"

    @property
    def compares(self) -> bool:
        """Whether it may stand beside what others report."""
        return not self.differences

    @property
    def precisions(self) -> list[str]:
        """The precisions of training; only if it is fp32 alone, the curves' errors end at the table's."""
        return sorted(set(self.cells["precision"]))


def load(study: Study, runs: Path, results: Path) -> Outcome:
    """Read every cell of the study.

    Parameters
    ----------
    study : Study
        The parameters, which say which cells there are.
    runs, results : Path
        Where training and evaluation leave their files.

    Raises
    ------
    InputError
        If a cell's files are missing or do not belong together, as :func:`resnet_cifar.report.reading.read` says.
    """
    found = read(study, runs, results)
    cells = pd.DataFrame([_row(each) for each in found])
    differences = paper.differences(study, set(cells["precision"]))
    return Outcome(
        cells,
        pd.concat([_curve(each) for each in found], ignore_index=True),
        np.array([each.result.test.class_errors for each in found], dtype=float),
        np.array([each.result.test.confusion for each in found], dtype=float),
        pd.concat([_responses(each) for each in found], ignore_index=True),
        differences,
        _published(study, [] if differences else [each.cell for each in found]),
    )


def _row(finished: Finished) -> dict[str, object]:
    cell, record, result = finished.cell, finished.record, finished.result
    row: dict[str, object] = {
        "cell": cell.name,
        "network": cell.network,
        "net": cell.net,
        "n": cell.n,
        "depth": cell.depth,
        "seed": cell.seed,
        "parameters": result.parameters,
        "test_error": result.test.error,
        "test_loss": result.test.loss,
        "test_calibration_error": result.test.calibration_error,
    }
    if result.validation:
        row |= {
            "validation_error": result.validation.error,
            "validation_loss": result.validation.loss,
            "validation_calibration_error": result.validation.calibration_error,
        }
    return row | {
        "iterations": record.iterations,
        "seconds": record.seconds,
        "images_per_second": record.images_per_second,
        "engine": record.arithmetic.engine,
        "precision": record.arithmetic.precision,
        "processor": _processors(record),
        "threads": record.circumstances.threads,
        "torch": record.circumstances.torch,
        "weights_sha256": record.weights_sha256,
        "history_sha256": record.history_sha256,
    }


def _processors(record: Record) -> str:
    """Where it was trained, in order."""
    parts = record.circumstances_between(0, record.iterations)
    return ", then ".join(device for device, _ in groupby(part.device for part in parts))


def _curve(finished: Finished) -> pd.DataFrame:
    history = finished.history
    identity = _identity(finished.cell) | {"precision": finished.record.arithmetic.precision}
    columns = [name for name in CURVE if name in history]
    return pd.DataFrame(identity, index=history.index).join(history[columns].rename(columns=CURVE))


def _responses(finished: Finished) -> pd.DataFrame:
    responses = finished.result.responses
    layers = pd.DataFrame({"layer": range(1, len(responses) + 1), "response": responses})
    return layers.assign(**_identity(finished.cell))


def _identity(cell: Cell) -> dict[str, object]:
    return {"network": cell.network, "net": cell.net, "n": cell.n, "seed": cell.seed}


def _published(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """The rows of published.csv that are of these networks."""
    table = pd.read_csv(PUBLISHED)
    # Only parameter-free shortcuts were published; a plain network has none, so the parameter does not touch it.
    same = [cell.network for cell in cells if study.model.shortcut == "A" or cell.net == "plain"]
    return table[table["network"].isin(same)]
