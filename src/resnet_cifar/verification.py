"""Whether the beginning of a finished run, trained again here, gives the same bytes: what anybody can check on a CPU.

The native engine's bytes are promised on every processor. So its runs alone are verified.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from pathlib import Path

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError, Interrupted, ReportedError, in_one_line
from resnet_cifar.numerics.run import DivergedError
from resnet_cifar.params import Study
from resnet_cifar.progress import Progress, Say, clock
from resnet_cifar.settings import Settings
from resnet_cifar.sweep.estimate import estimate
from resnet_cifar.training import record
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.engines import load_native, native_arithmetic
from resnet_cifar.training.record import AlteredError, Circumstances, Record, RecordError
from resnet_cifar.training.session import Session
from resnet_cifar.training.states import StateFile
from resnet_cifar.training.stop import StopSignal


class Verdict(Enum):
    """What came of a cell; the value is what a table says."""

    SAME = "same bytes"
    DIFFERENT = "different bytes"
    ALTERED = "altered"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Finding:
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
    say: Say,
) -> Iterator[Finding]:
    """Train the beginnings of cells once more, by the native engine, and compare each evaluation with the finished run.

    Nothing is written but in ``scratch``, from where an interrupted verification goes on: the cells that it is done
    with keep their states to its end.

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

    Yields
    ------
    Finding
        One a cell, as soon as it is known: first what needs no training, then the others in their order.

    Raises
    ------
    InputError
        If the data set cannot be read.
    Unavailable
        If there is a cell to train, and the native engine cannot be used here.
    Interrupted
        After SIGINT or SIGTERM, when the state is saved.
    """
    read = [_read(cell, runs) for cell in cells]
    yield from (found for found in read if isinstance(found, Finding))
    records = [found for found in read if isinstance(found, Record)]
    if not records:
        return
    library = load_native(settings, say)
    # An engine of other sources begins anew: what is compared is what this one computes.
    scratch = scratch / f"verify-{library.path.stem}"
    session = Session(study, data, runs, scratch, replace(settings, device="cpu"), say)
    waiting = []
    for found in records:
        reason = found.question.difference(session.question(found.cell))
        # For a network that PyTorch would train here: on this CPU in 16 bits, where the run's had to take fp32.
        if reason := reason or found.arithmetic.difference(session.arithmetic(found.cell)):
            yield Finding(found.cell, Verdict.NOT_COMPARED, f"{found.cell} cannot be compared: {reason} as here.")
        else:
            waiting.append(found)
    if not waiting:
        return
    to_train = [found.cell for found in waiting]
    with suppress(InputError):  # there is no memory for a network: what is said of its cell
        seconds = estimate(session.computer, study, to_train, last)
        say(
            f"{', '.join(map(str, to_train))}: to iteration {last:,} in about {clock(seconds)} on this CPU, if from "
            "the beginning; interrupted, the same command goes on where it was"
        )
    with StopSignal() as stop, ExitStack() as locks:
        comparison = _Comparison(session, last, len(waiting), stop, locks)
        for published in waiting:
            yield comparison.compare(published)
        for state in comparison.done:
            state.remove()


def table(findings: Sequence[Finding]) -> str:
    """What came of several cells, a line each."""
    rows = [("Cell", "Network", "Up to", "Outcome")]
    rows += [(each.cell.name, each.cell.network, f"{each.iteration:,}", each.verdict.value) for each in findings]
    cell, network, iteration, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{row[0]:{cell}}  {row[1]:{network}}  {row[2]:>{iteration}}  {row[3]}" for row in rows)


def _read(cell: Cell, runs: Path) -> Record | Finding:
    """The record of a cell's run, or why it cannot be compared."""
    try:
        found = record.read(run_files(runs, cell))
    except AlteredError as error:
        return _altered(cell, str(error))
    except RecordError as error:
        sentence = f"{cell} has no finished run in {runs}: {error}; `dvc pull train` fetches what dvc.lock names."
        return Finding(cell, Verdict.NOT_COMPARED, sentence)
    if found.question.cell != cell.name:
        return _altered(cell, f"its {run_files(runs, cell).record.name} is that of {found.question.cell}")
    if reason := found.arithmetic.difference(native_arithmetic()):
        sentence = (
            f"{cell} cannot be compared: {reason}; the native engine's runs can, with equal versions of its bits."
        )
        return Finding(cell, Verdict.NOT_COMPARED, sentence)
    return found


def _altered(cell: Cell, reason: str) -> Finding:
    sentence = f"{cell} was altered after its training: {reason}; `dvc checkout --force` brings back what was recorded."
    return Finding(cell, Verdict.ALTERED, sentence)


