"""The ways to run a sweep, from the plan to the last line."""

import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from dvc.exceptions import DvcException

from resnet_cifar import machine, params
from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.progress import clock
from resnet_cifar.sweep import local
from resnet_cifar.sweep.estimate import estimate
from resnet_cifar.sweep.ledger import Ledger, make_data
from resnet_cifar.sweep.tree import DATA, RUNS, SCRATCH, Tree, check_checkout
from resnet_cifar.training.packing import Interrupted


class Sweep:
    """Cells on their way into DVC: the tree they must come from, the ledger, and the count."""

    def __init__(self) -> None:
        self.tree, self.ledger = Tree.read(), Ledger()
        self.recorded = self.total = 0

    def record(self, cell: Cell) -> None:
        """Record a cell whose files are in ``runs/``, if the tree is still what it was."""
        self.tree.check_unchanged()
        self.ledger.record(cell)
        self.recorded += 1
        say(f"{cell}: recorded, {self.recorded} of {self.total}")

    def take(self, cell: Cell, files: RunFiles) -> str | None:
        """Record a cell that was trained elsewhere, or return why it is refused."""
        difference = self.tree.mismatch(cell, files)
        if difference:
            return f"refused, {difference}"
        _bring(files, run_files(RUNS, cell))
        self.record(cell)
        return None

    def begin(self) -> list[Cell]:
        """Record what is finished, restore what DVC has, and return the cells to train."""
        self.ledger.pull_run_cache()
        plan = self.ledger.plan(self.tree.has_run)
        restored = self.ledger.restore(plan.restored)
        if restored:
            say(f"{_count(restored)} restored from DVC: {_names(restored)}")
        stale = plan.stale + [cell for cell in plan.restored if cell not in restored]
        self.total = len(plan.finished) + len(stale)
        for cell in plan.finished:
            self.record(cell)
        if stale:
            say(f"{_count(stale)} to train: {_names(stale)}")
        return stale


def run(on_ray: bool = False, address: str | None = None) -> None:
    """Bring every cell up to date: record what is finished, restore what DVC has, train the rest.

    Parameters
    ----------
    on_ray : bool
        Train on a Ray cluster instead of in processes of this machine.
    address : str, optional
        The cluster, as Ray writes it.
    """
    if on_ray:
        cluster = _cluster()
    with _alone() as lock:
        sweep = Sweep()
        stale = sweep.begin()
        try:
            if on_ray:
                failed = cluster.train(sweep.tree.params, stale, sweep.take, say, address)
            else:
                failed = local.train(stale, sweep.tree.has_run, sweep.record, say, lock)
        except Interrupted as interrupted:
            say(f"interrupted with {sweep.recorded} of {sweep.total} recorded; the same command goes on from there")
            sys.exit(128 + interrupted.signum)
    if failed:
        raise InputError(f"{sweep.recorded} of {sweep.total} cells recorded; {'; '.join(failed)}")
    say("every cell is up to date; `dvc repro` evaluates and reports")


def dry_run() -> None:
    """Print what a sweep would train and about how long; change nothing."""
    study = params.load()
    check_checkout()
    has_run = Tree.read().has_run if DATA.exists() else lambda _: False
    with _dvc_in_a_sentence():
        plan = Ledger().plan(has_run)
    for cells, what in ((plan.finished, "recorded, being trained already"), (plan.restored, "restored from DVC")):
        if cells:
            print(f"{_count(cells)} would be {what}: {_names(cells)}")
    if not plan.stale:
        print("no cell would be trained")
        return
    devices = local.devices()
    seconds = estimate(study, plan.stale, len(devices))
    kind = machine.describe(machine.configure())["device"]
    print(f"{_count(plan.stale)} would be trained: {_names(plan.stale)}")
    print(f"in about {clock(seconds)} on {len(devices)} x {kind}")


def record_from(source: Path) -> None:
    """Record the study's cells that lie in ``source``, each if it comes from this tree's code, data and parameters.

    Raises
    ------
    InputError
        If there are none, or some were refused; the lines before it say why.
    """
    cells = [cell for cell in params.load().list_cells() if run_files(source, cell).folder.is_dir()]
    if not cells:
        raise InputError(
            f"{source} holds no cell of params.yaml; it should be what `stages/train.py --runs` was given."
        )
    with _alone():
        sweep = Sweep()
        sweep.total = len(cells)
        for cell in cells:
            refusal = sweep.take(cell, run_files(source, cell))
            if refusal:
                say(f"{cell}: {refusal}")
    if sweep.recorded < sweep.total:
        raise InputError(f"{sweep.total - sweep.recorded} of {_count(cells)} in {source} were refused, as said above.")


def _cluster() -> ModuleType:
    """The part that needs Ray."""
    try:
        from resnet_cifar.sweep import cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError("--ray needs Ray: install it with `pip install -c constraints.txt -e '.[ray]'`.") from None
    return cluster


def _bring(there: RunFiles, here: RunFiles) -> None:
    """Copy a cell's files so that whatever happens, there is the old run, none, or the whole new one."""
    if there.folder.resolve() == here.folder.resolve():
        return
    arriving = RunFiles(SCRATCH / "arriving")
    shutil.rmtree(arriving.folder, ignore_errors=True)
    arriving.folder.mkdir(parents=True)
    for name in ("weights", "history", "record"):
        shutil.copyfile(getattr(there, name), getattr(arriving, name))
    here.folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(here.folder, ignore_errors=True)
    arriving.folder.rename(here.folder)


@contextmanager
def _alone() -> Iterator[int]:
    """Hold the checkout against other sweeps, bring its data set up to date; give the lock's file descriptor.

    Training processes inherit it: those of a sweep that was killed are waited for too.
    """
    params.load()
    check_checkout()
    SCRATCH.mkdir(exist_ok=True)
    with (SCRATCH / "sweep.lock").open("w") as file, _dvc_in_a_sentence():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another sweep in this checkout to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        make_data()
        yield file.fileno()


@contextmanager
def _dvc_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except DvcException as error:
        raise InputError(f"DVC could not go on: {error}") from None


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def _count(cells: list[Cell]) -> str:
    return f"{len(cells)} cell{'s' * (len(cells) != 1)}"


def _names(cells: list[Cell]) -> str:
    return ", ".join(map(str, cells))
