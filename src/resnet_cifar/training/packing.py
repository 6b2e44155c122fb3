"""Training of any number of cells in one process: one after another on a CPU, many at once on a GPU.

``RESNET_CIFAR_PACK`` in the environment says how many a GPU trains at once; by default as many as its memory takes.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

import torch

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError
from resnet_cifar.progress import Progress, clock
from resnet_cifar.training.loop import DivergedError
from resnet_cifar.training.runs import CellRun, Session

MOST_AT_ONCE = 32  # torch's streams repeat after 32, and two networks must not share one
ANNOUNCE_FROM = 600.0


class Interrupted(Exception):  # noqa: N818
    """The process was asked to stop by ``signum``; the state of every running cell is saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def train_cells(
    session: Session,
    cells: list[Cell],
    say: Callable[[str], None] | None = None,
    on_trained: Callable[[Cell], None] = lambda _: None,
) -> dict[Cell, str]:
    """Train cells, the longest first, as many at once as the device takes.

    Parameters
    ----------
    session : Session
        Parameters, data and folders.
    cells : list of Cell
        What to train; those whose files are there and match are left as they are.
    say : callable, optional
        Gets the lines of progress; by default stderr does.
    on_trained : callable
        Called for each cell as soon as its files are there.

    Returns
    -------
    dict
        The cells that failed, each with the reason. The others are not affected.

    Raises
    ------
    Interrupted
        After SIGINT or SIGTERM, when the running cells' states are saved.
    """
    trained = [cell for cell in cells if session.is_trained(cell)]
    waiting = sorted((cell for cell in cells if cell not in trained), key=lambda cell: -cell.n)
    iterations = session.params.train.iterations
    label = "training" if len(waiting) == 1 else f"{len(waiting)} cells"
    progress = Progress(label, iterations * len(waiting), write_line=say)
    say = progress.say
    for cell in trained:
        say(f"{cell}: trained already, nothing to do")
        on_trained(cell)
    if waiting and session.precision != session.params.train.precision:
        say(f"{session.device} has no native {session.params.train.precision}: training in fp32")
    at_once = fit_at_once(session, waiting)
    streams = [torch.cuda.Stream(session.device) for _ in range(at_once)] if session.device.type == "cuda" else [None]
    active: list[CellRun] = []
    failed: dict[Cell, str] = {}
    ended = 0  # iterations of the cells that are not active any more
    with StopSignal() as stop:
        while (waiting or active) and not stop.received:
            if waiting and len(active) < at_once:
                cell = waiting.pop(0)
                stream = next(s for s in streams if s is None or s not in [run.stream for run in active])
                run = _begin(session, cell, stream, alone=not active)
                if run:
                    active.append(run)
                    progress.start += run.resumed
                    _announce(run, say)
                elif active:
                    at_once = len(active)
                    waiting.insert(0, cell)
                    say(f"{cell}: no memory beside {at_once} others; training {at_once} at once from here on")
                else:
                    failed[cell] = "the device has not enough memory for it alone"
                    progress.total -= iterations
            idle = True
            for run in list(active):
                try:
                    idle = not run.turn() and idle
                except DivergedError as error:
                    failed[run.cell] = str(error)
                    run.forget()
                    progress.total -= iterations - run.trainer.done
                if run.cell not in failed and not run.finished:
                    continue
                active.remove(run)
                ended += run.trainer.done
                if run.finished:
                    record = run.finish()
                    say(f"{run.cell}: {iterations:,} iterations in {clock(record['seconds'])}")
                    on_trained(run.cell)
            run = None  # else the last one that ended would keep its memory
            if active:
                done = ended + sum(run.trainer.done for run in active)
                new = done - progress.start
                speed = f"{new * session.params.train.batch_size / max(progress.seconds, 1e-9):,.0f} images/s"
                progress.update(done, f"{_detail(active)}  {speed}")
            if idle:
                time.sleep(0.0005)
        if stop.received:
            _save_all(active, say)
            raise Interrupted(stop.received)
    return failed


def _save_all(active: list[CellRun], say: Callable[[str], None]) -> None:
    for run in active:
        try:
            run.save()
        except DivergedError as error:
            say(f"{run.cell}: {error}")
        else:
            say(f"{run.cell}: stopped at iteration {run.trainer.done:,}; the same command goes on from there")


def _begin(session: Session, cell: Cell, stream: "torch.cuda.Stream | None", alone: bool) -> CellRun | None:
    """The run of a cell, made ready or resumed; None if the device has no memory for it.

    Beside others it is not begun where memory may run out: cuDNN would then take another algorithm, with other bits.
    """
    if stream and not alone:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(session.device)
        if free < _footprint(session, cell):
            return None
    try:
        return CellRun(session, cell, stream)
    except torch.OutOfMemoryError:
        pass  # only behind this block is nothing of it alive
    torch.cuda.empty_cache()
    return None


def fit_at_once(session: Session, cells: list[Cell]) -> int:
    """How many cells train at once: on a GPU what the environment says or, without that, what memory takes."""
    given = pack_size()
    if session.device.type == "cpu" or not cells:
        return 1
    if given:
        return given
    free, _ = torch.cuda.mem_get_info(session.device)
    return max(1, min(MOST_AT_ONCE, int(0.8 * free) // _footprint(session, cells[0])))


def pack_size() -> int | None:
    """What the environment says about how many cells a GPU trains at once."""
    given = os.environ.get("RESNET_CIFAR_PACK", "")
    if given and not (given.isdecimal() and 1 <= int(given) <= MOST_AT_ONCE):
        raise InputError(f"RESNET_CIFAR_PACK is {given!r}; it should be a whole number from 1 to {MOST_AT_ONCE}.")
    return int(given) if given else None


def _footprint(session: Session, cell: Cell) -> int:
    """Bytes that a network takes in training, from above: the activations kept for the backward pass, twice."""
    activations = 2 * cell.n * 3 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    size = 4 if session.precision == "fp32" else 2
    stream = 8 * session.params.train.iterations * session.params.train.batch_size
    return 2 * activations * size * session.params.train.batch_size + stream + 2**28


def _announce(run: CellRun, say: Callable[[str], None]) -> None:
    """Say how long a run on a CPU will take, if that is long."""
    left = run.trainer.state.recipe.iterations - run.trainer.done
    if run.session.device.type != "cpu" or left < 1000:
        return
    seconds = left * run.trainer.engine.seconds_per_step()
    if seconds >= ANNOUNCE_FROM:
        say(
            f"{run.cell}: {left:,} iterations take about {clock(seconds)} on this CPU. A GPU is the place for them; "
            "`dvc exp run -S preset=quick` shows the pipeline in minutes here"
        )


def _detail(active: list[CellRun]) -> str:
    if len(active) > 1:
        return f"{len(active)} at once"
    trainer = active[0].trainer
    return f"{active[0].cell} iteration {trainer.done:,}" + (
        "" if math.isnan(trainer.loss) else f"  loss {trainer.loss:.3f}"
    )


class StopSignal:
    """While it is entered, SIGINT and SIGTERM are noted in ``received`` and nothing else."""

    def __enter__(self) -> Self:
        self.received = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.received = signum

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
