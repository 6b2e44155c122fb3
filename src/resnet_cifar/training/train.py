"""Training of any number of cells in one process: one after another on a CPU, many at once on a GPU."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from resnet_cifar.cells import Cell
from resnet_cifar.errors import Interrupted, ReportedError
from resnet_cifar.numerics.engine import Turn
from resnet_cifar.numerics.run import DivergedError
from resnet_cifar.progress import Progress, Say, clock
from resnet_cifar.training import memory
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.session import Session
from resnet_cifar.training.stop import StopSignal

IDLE = 0.0005  # seconds
LONG = 600.0  # seconds from which a run on a CPU is announced
OUTLOOK = 3.0  # seconds of training from which its length is told


def train_cells(
    session: Session,
    cells: list[Cell],
    say: Say | None = None,
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
    pack = _Pack(session, waiting, say, on_trained)
    for cell in trained:
        pack.pass_over(cell)
    with StopSignal() as stop:
        try:
            while not stop.received and pack.fill():
                if not pack.turn():
                    time.sleep(IDLE)
        finally:  # an interruption, or a fault of this program: no other cell's work is lost
            pack.stop()
        if stop.received and not pack.ended:
            raise Interrupted(stop.received)
    return pack.failed


class _Pack:
    """The cells that train side by side, those that wait for a place, and those that failed."""

    def __init__(
        self,
        session: Session,
        waiting: list[Cell],
        say: Say | None,
        on_trained: Callable[[Cell], None],
    ) -> None:
        self.session, self.waiting, self.on_trained = session, waiting, on_trained
        self.active: list[CellRun] = []
        self.failed: dict[Cell, str] = {}
        self.iterations = session.study.train.iterations
        label = "training" if len(waiting) == 1 else f"{len(waiting)} cells"
        self.progress = Progress(label, self.iterations * len(waiting), write_line=say)
        self.say = self.progress.say
        self.before = 0  # iterations of the cells that are not active any more
        self.told = False
        computer = session.computer
        recipes = [session.study.recipe(cell) for cell in waiting]
        if recipes and computer.precision(recipes[0]) != recipes[0].precision:
            self.say(f"{computer.device} has no native {recipes[0].precision}: training in fp32")
        self.places = memory.fit_at_once(computer, recipes, session.settings.pack)
        on_gpu = computer.device.type == "cuda"
        self.streams = [torch.cuda.Stream(computer.device) for _ in range(self.places)] if on_gpu else [None]

    @property
    def ended(self) -> bool:
        """Whether no cell is left to be trained."""
        return not (self.active or self.waiting)

    def fill(self) -> bool:
        """Begin cells as long as there are places; False if nothing is left to do."""
        while self.waiting and len(self.active) < self.places:
            cell = self.waiting.pop(0)
            on_gpu = self.streams[0] is not None
            recipe = self.session.study.recipe(cell)
            if on_gpu and self.active and not memory.has_room(self.session.computer, recipe):
                self._put_back(cell)
                break
            self._guard(cell, lambda cell=cell: self._begin(cell))
            if cell in self.failed:  # before its first iteration
                self.progress.total -= self.iterations
        return bool(self.active)

    def pass_over(self, cell: Cell) -> None:
        """Leave a cell as it is."""
        self.say(f"{cell}: trained already, nothing to do")
        self.on_trained(cell)

    def _begin(self, cell: Cell) -> None:
        stream = next(s for s in self.streams if s is None or s not in [run.stream for run in self.active])
        try:
            run = CellRun(self.session, cell, stream)
        except torch.OutOfMemoryError:
            if not self.active:
                raise
            self._put_back(cell)
            return
        if self.session.is_trained(cell):  # by another process, while this one trained others
            run.lock.release()
            self.progress.total -= self.iterations
            self.pass_over(cell)
            return
        self.active.append(run)
        self.progress.start += run.resumed
        if run.left_aside:
            self.say(f"{cell}: begins anew; {run.left_aside}")
        elif run.resumed:
            self.say(f"{cell}: goes on from iteration {run.resumed:,}")

    def _put_back(self, cell: Cell) -> None:
        """Have a cell wait for the end of one of those that run."""
        self.places = len(self.active)
        self.waiting.insert(0, cell)
        self.say(f"{cell}: no memory beside {self.places} others; training {self.places} at once from here on")

    def turn(self) -> bool:
        """Give every cell a turn, and finish those that are done; False if all wait for the device."""
        working = False
        for run in list(self.active):
            if not run.finished:
                turn = self._guard(run.cell, run.turn)
                working = working or turn is not Turn.WAITING
            if run.finished:
                self._guard(run.cell, lambda run=run: self._finish(run))
        if self.active:
            self._show()
        return working

    def _finish(self, run: CellRun) -> None:
        record = run.finish()
        self._leave(run)
        self.say(f"{run.cell}: {self.iterations:,} iterations in {clock(record.seconds)}")
        self.on_trained(run.cell)

    def _leave(self, run: CellRun) -> None:
        run.lock.release()
        self.active.remove(run)
        self.before += run.run.iteration

    def stop(self) -> None:
        """Save the state of every cell that runs, and let others train it."""
        for run in list(self.active):
            self._guard(run.cell, run.stop)
            run.lock.release()
            if run.cell not in self.failed:
                self.say(f"{run.cell}: stopped at iteration {run.run.iteration:,}; the same command goes on from there")

    def _guard(self, cell: Cell, action: Callable[[], Any]) -> Any:
        """Do something for one cell; what goes wrong with it is noted and leaves the others alone."""
        try:
            return action()
        except DivergedError as error:
            reason = (
                f"{error.what} is not finite at iteration {error.iteration:,}; "
                "a lower train.lr or train.precision=fp32 may help"
            )
        except ReportedError as error:  # another process trains it, or the native engine cannot
            reason = str(error).rstrip(".")
        except OSError as error:
            reason = f"{error.filename or 'a file'} cannot be written ({error.strerror or error})"
        except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError) as error:
            reason = f"the device has not enough memory for it or fails ({str(error).partition(chr(10))[0]})"
            if self.session.computer.device.type == "cuda":
                reason += "; RESNET_CIFAR_DEVICE=cpu trains on the processor"
        # Here, behind the block, nothing of the network is alive any more but what self.active holds.
        self.failed[cell] = reason
        self.say(f"{cell}: {reason}")
        for run in [run for run in self.active if run.cell == cell]:
            self._leave(run)
            self.progress.total -= self.iterations - run.run.iteration
        return None

    def _show(self) -> None:
        done = self.before + sum(run.run.iteration for run in self.active)
        new = done - self.progress.start
        seconds = max(self.progress.seconds, 1e-9)
        if not self.told and new and seconds > OUTLOOK:
            self._tell_length(seconds / new)
        speed = new * self.session.study.train.batch_size / seconds
        if len(self.active) > 1:
            detail = f"{len(self.active)} at once"
        else:
            run = self.active[0].run
            loss = "" if math.isnan(run.loss) else f"  loss {run.loss:.3f}"
            detail = f"{self.active[0].cell} iteration {run.iteration:,}{loss}"
        self.progress.update(done, f"{detail}  {speed:,.0f} images/s")

    def _tell_length(self, seconds: float) -> None:
        """Say how long a run on a CPU will take, if that is long."""
        self.told = True
        run = self.active[0]
        left = self.iterations - run.run.iteration
        if self.session.computer.device.type == "cpu" and left * seconds >= LONG:
            self.say(
                f"{run.cell}: {left:,} more iterations take about {clock(left * seconds)} on this CPU; interrupted, it "
                "goes on where it was. `dvc repro --pull` takes what is published without training, `dvc exp run -S "
                "preset=quick` shows the pipeline in minutes"
            )
