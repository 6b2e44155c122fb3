"""The ways to run a sweep, from the plan to the last line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from resnet_cifar import machine, params
from resnet_cifar.cells import DATA, RUNS, SCRATCH, Cell, RunFiles, run_files
from resnet_cifar.errors import InputError, Interrupted, TrainingError, in_one_line, needs_extra
from resnet_cifar.files import check_no_link, locked
from resnet_cifar.native.engine import NativeEngine, native_can
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.progress import Say, clock
from resnet_cifar.settings import Settings
from resnet_cifar.sweep import local
from resnet_cifar.sweep.checkout import FILES, Checkout, check_checkout
from resnet_cifar.sweep.estimate import estimate
from resnet_cifar.sweep.ledger import Ledger, Plan, dvc_in_a_sentence, make_data
from resnet_cifar.training import record
from resnet_cifar.training.engines import Computer
from resnet_cifar.training.record import RecordError

QUICK = 1.0  # seconds in which cells are recorded one by one
PAUSE = 10.0  # where it takes longer: the pause after a recording, in times of its length


class Sweep:
    """Cells on their way into DVC: the checkout they must come from, the ledger, and the count."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.checkout, self.ledger = Checkout.read(), Ledger()
        self.recorded = self.total = 0
        self.arrived: list[Cell] = []  # whose files are in runs/, and which wait to be recorded
        self.due = 0.0
        self.failed: dict[Cell, str] = {}

    def record(self, cell: Cell) -> None:
        """Record a cell whose files are in ``runs/``: at once, or, where DVC takes long, with those that come next."""
        self.arrived.append(cell)
        if time.monotonic() >= self.due:
            self.settle()

    def settle(self) -> None:
        """Record the cells that wait for it.

        Raises
        ------
        InputError
            If the checkout is not what it was, so that no cell can be recorded any more.
        """
        if not self.arrived:
            return
        self.checkout.check_unchanged()
        began = time.monotonic()
        failed = self.ledger.record(self.arrived)
        for cell in self.arrived:
            if cell in failed:
                reason = in_one_line(failed[cell])
                self.failed[cell] = f"{cell}: trained but not recorded ({reason}); it stays in {RUNS}"
                self.say(self.failed[cell])
            else:
                self.recorded += 1
                self.say(f"{cell}: recorded, {self.recorded} of {self.total}")
        self.arrived = []
        took = time.monotonic() - began
        self.due = time.monotonic() + (PAUSE * took if took > QUICK else 0.0)

    def end(self) -> list[str]:
        """Record what waits, and once more what could not be recorded; return why some still cannot be."""
        self.settle()
        self.arrived, self.failed = list(self.failed), {}
        self.settle()
        return list(self.failed.values())

    def take(self, cell: Cell, files: RunFiles) -> str | None:
        """Bring a cell that was trained elsewhere to ``runs/`` and record it, or return why it does not come there."""
        try:
            self.checkout.read_run(cell, files)
            _bring(files, run_files(RUNS, cell))
        except RecordError as error:
            return f"refused, {error}"
        except OSError as error:
            return f"trained but not kept ({in_one_line(error)})"
        self.record(cell)
        return None

    def restore(self, but: list[Cell]) -> Plan:
        """Restore what DVC has of the cells that are not up to date, ``but`` some; return what is left to do."""
        self.ledger.pull_run_cache()
        plan = self.ledger.plan(self.checkout.has_run)
        restored = self.ledger.restore([cell for cell in plan.restored if cell not in but])
        if restored:
            self.say(f"{_count(restored)} restored from DVC: {_names(restored)}")
        return Plan(plan.finished, restored, plan.stale + [cell for cell in plan.restored if cell not in restored])

    def begin(self) -> list[Cell]:
        """Restore what DVC has, record what is finished; return the cells to train."""
        plan = self.restore(but=[])
        self.total = len(plan.finished) + len(plan.stale)
        self._say_mixture(plan.finished)
        self.arrived += plan.finished
        self.settle()
        if plan.stale:
            self.say(f"{_count(plan.stale)} to train: {_names(plan.stale)}")
        return plan.stale

    def _say_mixture(self, finished: list[Cell]) -> None:
        """Say it, once, if another engine than the others' trained one of the cells that are recorded as they are."""
        study = self.checkout.study
        engines = self.checkout.engines(study.list_cells()) if finished else {}
        for cell in finished:
            try:
                _check_mixture(cell, engines[cell], engines, study)
            except RecordError as error:
                self.say(f"{cell} is recorded all the same: {error}")
                return

    def check_engines(self, stale: list[Cell], engine: Callable[[Cell], str], wanted: bool) -> None:
        """Say or refuse that the cells to train get another engine than those of the study that are trained already.

        Parameters
        ----------
        stale : list of Cell
            The cells to train.
        engine : callable
            The engine that would train a cell.
        wanted : bool
            Whether the environment asks for that engine. If it does not, the native one is not left without a word.

        Raises
        ------
        InputError
            If the native engine trained some and cannot be used now.
        """
        study = self.checkout.study
        native = {cell: native_can(cell.net, study.model.shortcut) for cell in study.list_cells()}
        alike = {native[cell] for cell in stale}  # networks that on a CPU need another engine are no mixture
        trained = self.checkout.engines([cell for cell in native if native[cell] in alike])
        mixed = {cell: before for cell, before in trained.items() if before != engine(cell)}
        if not mixed:
            return
        cell = min(mixed, key=lambda cell: mixed[cell] != NativeEngine.name)  # what is to be refused comes first
        difference = f"{cell} was trained by the engine {mixed[cell]!r}, and {engine(cell)!r} would train the others"
        if mixed[cell] == NativeEngine.name and not wanted:
            raise InputError(
                f"{difference}, because the native one cannot be used here; a table must not mix engines: mend "
                "that, or set RESNET_CIFAR_SIMD=none to train with PyTorch."
            )
        self.say(f"{difference}: the table will mix them")


