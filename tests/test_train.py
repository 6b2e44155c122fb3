"""Training of cells: their files, their company, what goes wrong with one of them, and the stage's command."""

import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, advance, as_dvc, changed, make_session, needs_native, write_tiny_dataset

from resnet_cifar import progress
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.checkpoint import load_model
from resnet_cifar.commands.train import main
from resnet_cifar.errors import InputError, Interrupted
from resnet_cifar.files import sha256
from resnet_cifar.native.library import Library
from resnet_cifar.native.network import NativeNetwork
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.run import Run
from resnet_cifar.training import record, train
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.engines import Computer, native_arithmetic
from resnet_cifar.training.session import Session
from resnet_cifar.training.states import StateFile
from resnet_cifar.training.train import train_cells

CELLS = [Cell("resnet", 1, 0), Cell("resnet", 2, 0), Cell("plain", 1, 0)]
SMALL, LARGE, PLAIN = CELLS


def silent(_: str) -> None:
    """Takes the lines of progress."""


def content(session: Session, cell: Cell) -> tuple[bytes, bytes]:
    files = run_files(session.runs, cell)
    return files.weights.read_bytes(), files.history.read_bytes()


@pytest.fixture(scope="module")
def alone(tiny_study, tiny_data, tmp_path_factory) -> dict[Cell, tuple[bytes, bytes]]:
    """Weights and history of each cell, trained by a call of its own."""
    found = {}
    for cell in CELLS:
        session = make_session(tiny_study, tiny_data, tmp_path_factory.mktemp(cell.name))
        assert train_cells(session, [cell], silent) == {}
        found[cell] = content(session, cell)
    assert len(set(found.values())) == len(CELLS)
    return found


@pytest.fixture
def side_by_side(monkeypatch) -> None:
    """Three networks in flight at once, as on a GPU."""
    monkeypatch.setattr("resnet_cifar.training.memory.fit_at_once", lambda *_: 3)


def saved_cells(session: Session) -> list[str]:
    """Those of which a state is kept."""
    return sorted(path.parent.name for path in session.scratch.rglob("*.safetensors"))


def saved_at(session: Session, cell: Cell, iteration: int) -> Path:
    """An interrupted run of the cell."""
    run = CellRun(session, cell)
    advance(run.run, iteration)
    run.save()
    run.lock.release()
    return run.state.path


# ---- Files


def test_files_of_a_cell(session, tiny_data):
    assert train_cells(session, [SMALL], silent) == {}
    files = run_files(session.runs, SMALL)
    assert sorted(path.name for path in files.folder.iterdir()) == ["history.csv", "run.json", "weights.safetensors"]
    rows = list(csv.DictReader(files.history.open()))
    assert [int(row["iteration"]) for row in rows] == [4, 6]
    found = record.read(files)
    assert found.question == session.question(SMALL)
    assert found.question.data == sha256(tiny_data)
    assert (found.arithmetic.engine, found.arithmetic.precision, found.resumed_at) == ("eager", "fp32", [])
    assert load_model(files.weights)[1] == SMALL
    assert saved_cells(session) == []


def test_trained_cells_are_left_alone_and_changed_ones_are_not(session, tiny_study):
    train_cells(session, [SMALL], silent)
    weights = run_files(session.runs, SMALL).weights
    written = weights.stat().st_mtime_ns
    lines: list[str] = []
    told: list[Cell] = []
    train_cells(session, [SMALL], lines.append, told.append)
    assert (lines, told) == (["resnet-1-0: trained already, nothing to do"], [SMALL])
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not session.is_trained(SMALL)
    train_cells(session, [SMALL], silent)
    assert session.is_trained(SMALL)
    session.study = changed(tiny_study, lr=0.05)
    assert not session.is_trained(SMALL)


