"""One cell in training on this machine: its run, its clock, its saved state, its files."""

import hashlib
import time
from contextlib import suppress

import torch

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.numerics.engine import Turn
from resnet_cifar.numerics.run import Run
from resnet_cifar.numerics.weights import digest, serialize
from resnet_cifar.training import record
from resnet_cifar.training.lock import CellLock
from resnet_cifar.training.record import Record
from resnet_cifar.training.session import Session
from resnet_cifar.training.states import StateFile


class CellRun:
    """A cell being trained, from its saved state if there is one.

    Parameters
    ----------
    session : Session
        Parameters, data and folders.
    cell : Cell
        Which one.
    stream : torch.cuda.Stream, optional
        On a GPU, where it runs.

    Attributes
    ----------
    resumed : int
        The iteration at which it went on, 0 if it is new.
    left_aside : str
        Why a saved state that is there could not be used, in words; else empty.
    finished : bool
        Whether the last iteration and evaluation are done.

    Raises
    ------
    TrainingError
        If another process trains the cell, or as :meth:`StateFile.restore` says.
    """

    def __init__(self, session: Session, cell: Cell, stream: "torch.cuda.Stream | None" = None) -> None:
        self.session, self.cell, self.stream = session, cell, stream
        self.lock = CellLock(session.scratch, cell)
        recipe = session.study.recipe(cell)
        self.question, self.arithmetic = session.question(cell), session.arithmetic(cell)
        self.run = Run(recipe, session.dataset, session.computer.engine(recipe, session.dataset, stream))
        self.state = StateFile(session.states, self.question, self.arithmetic)
        self.past, self.left_aside = self.state.restore(self.run)
        if not (self.run.finished and self.past.circumstances):  # else it computes nothing, and writes the files
            self.past.go_on(session.computer.circumstances(recipe), self.run.iteration)
        self.resumed = self.stored = self.run.iteration
        self.finished = self.run.finished
        self.began = self.written = time.monotonic()
        self._turns = self.run.train()

    @property
    def seconds(self) -> float:
        """Spent on it, before an interruption too."""
        return self.past.seconds + time.monotonic() - self.began

    def turn(self) -> Turn:
        """Do what is next, never waiting for the device; save the state whenever it is time for that.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        OSError
            If the state cannot be written.
        """
        turn = next(self._turns)
        self.finished = self.run.finished and self.run.whole
        due = time.monotonic() - self.written >= self.session.settings.save_every
        if self.run.whole and due and not self.finished:  # finish() saves, and goes on without
            self.save()
        return turn

    def stop(self) -> None:
        """Go on to where the state is whole, and save it."""
        while not self.run.whole:
            if next(self._turns, None) is None:  # a fault of this program ended it before
                return
        self.save()

    def save(self) -> None:
        """Save the state, while it is whole, if it is not saved yet."""
        if self.run.iteration > self.stored:
            self.past.seconds, self.began = self.seconds, time.monotonic()
            self.state.save(self.run, self.past)
            self.stored = self.run.iteration
        self.written = time.monotonic()

    def finish(self) -> Record:
        """Write the cell's files, the record last; remove the saved state; return the record."""
        with suppress(OSError):  # where even the files cannot be written, nothing has to be trained again
            self.save()
        weights, history = self.run.state_dict(), self.run.history().encode()
        recipe, seconds = self.run.recipe, self.seconds
        finished = Record(
            question=self.question,
            arithmetic=self.arithmetic,
            circumstances=self.past.circumstances,
            iterations=recipe.iterations,
            seconds=round(seconds, 3),
            images_per_second=round(recipe.iterations * recipe.batch_size / seconds, 1),
            resumed_at=self.past.resumed_at,
            earlier=self.past.earlier,
            weights_sha256=digest(weights),
            history_sha256=hashlib.sha256(history).hexdigest(),
        )
        content = serialize(weights, self.cell.net, self.cell.n, self.cell.seed)
        record.write(run_files(self.session.runs, self.cell), content, history, finished.content())
        self.state.remove()
        return finished