def train(settings: Settings, say: Say, on_ray: bool = False, address: str | None = None) -> None:
    """Bring every cell up to date: record what is finished, restore what DVC has, train the rest.

    Parameters
    ----------
    settings : Settings
        What the environment says.
    say : callable
        Gets lines of progress.
    on_ray : bool
        Train on a Ray cluster instead of in processes of this machine.
    address : str, optional
        The cluster, as Ray writes it.

    Raises
    ------
    TrainingError
        At the end, if cells failed; it says which and why.
    Interrupted
        After SIGINT or SIGTERM, when what is finished is recorded.
    """
    if on_ray:
        with needs_extra("ray"):
            from resnet_cifar.sweep import cluster
    with _alone(say) as lock:
        sweep = Sweep(say)
        stale = sweep.begin()
        failed: list[str] = []
        try:
            if stale and on_ray:
                study, check = sweep.checkout.study, partial(sweep.check_engines, stale)
                failed = cluster.train(study, stale, settings, sweep.take, say, check, address)
            elif stale:
                devices = local.devices(settings)
                _check_local_engines(sweep, stale, settings, devices[0])
                failed = local.train(stale, devices, sweep.checkout.has_run, sweep.record, say, lock)
        except Interrupted:
            sweep.settle()
            say(f"interrupted with {sweep.recorded} of {sweep.total} recorded; the same command goes on from there")
            raise
        failed = sweep.end() + failed
    if failed:
        raise TrainingError(f"{sweep.recorded} of {sweep.total} cells recorded; {'; '.join(failed)}")
    say("every cell is up to date; `dvc repro` evaluates and reports")


def dry_run(settings: Settings, say: Say) -> None:
    """Print what a sweep would train and about how long; change nothing but what DVC's cache knows of the remote."""
    study = params.load()
    check_checkout()
    has_run = Checkout.read().has_run if DATA.exists() else lambda _: False
    with dvc_in_a_sentence():
        ledger = Ledger()
        ledger.pull_run_cache()
        plan = ledger.plan(has_run)
    for cells, what in ((plan.finished, "recorded, being trained already"), (plan.restored, "restored from DVC")):
        if cells:
            print(f"{_count(cells)} would be {what}: {_names(cells)}")
    if not plan.stale:
        print("no cell would be trained")
        return
    devices = local.devices(settings)
    computer = Computer(replace(settings, device=devices[0]), say)
    with machine.usable(computer.device):
        seconds = estimate(computer, study, plan.stale, study.train.iterations, settings.pack, len(devices))
    print(f"{_count(plan.stale)} would be trained: {_names(plan.stale)}")
    there = f"{len(devices)} x {machine.device_name(computer.device)}"
    print(f"in about {clock(seconds)} on {there}, if from the beginning")