def test_a_cell_that_another_process_trains_meanwhile_is_not_trained_again(session):
    lines: list[str] = []
    told: list[tuple[Cell, int]] = []

    def train_the_other(cell: Cell) -> None:
        if cell == LARGE:
            train_cells(session, [SMALL], silent)
        told.append((cell, run_files(session.runs, SMALL).weights.stat().st_mtime_ns))

    assert train_cells(session, [LARGE, SMALL], lines.append, train_the_other) == {}
    assert lines[-1] == "resnet-1-0: trained already, nothing to do"
    assert told == [(LARGE, told[0][1]), (SMALL, told[0][1])]
    CellRun(session, SMALL).lock.release()  # nobody has it any more


# ---- Company


def test_together_and_in_any_order_the_bytes_of_alone(session, alone, tmp_path):
    train_cells(session, CELLS, silent)
    assert {cell: content(session, cell) for cell in CELLS} == alone
    session.runs = tmp_path / "reversed"
    train_cells(session, CELLS[::-1], silent)
    assert {cell: content(session, cell) for cell in CELLS} == alone


@pytest.mark.usefixtures("side_by_side")
def test_taking_turns_changes_nothing(session, alone):
    told: list[Cell] = []
    assert train_cells(session, CELLS, silent, told.append) == {}
    assert {cell: content(session, cell) for cell in CELLS} == alone
    assert sorted(told) == sorted(CELLS)


def test_long_cells_start_first(session):
    lines: list[str] = []
    train_cells(session, CELLS, lines.append)
    assert [line.split(":")[0] for line in lines] == ["resnet-2-0", "resnet-1-0", "plain-1-0"]


# ---- Interruptions


@pytest.mark.parametrize("iteration", [1, 4, 5, 6])
def test_resumed_the_same_bytes(session, alone, iteration):
    """Before, at and after a point of the curve, and when all iterations are done but no file is written."""
    saved_at(session, SMALL, iteration)
    lines: list[str] = []
    assert train_cells(session, [SMALL], lines.append) == {}
    assert lines[0] == f"resnet-1-0: goes on from iteration {iteration}"
    assert content(session, SMALL) == alone[SMALL]
    assert record.read(run_files(session.runs, SMALL)).resumed_at == [iteration]
    assert saved_cells(session) == []


def test_seconds_add_up_over_an_interruption(session):
    run = CellRun(session, SMALL)
    run.began -= 10_000  # as if it had run for so long
    advance(run.run, 2)
    run.save()
    run.lock.release()
    train_cells(session, [SMALL], silent)
    assert 10_000 < record.read(run_files(session.runs, SMALL)).seconds < 20_000


def test_a_state_is_saved_whenever_it_is_time(session, monkeypatch):
    """With every turn that is whole, and once before the files are written if it is never time."""
    saved: list[int] = []
    monkeypatch.setattr(StateFile, "save", lambda _, run, __: saved.append(run.iteration))
    session.settings = dataclasses.replace(session.settings, save_every=0.0)
    train_cells(session, [SMALL], silent)
    assert saved == [1, 2, 3, 4, 5, 6]
    session.settings = dataclasses.replace(session.settings, save_every=1e9)
    run_files(session.runs, SMALL).record.unlink()
    train_cells(session, [SMALL], silent)
    assert saved == [1, 2, 3, 4, 5, 6, 6]


def test_a_state_that_cannot_be_used_is_said(session, alone, tiny_study, tiny_data, tmp_path):
    path = saved_at(session, SMALL, 3)
    path.write_bytes(path.read_bytes()[:1000])
    lines: list[str] = []
    assert train_cells(session, [SMALL], lines.append) == {}
    assert lines[0].startswith(f"resnet-1-0: begins anew; {path} cannot be read (")
    assert content(session, SMALL) == alone[SMALL]

    path = saved_at(session, PLAIN, 3)
    two = make_session(tiny_study, tiny_data, tmp_path, threads=2)
    try:
        lines.clear()
        assert train_cells(two, [PLAIN], lines.append) == {}
    finally:
        torch.set_num_threads(1)
    assert lines[0] == (
        f"plain-1-0: begins anew; {path} stays where it is: its number of CPU threads is 1, not 2 as here"
    )
    assert path.exists()