class _Comparison:
    """The beginnings of cells, trained one after another and compared with the curves of their finished runs.

    ``locks`` keeps each cell's, so that until it is closed no other process goes on from a state of ``done``, which are
    those that are of no more use when all cells are compared.
    """

    def __init__(self, session: Session, last: int, cells: int, stop: StopSignal, locks: ExitStack) -> None:
        self.session, self.last, self.stop, self.locks = session, last, stop, locks
        self.progress = Progress("verifying", last * cells)
        self.before = 0  # iterations of the cells that are compared
        self.done: list[StateFile] = []

    def compare(self, published: Record) -> Finding:
        """Train a cell up to the last evaluation or to the first difference.

        Raises
        ------
        Interrupted
            When there was a signal and the state is saved.
        """
        cell = published.cell
        trained = 0
        try:
            run = CellRun(self.session, cell)
            self.locks.callback(run.lock.release)
            finding = self._train(run, published)
            trained = min(run.run.iteration, self.last)
        except (ReportedError, OSError) as error:  # another process trains it, or there is no memory or disk for it
            sentence = f"{cell} cannot be compared now: {in_one_line(error)}."
            finding = Finding(cell, Verdict.NOT_COMPARED, sentence)
        self.before += trained
        self.progress.total -= self.last - trained
        self.progress.clear()
        return finding

    def _train(self, run: CellRun, published: Record) -> Finding:
        curve = run_files(self.session.runs, run.cell).history.read_text(errors="replace").splitlines()
        if not _is_curve(curve, run):
            return _altered(run.cell, "its history.csv is not the curve of a whole run")
        self.progress.start += min(run.resumed, self.last)
        if run.left_aside:
            self.progress.say(f"{run.cell}: begins anew; {run.left_aside}")
        elif 0 < run.resumed < self.last:
            self.progress.say(f"{run.cell}: goes on from iteration {run.resumed:,}")
        finding = self._walk(run, [curve[0], *(row for row in curve[1:] if _iteration(row) <= self.last)], published)
        with suppress(OSError):  # it is compared; without its state it would be trained again, no more
            run.stop()
        if run.resumed <= self.last:  # else the state is that of a verification that goes further
            self.done.append(run.state)
        return finding

    def _walk(self, run: CellRun, curve: list[str], published: Record) -> Finding:
        """``curve`` are the lines of the finished run's history.csv up to ``last``; the first names the columns."""
        while True:
            ours = run.run.history().splitlines()
            for line, (mine, its) in enumerate(zip(ours, curve, strict=False)):
                if mine != its:
                    return self._different(published, curve, line, f"other values of {_columns(curve[0], mine, its)}")
            if run.run.whole and run.run.iteration >= self.last:
                return self._same(published, curve)
            if self.stop.received:
                run.stop()
                at = f"{run.run.iteration:,}"
                self.progress.say(f"{run.cell}: stopped at iteration {at}; the same command goes on from there")
                raise Interrupted(self.stop.received)
            try:
                run.turn()
            except DivergedError as error:
                what = f"no finite value of {error.what} at iteration {error.iteration:,}"
                return self._different(published, curve, len(ours), what)
            self.progress.update(self.before + run.run.iteration, f"{run.cell} iteration {run.run.iteration:,}")

    def _same(self, published: Record, curve: list[str]) -> Finding:
        iteration, points = _iteration(curve[-1]), len(curve) - 1
        here = self._circumstances(published)
        parts = published.circumstances_between(0, iteration)
        there = [where for where, _ in groupby(f"{each.device} with {each.simd}" for each in parts)]
        where = f"each of {points} evaluations up to" if points > 1 else "the evaluation at"
        sentence = (
            f"{published.cell}: same bytes at {where} iteration {iteration:,}; trained on {', then '.join(there)}, "
            f"here on {here.device} with {here.simd}."
        )
        return Finding(published.cell, Verdict.SAME, sentence, iteration)

    def _different(self, published: Record, curve: list[str], line: int, what: str) -> Finding:
        """``line`` is that of the first evaluation that differs, ``what`` is here not as it is there."""
        before, after = _iteration(curve[line - 1]) if line > 1 else 0, _iteration(curve[line])
        here = self._circumstances(published)
        there = [each.differences(here) for each in published.circumstances_between(before, after)]
        machine = ", then ".join(f"differs: {'; '.join(each)}" if each else "was like this one" for each in there)
        sentence = (
            f"{published.cell}: different bytes; the first difference lies between iterations {before:,} and "
            f"{after:,}, where this machine has {what}. The run's machine {machine}."
        )
        return Finding(published.cell, Verdict.DIFFERENT, sentence, before)

    def _circumstances(self, published: Record) -> Circumstances:
        return self.session.computer.circumstances(self.session.study.recipe(published.cell))


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