def record_from(source: Path, say: Say) -> None:
    """Record the study's cells that lie in ``source``, each if it answers what this checkout asks.

    What DVC has of the others is restored, so that no engine comes beside another one in the table unnoticed.

    Raises
    ------
    InputError
        If there are none, or some were refused; the lines before it say why.
    """
    study = params.load()
    cells = [cell for cell in study.list_cells() if run_files(source, cell).folder.is_dir()]
    if not cells:
        raise InputError(
            f"{source} holds no cell of params.yaml; it should be what `stages/train.py --runs` was given."
        )
    others = {path.parent.name for path in source.glob("*/run.json")} - set(map(str, cells))
    if others:
        say(f"params.yaml does not name {', '.join(sorted(others))}: left in {source}")
    with _alone(say):
        sweep = Sweep(say)
        sweep.restore(but=cells)
        sweep.total = len(cells)
        engines = sweep.checkout.engines([cell for cell in study.list_cells() if cell not in cells])
        for cell in cells:
            files = run_files(source, cell)
            try:
                engine = sweep.checkout.read_run(cell, files).arithmetic.engine
                _check_mixture(cell, engine, engines, study)
            except RecordError as error:
                failure = f"refused, {error}"
            else:
                failure = sweep.take(cell, files)
            if failure:
                say(f"{cell}: {failure}")
            else:
                engines[cell] = engine
        sweep.end()
    if sweep.recorded < sweep.total:
        left = sweep.total - sweep.recorded
        raise InputError(f"{left} of {_count(cells)} in {source} could not be recorded, as said above.")


def _check_mixture(cell: Cell, engine: str, engines: dict[Cell, str], study: params.Study) -> None:
    """Raise :class:`RecordError` if the table would mix engines with a cell of this one beside the others."""
    shortcut = study.model.shortcut
    for other in engines:  # but those that on a CPU need another one
        alike = native_can(other.net, shortcut) == native_can(cell.net, shortcut)
        if alike and engines[other] != engine:
            raise RecordError(
                f"its engine is {engine!r}, {other}'s is {engines[other]!r}, and a table must not mix engines"
            )


def _check_local_engines(sweep: Sweep, stale: list[Cell], settings: Settings, device: str) -> None:
    if device != "cpu":  # here no context on a GPU is needed to know it
        sweep.check_engines(stale, lambda _: GraphEngine.name, wanted=True)
        return
    computer = Computer(replace(settings, device=device), sweep.say)
    study = sweep.checkout.study
    engines = {cell: computer.arithmetic(study.recipe(cell)).engine for cell in study.list_cells()}
    sweep.check_engines(stale, engines.get, wanted=not computer.fallback)


def _bring(there: RunFiles, here: RunFiles) -> None:
    """Copy a cell's files, unless they are there already."""
    if there.folder.resolve() != here.folder.resolve():
        record.write(here, *(getattr(there, name).read_bytes() for name in FILES))


@contextmanager
def _alone(say: Say) -> Iterator[int]:
    """Hold the checkout against other sweeps, bring its data set up to date; give the lock's file descriptor.

    Training processes inherit it: those of a sweep that was killed are waited for too.
    """
    for cell in params.load().list_cells():
        check_no_link(run_files(RUNS, cell).weights)
    check_checkout()
    SCRATCH.mkdir(exist_ok=True)
    waiting = "waiting for another sweep in this checkout to end"
    with locked(SCRATCH / "sweep.lock", lambda: say(waiting)) as descriptor, dvc_in_a_sentence():
        make_data()
        yield descriptor


def _count(cells: list[Cell]) -> str:
    return f"{len(cells)} cell{'s' * (len(cells) != 1)}"


def _names(cells: list[Cell]) -> str:
    return ", ".join(map(str, cells))