def test_another_run_of_the_cell_leaves_the_state_alone(session, tiny_study):
    """A long run that was interrupted goes on after a short one with other parameters."""
    saved_at(session, SMALL, 1)
    session.study = changed(tiny_study, iterations=5, milestones=[2])
    assert train_cells(session, [SMALL], silent) == {}
    session.study = tiny_study
    assert CellRun(session, SMALL).resumed == 1
    assert train_cells(session, [SMALL], silent) == {}
    assert saved_cells(session) == []


@needs_native
def test_the_record_says_which_part_another_machine_computed(tiny_study, tiny_data, tmp_path):
    """Here one thread goes on with what two began, is interrupted, too, and two go on with that."""
    study = changed(tiny_study, eval_every=1)
    one, two = (make_session(study, tiny_data, tmp_path, simd=None, threads=threads) for threads in (1, 2))
    for session, iteration in ((two, 1), (one, 3), (one, 4), (two, 5)):
        saved_at(session, SMALL, iteration)
    assert train_cells(two, [SMALL], silent) == {}
    found = record.read(run_files(two.runs, SMALL))
    assert found.resumed_at == [1, 3, 4, 5]
    assert [(part.until, part.circumstances.threads) for part in found.earlier] == [(1, 2), (4, 1)]
    assert found.circumstances == two.computer.circumstances(two.study.recipe(SMALL))


@needs_native
def test_what_only_writes_the_files_of_a_run_did_not_compute_it(tiny_study, tiny_data, tmp_path):
    one, two = (make_session(tiny_study, tiny_data, tmp_path, simd=None, threads=threads) for threads in (1, 2))
    saved_at(two, SMALL, tiny_study.train.iterations)
    assert train_cells(one, [SMALL], silent) == {}
    found = record.read(run_files(one.runs, SMALL))
    assert (found.earlier, found.circumstances) == ([], two.computer.circumstances(two.study.recipe(SMALL)))


def test_an_experiment_interrupted_in_a_copy_goes_on_in_another(tiny_study, tiny_data, tmp_path, alone):
    """DVC makes one for each `dvc exp run --temp` and each queued experiment, and removes it with all that is in it."""
    copies = tmp_path / ".dvc/tmp/exps"
    state = saved_at(make_session(tiny_study, tiny_data, copies / "standalone/tmpfirst"), SMALL, 3)
    assert state.parent == tmp_path / "scratch" / SMALL.name
    shutil.rmtree(copies)
    session = make_session(tiny_study, tiny_data, copies / "tmpsecond")
    assert train_cells(session, [SMALL], silent) == {}
    assert content(session, SMALL) == alone[SMALL]
    assert record.read(run_files(session.runs, SMALL)).resumed_at == [3]
    assert not state.exists()


def test_experiments_at_once_leave_each_others_states_alone(tiny_study, tiny_data, tmp_path, alone):
    """The same cell in two copies: with other parameters its state is another, with the same ones the bytes are."""
    copies = tmp_path / ".dvc/tmp/exps"
    sessions = [
        make_session(study, tiny_data, copies / f"tmp{name}")
        for name, study in (("a", tiny_study), ("b", tiny_study), ("c", changed(tiny_study, lr=0.05)))
    ]
    runs = [CellRun(session, SMALL) for session in sessions]
    for run in runs:
        advance(run.run, 3)
        run.save()
    assert len({run.state.path for run in runs}) == 2
    for run in runs:
        run.lock.release()
    for session in sessions:
        assert train_cells(session, [SMALL], silent) == {}
    assert content(sessions[0], SMALL) == content(sessions[1], SMALL) == alone[SMALL] != content(sessions[2], SMALL)


