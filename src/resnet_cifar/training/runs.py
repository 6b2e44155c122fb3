"""One cell's run on this machine: what it shares with others, its clock, its saved state, its files.

``RESNET_CIFAR_SAVE_EVERY`` in the environment says how many seconds lie between two saved states; by default 30.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resnet_cifar import dataset, machine
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.checkpoint import write_whole
from resnet_cifar.dataset import Dataset, Split
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.training import provenance, resume
from resnet_cifar.training.loop import Trainer
from resnet_cifar.training.protocol import Recipe, recipe
from resnet_cifar.training.step import TrainState

LOOK_EVERY = 1.0
IN_FLIGHT = 2


class Session:
    """What the cells of one process share: parameters, data on the device, digests, folders.

    Parameters
    ----------
    params : Params
        The parameters of the study.
    data : Path
        The preprocessed data set.
    runs, scratch : Path
        Where finished runs and interrupted ones are kept.
    """

    def __init__(self, params: Params, data: Path, runs: Path, scratch: Path) -> None:
        self.device = machine.configure()
        self.save_every = _save_every()
        self.params, self.runs, self.scratch = params, runs, scratch
        for folder in (runs, scratch):  # now, and not after the training
            folder.mkdir(parents=True, exist_ok=True)
        loaded = dataset.load(data)
        params.check_batch(len(loaded.train))
        self.data_digest, self.code_digest = provenance.file_digest(data), provenance.code_digest()
        self.precision = machine.precision_in_force(params.train.precision, self.device)
        self.dataset = _on_device(loaded, self.device)

    def recipe(self, cell: Cell) -> Recipe:
        return recipe(self.params, cell, self.precision)

    def identity(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's files: digests, the machine's kind, and how often the curve is drawn."""
        kind = machine.describe(self.device)
        if self.device.type != "cpu":
            del kind["threads"]  # on a GPU they decide nothing
        return {
            "digests": {
                "code": self.code_digest,
                "parameters": self.recipe(cell).digest,
                "data": self.data_digest,
            },
            **kind,
            "precision": self.precision,
            "eval_every": self.params.train.eval_every,
        }

    def is_trained(self, cell: Cell) -> bool:
        """Whether the cell's files are there, made by this code from these parameters and data on such a machine."""
        files = run_files(self.runs, cell)
        try:
            record = json.loads(files.record.read_text())
            identity = self.identity(cell)
            return (
                {key: record[key] for key in identity} == identity
                and provenance.file_digest(files.weights) == record["weights_sha256"]
                and provenance.file_digest(files.history) == record["history_sha256"]
            )
        except (OSError, ValueError, KeyError):
            return False


class CellRun:
    """One cell being trained: its trainer, its clock, its saved state."""

    def __init__(self, session: Session, cell: Cell, stream: "torch.cuda.Stream | None") -> None:
        self.session, self.cell, self.stream = session, cell, stream
        state = TrainState(session.recipe(cell), session.dataset, session.params.train.eval_every)
        self.identity = session.identity(cell)
        # Named by what the run is, so that no other run of the cell takes its state away.
        name = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        self.saved = session.scratch / cell.name / f"{name}.safetensors"
        self.past = resume.load(self.saved, state, self.identity) or resume.Past()
        self.trainer = Trainer(state, stream)
        self.resumed = self.stored = self.trainer.done
        self.finished = False
        self.began = self.looked = self.written = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.past.seconds + time.monotonic() - self.began

    def turn(self) -> bool:
        """Do what is next, never waiting for the device while others could use it; False if it has enough to do.

        That is training on and, whenever it is time, first a look at the losses or saving the state. For these two and
        at the end the queue runs empty, which takes a few iterations.
        """
        now, queued = time.monotonic(), self.trainer.engine.queued()
        due = now - self.written >= self.session.save_every
        look = due or self.trainer.finished or now - self.looked >= LOOK_EVERY
        if queued >= (1 if look else IN_FLIGHT):
            return False
        if look:
            self.trainer.settle()
            self.looked = now
        if self.trainer.finished:
            self.finished = True
            return True
        if due:
            self.save()
        self.trainer.advance()
        return True

    def save(self) -> None:
        """Save the state, if its losses are finite and it is not saved yet."""
        self.trainer.settle()
        if self.trainer.done > self.stored:
            resume.save(self.saved, self.trainer.state, self.identity, replace(self.past, seconds=self.seconds))
            self.stored = self.trainer.done
        self.written = time.monotonic()

    def forget(self) -> None:
        """Remove the saved state."""
        self.saved.unlink(missing_ok=True)
        with suppress(OSError):  # another run of the cell has a state there
            self.saved.parent.rmdir()

    def finish(self) -> dict[str, Any]:
        """Write the cell's files, the record last; remove the saved state; return the record."""
        files = run_files(self.session.runs, self.cell)
        files.folder.mkdir(parents=True, exist_ok=True)
        files.record.unlink(missing_ok=True)
        identity = {"net": self.cell.net, "n": self.cell.n, "seed": self.cell.seed}
        self.trainer.write_weights(files.weights, identity)
        write_whole(files.history, self.trainer.history().encode())
        images = self.trainer.state.recipe.iterations * self.trainer.state.recipe.batch_size
        record = {
            "cell": self.cell.name,
            **identity,
            "iterations": self.trainer.state.recipe.iterations,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images / self.seconds, 1),
            "resumed_at": self.past.resumed_at,
            "weights_sha256": provenance.file_digest(files.weights),
            "history_sha256": provenance.file_digest(files.history),
            **machine.describe(self.session.device),
            **self.identity,
        }
        write_whole(files.record, (json.dumps(record, indent=2) + "\n").encode())
        self.forget()
        return record


def _save_every() -> float:
    given = os.environ.get("RESNET_CIFAR_SAVE_EVERY", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"RESNET_CIFAR_SAVE_EVERY is {given!r}; it should be a number of seconds from 0.")
    return seconds


def _on_device(data: Dataset, device: torch.device) -> Dataset:
    def moved(split: Split) -> Split:
        return Split(split.images.to(device), split.labels.to(device))

    return Dataset(
        train=moved(data.train),
        validation=moved(data.validation) if data.validation else None,
        test=moved(data.test),
        pixel_mean=data.pixel_mean,
        channel_mean=data.channel_mean,
        channel_std=data.channel_std,
    )
