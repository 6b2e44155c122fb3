"""Whether the beginning of a finished run, trained again here, gives the same bytes: what anybody can check on a CPU.

The native engine's bytes are promised on every processor. So its runs alone are verified.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError, TrainingError
from resnet_cifar.native.library import Unavailable
from resnet_cifar.numerics.run import DivergedError
from resnet_cifar.params import Study
from resnet_cifar.progress import Progress, clock
from resnet_cifar.settings import Settings
from resnet_cifar.sweep.estimate import estimate
from resnet_cifar.training import record
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.engines import load_native, native_arithmetic
from resnet_cifar.training.record import AlteredError, Record, RecordError
from resnet_cifar.training.session import Session
from resnet_cifar.training.stop import Interrupted, StopSignal


class Verdict(Enum):
    """What came of a cell; the value is what a table says."""

    SAME = "same bytes"
    DIFFERENT = "different bytes"
    ALTERED = "altered"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes
    ----------
    cell : Cell
    verdict : Verdict
    sentence : str
        The same with all that is known, for a person; it names the cell.
    iteration : int
        That of the last evaluation up to which the bytes are the same; 0 if there is none.
    """

    cell: Cell
    verdict: Verdict
    sentence: str
    iteration: int = 0


def last_evaluation(study: Study, iterations: int | None) -> int:
    """The last evaluation of a run within so many iterations; by default the first of all.

    Raises
    ------
    InputError
        If there is none.
    """
    train = study.train
    first = min(train.eval_every, train.iterations)
    if iterations is None:
        return first
    if iterations < first:
        raise InputError(f"the first evaluation is at iteration {first:,}: --iterations should be {first} or more.")
    return train.iterations if iterations >= train.iterations else iterations // train.eval_every * train.eval_every