def test_a_second_trainer_of_a_cell_is_refused_and_the_first_one_named(session, alone):
    first = CellRun(session, SMALL)
    failed = train_cells(session, [SMALL, PLAIN], silent)
    assert failed[SMALL].startswith(f"process {os.getpid()} trains it already with the same {session.scratch}: stop it")
    assert content(session, PLAIN) == alone[PLAIN]
    first.lock.release()
    assert train_cells(session, [SMALL], silent) == {}
    assert content(session, SMALL) == alone[SMALL]


def test_states_may_lie_on_another_disk(tiny_study, tiny_data, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "disk")
    session = make_session(tiny_study, tiny_data, tmp_path)
    saved_at(session, SMALL, 3)
    assert list((tmp_path / "disk" / SMALL.name).glob("*.safetensors"))


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_every_cell(session, alone, monkeypatch, signum):
    turn = CellRun.turn

    def third_turn(self: CellRun) -> object:
        if self.cell == SMALL and self.run.iteration == 3:
            os.kill(os.getpid(), signum)
        return turn(self)

    monkeypatch.setattr(CellRun, "turn", third_turn)
    lines: list[str] = []
    with pytest.raises(Interrupted) as caught:
        train_cells(session, CELLS, lines.append)
    assert caught.value.signum == signum
    assert saved_cells(session) == sorted(cell.name for cell in CELLS)
    stopped = [line for line in lines if "stopped at iteration" in line]
    assert len(stopped) == 3
    monkeypatch.undo()
    assert train_cells(session, CELLS, silent) == {}
    for cell in CELLS:
        (iteration,) = record.read(run_files(session.runs, cell)).resumed_at
        assert f"{cell}: stopped at iteration {iteration}; the same command goes on from there" in stopped
        assert content(session, cell) == alone[cell]


def test_a_signal_begins_no_other_cell(session, monkeypatch):
    begun: list[int] = []
    finish, engine = CellRun.finish, Computer.engine
    monkeypatch.setattr(CellRun, "finish", lambda self: os.kill(os.getpid(), signal.SIGTERM) or finish(self))
    monkeypatch.setattr(Computer, "engine", lambda *arguments: begun.append(arguments[1].n) or engine(*arguments))
    with pytest.raises(Interrupted):
        train_cells(session, CELLS, silent)
    assert begun == [LARGE.n]
    assert session.is_trained(LARGE)
    assert saved_cells(session) == []


def test_the_handlers_are_back_afterwards(session):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train_cells(session, [SMALL], silent)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---- What goes wrong with one cell


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """The plain network's loss is NaN from its third iteration on."""
    steps = EagerEngine.steps

    def bad(self: EagerEngine, rows: object, rates: object):
        if self.network.recipe.net == "plain":
            self.count = getattr(self, "count", 0) + 1
            if self.count == 3:
                self.network.weights[0] = float("nan")
        return steps(self, rows, rates)

    monkeypatch.setattr(EagerEngine, "steps", bad)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("places", [1, 3])
def test_a_cell_that_diverges_fails_alone_and_names_the_iteration(session, alone, monkeypatch, places):
    monkeypatch.setattr("resnet_cifar.training.memory.fit_at_once", lambda *_: places)
    assert train_cells(session, CELLS, silent) == {
        PLAIN: "the loss is not finite at iteration 3; a lower train.lr or train.precision=fp32 may help"
    }
    assert {cell: content(session, cell) for cell in (SMALL, LARGE)} == {cell: alone[cell] for cell in (SMALL, LARGE)}
    assert not (session.runs / "plain-1-0").exists()


@pytest.mark.usefixtures("poisoned", "side_by_side")
def test_a_cell_that_diverges_does_not_keep_the_others_from_being_saved(session, monkeypatch):
    """A signal that comes in the turn before: the divergence is found while the states are being saved."""
    turn = CellRun.turn

    def signalled(self: CellRun) -> object:
        if self.cell == PLAIN and self.run.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return turn(self)

    monkeypatch.setattr(CellRun, "turn", signalled)
    lines: list[str] = []
    with pytest.raises(Interrupted):
        train_cells(session, CELLS, lines.append)
    assert "plain-1-0: the loss is not finite at iteration 3" in "\n".join(lines)
    assert saved_cells(session) == ["resnet-1-0", "resnet-2-0"]


