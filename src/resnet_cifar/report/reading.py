"""The cells' files, read and checked: all of a study's, or a sentence that names what is wrong.

Nothing here decides how something is shown, and what is shown comes from files whose digests are checked here.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_cifar import results
from resnet_cifar.cells import NETS, Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.evaluation import Measures, Result
from resnet_cifar.params import Study
from resnet_cifar.training import record
from resnet_cifar.training.record import Question, Record

ROUNDING = 3
"""Test images on which fp32 may decide otherwise on another processor than the one that trained."""


@dataclass(frozen=True)
class Finished:
    """A cell that was trained and evaluated.

    Parameters
    ----------
    cell : Cell
    record : Record
        Of its run.
    result : Result
        Its evaluation.
    history : DataFrame
        Its curve, as history.csv has it, without the digests.
    """

    cell: Cell
    record: Record
    result: Result
    history: pd.DataFrame


class UnfitError(ValueError):
    """Why a cell cannot be reported, in a few words that follow its name."""


def read(study: Study, runs: Path, folder: Path) -> list[Finished]:
    """Read every cell of a study, sorted by net, depth and seed.

    Parameters
    ----------
    study : Study
        The parameters, which say which cells there are.
    runs, folder : Path
        Where training and evaluation leave their files.

    Raises
    ------
    InputError
        If files are missing or altered, are not of their cell, of these parameters or of the same weights, or not all
        of the same data set; the sentence names every such cell.
    """
    cells = sorted(study.list_cells(), key=lambda cell: (list(NETS).index(cell.net), cell.n, cell.seed))
    found: list[Finished] = []
    problems: dict[Cell, str] = {}
    for cell in cells:
        try:
            found.append(_read(study, cell, runs, folder))
        except (record.RecordError, results.ResultError, UnfitError) as error:
            problems[cell] = str(error)
    problems |= _of_other_data(found)
    if problems:
        named = ", ".join(f"{cell} ({problems[cell]})" for cell in cells if cell in problems)
        raise InputError(
            f"{len(problems)} of {len(cells)} cells cannot be reported: {named}; make them with `dvc repro`."
        )
    return found


def _read(study: Study, cell: Cell, runs: Path, folder: Path) -> Finished:
    files = run_files(runs, cell)
    run = record.read(files)
    asked = Question(cell=cell.name, parameters=study.recipe(cell).digest, data=run.question.data)
    if reason := run.question.difference(asked):
        raise UnfitError(f"{reason}, which {files.record.name} says")
    result = results.read(folder, cell)
    if result.cell != cell.name:
        raise UnfitError(f"its metrics.json is of {result.cell}")
    if result.weights_sha256 != run.weights_sha256:
        raise UnfitError("its metrics.json is of other weights than its run.json")
    if result.data_sha256 != run.question.data:
        raise UnfitError("its metrics.json is of another data set than its run.json")
    try:
        history = _curve(files.history)
        last = history[["test_loss", "test_error"]].iloc[-1]
    except (OSError, ValueError, KeyError, IndexError):
        raise UnfitError(f"its {files.history.name} is not the curve of a run") from None
    held_out = _images(result.validation) if result.validation else 0
    if held_out != study.data.validation or ("validation_error" in history) != bool(held_out):
        raise UnfitError(f"its files are not of data.validation {study.data.validation}")
    if len(result.responses) != cell.depth - 1:
        raise UnfitError(f"its metrics.json has responses of {len(result.responses)} layers")
    _compare_with_curve(run, result, float(last["test_loss"]), float(last["test_error"]))
    return Finished(cell, run, result, history)


def _curve(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str).drop(columns="weights_sha256")
    # By Python's float: what pandas 2 reads is not always the nearest number, which shows when it is written again.
    return table.map(float).astype({"iteration": int})


def _compare_with_curve(run: Record, result: Result, loss: float, error: float) -> None:
    """What training in fp32 says last and what the checkpoint says are the same; of another precision they are not."""
    if run.arithmetic.precision != "fp32":
        return
    images = _images(result.test)
    same_error = round(error * images / 100) == round(result.test.error * images / 100)
    if run.arithmetic == result.arithmetic:
        same = same_error and abs(loss - result.test.loss) < 1e-6
    else:
        same = abs(error - result.test.error) * images / 100 < ROUNDING + 0.5
    if not same:
        raise UnfitError(
            f"its history.csv ends with test error {error:g} and loss {loss:g}, its metrics.json has "
            f"{result.test.error:g} and {result.test.loss:g}"
        )


def _images(measures: Measures) -> int:
    return sum(map(sum, measures.confusion))


def _of_other_data(found: list[Finished]) -> dict[Cell, str]:
    """The cells whose data set is not that of most."""
    digests = Counter(each.record.question.data for each in found)
    if len(digests) < 2:
        return {}
    most = digests.most_common(1)[0][0]
    one = next(each.cell for each in found if each.record.question.data == most)
    return {
        each.cell: f"its data set's digest is {each.record.question.data[:12]}, that of {one} is {most[:12]}"
        for each in found
        if each.record.question.data != most
    }