def verify(
    study: Study,
    cells: Sequence[Cell],
    last: int,
    data: Path,
    runs: Path,
    scratch: Path,
    settings: Settings,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Train the beginnings of cells once more, by the native engine, and compare each evaluation with the finished run.

    Nothing is written but in ``scratch``, from where an interrupted verification goes on.

    Parameters
    ----------
    study : Study
        The parameters.
    cells : sequence of Cell
        Each once.
    last : int
        The iteration up to which they train, one of :func:`last_evaluation`.
    data : Path
        The preprocessed data set.
    runs, scratch : Path
        The finished runs, and the folder of interrupted ones.
    settings : Settings
        What the environment says; the device is a CPU in any case.
    say : callable
        Gets the lines that a user should see beside the progress.

    Returns
    -------
    list of Outcome
        One a cell, in their order.

    Raises
    ------
    InputError
        If the data set cannot be read.
    Unavailable
        If there is a cell to train, and the native engine cannot be used here.
    TrainingError
        If another process verifies a cell.
    Interrupted
        After SIGINT or SIGTERM, when the state is saved.
    """
    read = {cell: _read(cell, runs) for cell in cells}
    if not any(isinstance(found, Record) for found in read.values()):
        return [found for found in read.values() if isinstance(found, Outcome)]
    library = load_native(settings, say)
    if not library:
        raise Unavailable("RESNET_CIFAR_SIMD is 'none'")
    # An engine of other sources begins anew: what is compared is what this one computes.
    scratch = scratch / f"verify-{library.path.stem}"
    session = Session(study, data, runs, scratch, replace(settings, device="cpu"), say)
    fit = {cell: _check_question(session, found) for cell, found in read.items()}
    waiting = [cell for cell, found in fit.items() if isinstance(found, Record)]
    if waiting:
        seconds = estimate(session.computer, study, waiting, last)
        say(
            f"{', '.join(map(str, waiting))}: to iteration {last:,} in about {clock(seconds)} on this CPU; "
            "interrupted, the same command goes on where it was"
        )
    comparison = _Comparison(session, last, len(waiting))
    with StopSignal() as stop:
        return [comparison.compare(found, stop) if isinstance(found, Record) else found for found in fit.values()]


def describe(outcomes: Sequence[Outcome]) -> str:
    """What came of one cell in a sentence; of several in a table, and the sentences of those that are not the same."""
    if len(outcomes) == 1:
        return outcomes[0].sentence
    rows = [("Cell", "Network", "Up to", "Outcome")]
    rows += [(each.cell.name, each.cell.network, f"{each.iteration:,}", each.verdict.value) for each in outcomes]
    cell, network, iteration, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{row[0]:{cell}}  {row[1]:{network}}  {row[2]:>{iteration}}  {row[3]}" for row in rows]
    return "\n".join([*lines, *(each.sentence for each in outcomes if each.verdict is not Verdict.SAME)])


def _read(cell: Cell, runs: Path) -> Record | Outcome:
    """The record of a cell's run, or why it cannot be compared."""
    try:
        found = record.read(run_files(runs, cell))
    except AlteredError as error:
        return _altered(cell, str(error))
    except RecordError as error:
        sentence = f"{cell} has no finished run in {runs}: {error}; `dvc pull train` fetches what is published."
        return Outcome(cell, Verdict.NOT_COMPARED, sentence)
    if reason := found.arithmetic.difference(native_arithmetic()):
        sentence = (
            f"{cell} cannot be compared: {reason}; the native engine's runs can, with equal versions of its bits."
        )
        return Outcome(cell, Verdict.NOT_COMPARED, sentence)
    return found


def _check_question(session: Session, found: Record | Outcome) -> Record | Outcome:
    """The same again, or that the run answers another question than would be asked here."""
    if isinstance(found, Record) and (reason := found.question.difference(session.question(found.cell))):
        return Outcome(found.cell, Verdict.NOT_COMPARED, f"{found.cell} cannot be compared: {reason} as here.")
    return found


def _altered(cell: Cell, reason: str) -> Outcome:
    sentence = f"{cell} was altered after its training: {reason}; `dvc checkout --force` brings back what was recorded."
    return Outcome(cell, Verdict.ALTERED, sentence)


class _Comparison:
    """The beginnings of cells, trained one after another and compared with the curves of their finished runs."""

    def __init__(self, session: Session, last: int, cells: int) -> None:
        self.session, self.last = session, last
        self.progress = Progress("verifying", last * cells)
        self.before = 0  # iterations of the cells that are done

    def compare(self, published: Record, stop: StopSignal) -> Outcome:
        """Train a cell up to the last evaluation or to the first difference.

        Raises
        ------
        Interrupted
            When ``stop`` has a signal and the state is saved.
        """
        cell = published.cell
        try:
            run = CellRun(self.session, cell)
        except TrainingError as error:
            raise TrainingError(f"{cell}: {error}.") from None
        try:
            curve = run_files(self.session.runs, cell).history.read_text(errors="replace").splitlines()
            if not _is_curve(curve, run):
                return _altered(cell, "its history.csv is not the curve of a whole run")
            self.progress.start += run.resumed
            if run.left_aside:
                self.progress.say(f"{cell}: begins anew; {run.left_aside}")
            elif run.resumed:
                self.progress.say(f"{cell}: goes on from iteration {run.resumed:,}")
            outcome = self._walk(run, curve, published, stop)
            run.state.remove()
        finally:
            run.lock.release()
        self.before += run.run.iteration
        self.progress.total -= self.last - run.run.iteration
        return outcome

    def _walk(self, run: CellRun, curve: list[str], published: Record, stop: StopSignal) -> Outcome:
        """``curve`` are the lines of the finished run's history.csv, of which the first names the columns."""
        while True:
            ours = run.run.history().splitlines()
            for line, (mine, its) in enumerate(zip(ours, curve, strict=False)):
                if mine != its:
                    return self._different(published, curve, line, f"other values of {_columns(curve[0], mine, its)}")
            if run.run.whole and run.run.iteration >= self.last:
                return self._same(published, curve[: len(ours)])
            if stop.received:
                run.stop()
                at = f"{run.run.iteration:,}"
                self.progress.say(f"{run.cell}: stopped at iteration {at}; the same command goes on from there")
                raise Interrupted(stop.received)
            try:
                run.turn()
            except DivergedError as error:
                what = f"no finite value of {error.what} at iteration {error.iteration:,}"
                return self._different(published, curve, len(ours), what)
            self.progress.update(self.before + run.run.iteration, f"{run.cell} iteration {run.run.iteration:,}")

    def _same(self, published: Record, curve: list[str]) -> Outcome:
        iteration, points = _iteration(curve[-1]), len(curve) - 1
        there, here = published.circumstances, self.session.computer.circumstances()
        where = f"each of {points} evaluations up to" if points > 1 else "the evaluation at"
        sentence = (
            f"{published.cell}: same bytes at {where} iteration {iteration:,}; trained on {there.device} with "
            f"{there.simd}, here on {here.device} with {here.simd}."
        )
        return Outcome(published.cell, Verdict.SAME, sentence, iteration)

    def _different(self, published: Record, curve: list[str], line: int, what: str) -> Outcome:
        """``line`` is that of the first evaluation that differs, ``what`` is here not as it is there."""
        before, after = _iteration(curve[line - 1]) if line > 1 else 0, _iteration(curve[line])
        differences = published.circumstances.differences(self.session.computer.circumstances())
        machine = f"differs: {'; '.join(differences)}" if differences else "was like this one"
        sentence = (
            f"{published.cell}: different bytes; the first difference lies between iterations {before:,} and "
            f"{after:,}, where this machine has {what}. The run's machine {machine}."
        )
        return Outcome(published.cell, Verdict.DIFFERENT, sentence, before)


def _is_curve(lines: list[str], run: CellRun) -> bool:
    """Whether these are the lines of a history.csv of such a run, as far as its columns and iterations say."""
    evaluations, recipe = [0], run.run.recipe
    while evaluations[-1] < recipe.iterations:
        evaluations.append(recipe.next_evaluation(evaluations[-1]))
    header = run.run.history().splitlines()[0]
    first = [line.partition(",")[0] for line in lines]
    return first == ["iteration", *map(str, evaluations[1:])] and lines[0] == header


def _columns(header: str, mine: str, its: str) -> str:
    """The names of the columns in which two rows differ."""
    rows = zip(header.split(","), mine.split(","), its.split(","), strict=False)
    return ", ".join(name for name, one, other in rows if one != other)


def _iteration(row: str) -> int:
    return int(row.partition(",")[0])