def test_a_last_update_that_is_not_finite_leaves_no_files(session, tiny_study):
    """The sixth iteration's rate is 1e37: its loss is finite, the network after it is not."""
    session.study = changed(tiny_study, milestones=[5], gamma=1e38)
    failed = train_cells(session, [SMALL], silent)
    assert "the evaluation's loss is not finite at iteration 6" in failed[SMALL]
    assert list(session.runs.iterdir()) == []


@pytest.mark.usefixtures("side_by_side")
def test_a_state_that_cannot_be_saved_fails_its_cell_alone(session, alone, monkeypatch):
    save = StateFile.save

    def full(self: StateFile, *arguments: object) -> None:
        if self.question.cell == "plain-1-0":
            raise OSError(28, "No space left on device", str(self.path))
        save(self, *arguments)

    monkeypatch.setattr(StateFile, "save", full)
    session.settings = dataclasses.replace(session.settings, save_every=0.0)
    failed = train_cells(session, CELLS, silent)
    assert list(failed) == [PLAIN]
    assert failed[PLAIN].endswith(".safetensors cannot be written (No space left on device)")
    assert {cell: content(session, cell) for cell in (SMALL, LARGE)} == {cell: alone[cell] for cell in (SMALL, LARGE)}


@pytest.mark.usefixtures("side_by_side")
def test_a_state_that_cannot_be_saved_at_the_end_does_not_fail_its_cell(session, alone, monkeypatch):
    """The state after the last iteration: the cell's files, which are smaller, are written all the same."""
    save = StateFile.save

    def full(self: StateFile, run: Run, *arguments: object) -> None:
        if self.question.cell == "plain-1-0" and run.finished:
            raise OSError(28, "No space left on device", str(self.path))
        save(self, run, *arguments)

    monkeypatch.setattr(StateFile, "save", full)
    session.settings = dataclasses.replace(session.settings, save_every=0.0)
    assert train_cells(session, CELLS, silent) == {}
    assert {cell: content(session, cell) for cell in CELLS} == {cell: alone[cell] for cell in CELLS}


@pytest.mark.parametrize("places", [1, 3])
def test_files_that_cannot_be_written_fail_their_cell_alone(session, alone, monkeypatch, places):
    monkeypatch.setattr("resnet_cifar.training.memory.fit_at_once", lambda *_: places)
    (session.runs / "resnet-2-0").touch()  # a file where the folder should be
    told: list[Cell] = []
    failed = train_cells(session, CELLS, silent, told.append)
    assert failed == {LARGE: f"{session.runs}/resnet-2-0 cannot be written (File exists)"}
    assert content(session, SMALL) == alone[SMALL]
    assert sorted(told) == sorted([SMALL, PLAIN])


class Small(EagerEngine):
    """On a device that has not enough memory for a network of two blocks a stage."""

    def __init__(self, recipe, data, precision) -> None:
        if recipe.n == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nThe rest of a long message")
        super().__init__(recipe, data, precision)


def test_a_device_that_another_process_fills_is_one_sentence(tiny_study, tiny_data, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nThe rest of a long message")

    monkeypatch.setattr("resnet_cifar.numerics.data.Dataset.to", full)
    with pytest.raises(
        InputError, match=r"^cpu has not enough memory or fails \(CUDA out of memory\. Tried .* 1 GiB\)"
    ):
        make_session(tiny_study, tiny_data, tmp_path)


@pytest.mark.parametrize("places", [1, 3])
def test_a_cell_too_large_for_the_device_fails_alone(session, alone, monkeypatch, places):
    monkeypatch.setattr("resnet_cifar.training.memory.fit_at_once", lambda *_: places)
    monkeypatch.setattr("resnet_cifar.training.engines.EagerEngine", Small)
    failed = train_cells(session, CELLS, silent)
    assert failed == {
        LARGE: "the device has not enough memory for it or fails (CUDA out of memory. Tried to allocate 1 GiB.)"
    }
    assert content(session, SMALL) == alone[SMALL]
    assert content(session, PLAIN) == alone[PLAIN]


@needs_native
def test_a_cell_that_the_native_engine_refuses_fails_alone(session, monkeypatch):
    """As it does a network that it has no memory for."""
    create, lines = NativeNetwork.__init__, []

    def refusing(self: NativeNetwork, library: Library, net: str, n: int, *arguments: object) -> None:
        if n == LARGE.n:
            raise InputError("There is not enough memory for a network of 14 layers.")
        create(self, library, net, n, *arguments)

    monkeypatch.setattr(NativeNetwork, "__init__", refusing)
    session.computer = Computer(dataclasses.replace(session.settings, device="cpu", simd=None), silent)
    assert train_cells(session, CELLS, lines.append) == {LARGE: "There is not enough memory for a network of 14 layers"}
    assert "resnet-2-0: There is not enough memory for a network of 14 layers" in lines
    assert session.is_trained(SMALL)
    assert session.is_trained(PLAIN)


def test_a_device_with_room_for_two_trains_two_at_once(session, alone, monkeypatch):
    """The third waits and is trained; no two networks that train at the same time have the same stream."""
    pairs: list[int] = []
    init = train._Pack.__init__

    def with_streams(self: train._Pack, *arguments: object) -> None:
        init(self, *arguments)
        self.streams = ["one", "two", "three"]
        packs.append(self)

    def has_room(*_: object) -> bool:
        active = packs[0].active
        assert len({run.stream for run in active}) == len(active)
        pairs.append(len(active))
        return len(active) < 2

    packs: list[train._Pack] = []
    monkeypatch.setattr(train._Pack, "__init__", with_streams)
    monkeypatch.setattr("resnet_cifar.training.memory.fit_at_once", lambda *_: 3)
    monkeypatch.setattr("resnet_cifar.training.memory.has_room", has_room)
    monkeypatch.setattr(Computer, "engine", lambda _, recipe, data, __: EagerEngine(recipe, data, "fp32"))
    lines: list[str] = []
    assert train_cells(session, CELLS, lines.append) == {}
    assert lines[0] == "plain-1-0: no memory beside 2 others; training 2 at once from here on"
    assert pairs[:2] == [1, 2]
    assert {cell: content(session, cell) for cell in CELLS} == alone


# ---- What is shown


def test_every_line_goes_where_it_is_asked_to(session, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    lines: list[str] = []
    train_cells(session, [SMALL], lines.append)
    assert [line for line in lines if line.startswith("training ")]
    assert lines[-1].startswith("resnet-1-0: 6 iterations in ")
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def shown(monkeypatch) -> list[tuple[int, int, int]]:
    """What the progress is at each update: where it began, how far it is, where it ends."""
    found: list[tuple[int, int, int]] = []
    monkeypatch.setattr(train.Progress, "update", lambda self, done, _: found.append((self.start, done, self.total)))
    return found


def test_progress_counts_what_this_process_did(session, shown):
    """A run that is resumed at iteration 4 of 6: two are new."""
    saved_at(session, SMALL, 4)
    train_cells(session, [SMALL], silent)
    assert shown[0] == (4, 4, 6)
    assert [done for _, done, _ in shown] == sorted(done for _, done, _ in shown)
    assert shown[-1][1] >= 5


@pytest.mark.parametrize("where", ["begin", "training", "files"])
def test_progress_goes_to_the_end_without_the_cells_that_failed(session, shown, monkeypatch, request, where):
    """Cells one after another, of which the first fails: what is not done of it leaves the sum."""
    if where == "begin":
        monkeypatch.setattr("resnet_cifar.training.engines.EagerEngine", Small)
        cells, total = [LARGE, SMALL], 6
    elif where == "training":
        request.getfixturevalue("poisoned")
        cells, total = [PLAIN, SMALL], 2 + 6
    else:
        (session.runs / "resnet-2-0").touch()
        cells, total = [LARGE, SMALL], 6 + 6
    assert len(train_cells(session, cells, silent)) == 1
    assert shown[-1][2] == total
    assert shown[-1][1] == total - 1 or shown[-1][1] == total  # the last iteration is told by the cell's own line


def test_a_long_run_on_a_cpu_announces_itself(session, monkeypatch):
    """Made long: every run is, and is told at once. 5 iterations of at least 0.05 s are 0.25 s or more."""
    monkeypatch.setattr(train, "OUTLOOK", 0.0)
    lines: list[str] = []
    train_cells(session, [SMALL], lines.append)
    assert not [line for line in lines if "on this CPU" in line]
    run_files(session.runs, SMALL).record.unlink()
    steps = EagerEngine.steps
    monkeypatch.setattr(train, "LONG", 5 * 0.05)
    monkeypatch.setattr(EagerEngine, "steps", lambda *arguments: time.sleep(0.05) or steps(*arguments))
    train_cells(session, [SMALL], lines.append)
    (told,) = [line for line in lines if "on this CPU" in line]
    assert told.startswith(("resnet-1-0: 6 more", "resnet-1-0: 5 more"))
    assert "preset=quick" in told


def test_a_precision_that_the_device_lacks_falls_back_to_fp32_with_a_line(session, tiny_study, monkeypatch):
    monkeypatch.setattr("resnet_cifar.machine.has_precision", lambda precision, _: precision == "fp32")
    session.study = changed(tiny_study, precision="bf16")
    lines: list[str] = []
    train_cells(session, [SMALL], lines.append)
    assert lines[0] == "cpu has no native bf16: training in fp32"
    assert record.read(run_files(session.runs, SMALL)).arithmetic.precision == "fp32"


# ---- One engine a table


def test_another_engine_does_not_go_on_with_a_study_of_the_native_one(session, monkeypatch):
    session.check_engine([LARGE])
    monkeypatch.setattr(Computer, "arithmetic", lambda *_: native_arithmetic())
    train_cells(session, [SMALL], silent)
    monkeypatch.undo()
    session.check_engine([LARGE])  # RESNET_CIFAR_SIMD=none: it is what was asked for
    session.computer.fallback = "no compiler"
    with pytest.raises(InputError, match=r"resnet-1-0 was trained by the native engine.*no compiler.*must not mix"):
        session.check_engine([SMALL, LARGE])
    session.check_engine([SMALL])  # nothing is left to train
    run_files(session.runs, SMALL).history.unlink()
    session.check_engine([SMALL, LARGE])


# ---- The stage's command, as DVC and people without DVC call it.


def stage(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "stages/train.py"), *arguments]
    environment = os.environ | {"RESNET_CIFAR_SAVE_EVERY": "0.05"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def checkout(compose, tmp_path_factory) -> Path:
    """A folder with params.yaml, data, and an uninterrupted run of a second."""
    folder = tmp_path_factory.mktemp("checkout")
    overrides = ["model.n=1", "train.seeds=0", "train.iterations=60", "train.batch_size=16", "train.milestones=[20]"]
    text = compose(*overrides, "train.warmup.iterations=0", "train.eval_every=20")
    (folder / "params.yaml").write_text(text)
    write_tiny_dataset(folder / "data/cifar10.safetensors")
    whole = stage(folder, "--runs", "whole", "--scratch", "other")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    return folder


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_started_again_the_same_bytes(checkout, signum):
    folders = ["--runs", f"runs-{signum}", "--scratch", f"scratch-{signum}"]
    process = stage(checkout, *folders, "--cells", "resnet-1-0")
    saved = checkout / f"scratch-{signum}/resnet-1-0"
    while process.poll() is None and not list(saved.glob("*.safetensors")):
        time.sleep(0.005)
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
    again = stage(checkout, *folders, "--cells", "resnet-1-0")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    run = checkout / f"runs-{signum}/resnet-1-0"
    assert json.loads((run / "run.json").read_text())["resumed_at"]
    for name in ("weights.safetensors", "history.csv"):
        assert (run / name).read_bytes() == (checkout / "whole/resnet-1-0" / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's word of a parent's death")
@pytest.mark.parametrize("shell", [False, True], ids=["without a shell", "with one that stays"])
def test_killed_dvc_takes_its_training_along_and_the_state_stays(checkout, compose, tmp_path, shell):
    """The next `dvc repro` would find a second trainer else, or delete what the first one trained to its end."""
    shorter = "train.iterations=1000", "train.batch_size=16", "train.milestones=[20]"
    (tmp_path / "params.yaml").write_text(compose("model.n=1", "train.seeds=0", *shorter))
    command = [sys.executable, str(ROOT / "stages/train.py"), "--data", str(checkout / "data/cifar10.safetensors")]
    if shell:
        command = ["sh", "-c", f"{shlex.join(command)}; exit $?"]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    environment["RESNET_CIFAR_SAVE_EVERY"] = "0.05"
    dvc = subprocess.Popen(as_dvc("train", *command), cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    while dvc.poll() is None and not list((tmp_path / "scratch").glob("*/*.safetensors")):
        time.sleep(0.005)
    dvc.kill()
    _, errors = dvc.communicate()  # the training's end of the pipe is closed, too
    assert b"stopped at iteration" in errors
    assert list((tmp_path / "scratch").glob("*/*.safetensors"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how far the process is")
def test_ctrl_c_during_the_imports_shows_no_traceback(checkout):
    process = stage(checkout)
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert errors == ""


@pytest.fixture
def command(checkout, monkeypatch, capsys):
    """The command in this process: gives what it exits with, its line on stderr; handlers of signals are put back."""
    monkeypatch.chdir(checkout)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert "Traceback" not in capsys.readouterr().err
        return caught.value.code

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cells", "resnet-0-0"], "error: 'resnet-0-0' is not a cell"),
        (["--cells", "plain-*"], "error: no cell matches 'plain-*'; params.yaml has resnet-1-0."),
        (["--data", "nowhere.safetensors"], "error: nowhere.safetensors does not exist"),
        (["--data", "data"], "error: data cannot be read (Is a directory)"),
        (["--runs", "params.yaml"], "error: params.yaml: File exists."),
        (["--scratch", "params.yaml/x"], "error: params.yaml/x: Not a directory."),
    ],
)
def test_bad_arguments_are_one_line(command, arguments, sentence):
    said = command(*arguments)
    assert said.startswith(sentence)
    assert "\n" not in said


@pytest.mark.parametrize("link", ["runs", "runs/resnet-1-0"])
def test_a_link_that_dvc_would_refuse_is_refused_before_anything_is_read(
    command, checkout, tmp_path, monkeypatch, link
):
    here = tmp_path / "repository"
    (here / ".git").mkdir(parents=True)
    shutil.copy(checkout / "params.yaml", here)
    (tmp_path / "disk").mkdir()
    (here / link).parent.mkdir(exist_ok=True)
    (here / link).symlink_to(tmp_path / "disk")
    monkeypatch.chdir(here)
    assert command("--data", "nowhere").startswith(f"error: {here / link} is a symbolic link")


def test_a_setting_is_read_when_the_command_starts(command, monkeypatch):
    monkeypatch.setenv("RESNET_CIFAR_THREADS", "many")
    assert command() == "error: RESNET_CIFAR_THREADS is 'many'; it should be a whole number from 1 to 64."


def test_a_cell_that_fails_is_the_commands_error(command, checkout):
    (checkout / "failing").mkdir(exist_ok=True)
    (checkout / "failing/resnet-1-7").touch()
    said = command("--runs", "failing", "--scratch", "failing-scratch", "--cells", "resnet-1-7")
    assert said == "error: resnet-1-7: failing/resnet-1-7 cannot be written (File exists)"
