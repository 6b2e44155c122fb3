"""Training of cells: the files, resuming, and that neither company nor interruption changes a byte."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_tiny_dataset

from resnet_cifar import progress
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.checkpoint import load_model
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.training import packing, provenance
from resnet_cifar.training.loop import Trainer
from resnet_cifar.training.runs import CellRun, Session

CELLS = [Cell("resnet", 1, 0), Cell("resnet", 2, 0), Cell("plain", 1, 0)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "cifar10.safetensors")


@pytest.fixture
def session(tiny_params, data, tmp_path) -> Session:
    return Session(tiny_params, data, tmp_path / "runs", tmp_path / "scratch")


def weights(session: Session, cell: Cell) -> str:
    return provenance.file_digest(run_files(session.runs, cell).weights)


def changed(params: Params, **train: object) -> Params:
    values = params.model_dump()
    values["train"] |= train
    return Params.model_validate(values)


def test_files_of_a_cell(session):
    cell = CELLS[0]
    assert packing.train_cells(session, [cell]) == {}
    files = run_files(session.runs, cell)
    rows = list(csv.DictReader(files.history.open()))
    assert [int(row["iteration"]) for row in rows] == [4, 6]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01, 0.001])
    assert set(rows[0]) == {"iteration", "lr", "train_loss", "train_error", "test_loss", "test_error"}
    assert all(0 <= float(row["test_error"]) <= 100 for row in rows)
    record = json.loads(files.record.read_text())
    assert record["weights_sha256"] == weights(session, cell)
    assert record["history_sha256"] == provenance.file_digest(files.history)
    assert record["digests"]["data"] == session.data_digest
    assert record["precision"] == "fp32"
    assert record["threads"] == torch.get_num_threads()
    assert record["resumed_at"] == []
    _, metadata = load_model(files.weights)
    assert (metadata["net"], metadata["n"], metadata["seed"]) == ("resnet", 1, 0)
    assert metadata["parameters_digest"] == record["digests"]["parameters"]
    assert not session.scratch.exists() or not any(session.scratch.iterdir())


def test_alone_together_and_in_any_order_the_same_bytes(session, tmp_path):
    packing.train_cells(session, CELLS)
    together = {cell: weights(session, cell) for cell in CELLS}
    assert len(set(together.values())) == len(CELLS)
    session.runs = tmp_path / "alone"
    for cell in reversed(CELLS):
        packing.train_cells(session, [cell])
    assert {cell: weights(session, cell) for cell in CELLS} == together


def test_taking_turns_changes_nothing(session, tmp_path, monkeypatch):
    """Several networks in flight at once, as on a GPU."""
    packing.train_cells(session, CELLS)
    expected = [weights(session, cell) for cell in CELLS]
    monkeypatch.setattr(packing, "fit_at_once", lambda *_: 2)
    session.runs = tmp_path / "turns"
    packing.train_cells(session, CELLS)
    assert [weights(session, cell) for cell in CELLS] == expected


@pytest.mark.parametrize("iteration", range(1, 7))
def test_resumed_at_any_iteration_the_same_bytes(session, tmp_path, iteration):
    """Weights and history; before and after an evaluation, and when all iterations are done but no file is written."""
    cell = CELLS[0]
    packing.train_cells(session, [cell])
    files = run_files(session.runs, cell)
    expected = weights(session, cell), files.history.read_text()
    session.runs = tmp_path / "again"
    run = CellRun(session, cell, None)
    while run.trainer.done < iteration:
        run.trainer.advance()
    run.save()
    assert packing.train_cells(session, [cell]) == {}
    files = run_files(session.runs, cell)
    assert (weights(session, cell), files.history.read_text()) == expected
    assert json.loads(files.record.read_text())["resumed_at"] == [iteration]


@pytest.mark.parametrize("difference", ["parameters", "code", "data", "threads", "eval_every", "truncated"])
def test_a_state_of_another_run_is_not_resumed_from(session, difference, tiny_params):
    cell = CELLS[0]
    run = CellRun(session, cell, None)
    run.trainer.advance()
    run.save()
    if difference == "parameters":
        session.params = changed(tiny_params, weight_decay=0.0005)
    elif difference == "code":
        session.code_digest = "another"
    elif difference == "data":
        session.data_digest = "another"
    elif difference == "eval_every":
        session.params = changed(tiny_params, eval_every=3)
    elif difference == "threads":
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
    else:
        run.saved.write_bytes(run.saved.read_bytes()[:1000])
    try:
        assert CellRun(session, cell, None).trainer.done == 0
    finally:
        if difference == "threads":
            torch.set_num_threads(before)


def test_a_warm_up_of_deeper_networks_does_not_forbid_resuming(session, tiny_params):
    cell = CELLS[0]
    run = CellRun(session, cell, None)
    run.trainer.advance()
    run.save()
    session.params = changed(tiny_params, warmup={"min_n": 18, "iterations": 2, "lr": 0.01})
    assert CellRun(session, cell, None).trainer.done == 1


def test_another_run_of_the_cell_leaves_the_state_alone(session, tiny_params):
    """A long run that was interrupted goes on after a short one with other parameters."""
    cell = CELLS[0]
    run = CellRun(session, cell, None)
    run.trainer.advance()
    run.save()
    session.params = changed(tiny_params, iterations=5, milestones=[2])
    assert packing.train_cells(session, [cell]) == {}
    session.params = tiny_params
    assert CellRun(session, cell, None).trainer.done == 1
    assert packing.train_cells(session, [cell]) == {}
    assert not any(session.scratch.iterdir())


def test_a_cell_that_diverged_does_not_keep_the_others_from_being_saved(session, monkeypatch):
    """A signal that comes before the loss was looked at."""
    monkeypatch.setattr(packing, "fit_at_once", lambda *_: 3)
    monkeypatch.setattr("resnet_cifar.training.runs.LOOK_EVERY", 1e9)
    turn = CellRun.turn

    def last_turn(self: CellRun) -> bool:
        done = turn(self)
        if self.cell == CELLS[2]:
            self.trainer.state.losses[0] = float("inf")
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(CellRun, "turn", last_turn)
    lines: list[str] = []
    with pytest.raises(packing.Interrupted):
        packing.train_cells(session, CELLS, lines.append)
    assert "the loss is inf at iteration 1" in "\n".join(lines)
    assert sorted(path.name for path in session.scratch.iterdir()) == ["resnet-1-0", "resnet-2-0"]


def test_every_line_goes_where_it_is_asked_to(session, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    lines: list[str] = []
    packing.train_cells(session, [CELLS[0]], lines.append)
    assert [line for line in lines if line.startswith("training ")]
    assert lines[-1].startswith("resnet-1-0: 6 iterations in ")
    assert capsys.readouterr() == ("", "")


def test_progress_counts_what_this_process_did(session, monkeypatch):
    """A run that is resumed at iteration 4 of 6: two are new."""
    run = CellRun(session, CELLS[0], None)
    for _ in range(4):
        run.trainer.advance()
    run.save()
    shown: list[tuple[int, int, int]] = []
    monkeypatch.setattr(packing.Progress, "update", lambda self, done, _: shown.append((self.start, done, self.total)))
    packing.train_cells(session, [CELLS[0]])
    assert shown[0] == (4, 5, 6)


def test_trained_cells_are_left_alone_and_changed_ones_are_not(session, tiny_params):
    cell = CELLS[0]
    packing.train_cells(session, [cell])
    assert session.is_trained(cell)
    weights_file = run_files(session.runs, cell).weights
    weights_file.write_bytes(weights_file.read_bytes() + b"x")
    assert not session.is_trained(cell)
    packing.train_cells(session, [cell])
    assert session.is_trained(cell)
    session.params = changed(tiny_params, lr=0.05)
    assert not session.is_trained(cell)


def test_a_cell_that_diverges_fails_alone_and_names_the_iteration(session, monkeypatch):
    settle = Trainer.settle

    def poisoned(self: Trainer) -> float:
        if self.state.recipe.net == "plain" and self.done >= 2:
            self.state.losses[1] = float("nan")
        return settle(self)

    monkeypatch.setattr(Trainer, "settle", poisoned)
    failed = packing.train_cells(session, CELLS)
    assert list(failed) == [Cell("plain", 1, 0)]
    assert "the loss is nan at iteration 2" in failed[Cell("plain", 1, 0)]
    assert session.is_trained(CELLS[0])
    assert session.is_trained(CELLS[1])
    assert not (session.runs / "plain-1-0").exists()


def test_a_real_divergence_is_noticed(session, tiny_params):
    session.params = changed(tiny_params, lr=1e30)
    failed = packing.train_cells(session, [CELLS[0]])
    assert "at iteration" in failed[CELLS[0]]


def test_long_cells_start_first(session):
    lines: list[str] = []
    packing.train_cells(session, CELLS, lines.append)
    assert [line.split(":")[0] for line in lines] == ["resnet-2-0", "resnet-1-0", "plain-1-0"]


def test_out_of_memory_lowers_the_number_at_once_and_says_so(session, monkeypatch):
    """A device with room for two: the third waits, and all end with the same bytes."""
    packing.train_cells(session, CELLS)
    expected = [weights(session, cell) for cell in CELLS]
    session.runs = session.runs.with_name("small")
    alive: list[CellRun] = []

    class Small(CellRun):
        def __init__(self, *arguments: object) -> None:
            if len([run for run in alive if not run.trainer.finished]) == 2:
                raise torch.OutOfMemoryError
            super().__init__(*arguments)
            alive.append(self)

    monkeypatch.setattr(packing, "fit_at_once", lambda *_: 3)
    monkeypatch.setattr(packing, "CellRun", Small)
    lines: list[str] = []
    assert packing.train_cells(session, CELLS, lines.append) == {}
    assert "no memory beside 2 others; training 2 at once from here on" in "\n".join(lines)
    assert [weights(session, cell) for cell in CELLS] == expected


def test_a_cell_too_large_for_the_device_fails_alone(session, monkeypatch):
    class Large(CellRun):
        def __init__(self, session: Session, cell: Cell, stream: None) -> None:
            if cell.n == 2:
                raise torch.OutOfMemoryError
            super().__init__(session, cell, stream)

    monkeypatch.setattr(packing, "CellRun", Large)
    assert packing.train_cells(session, CELLS) == {CELLS[1]: "the device has not enough memory for it alone"}
    assert session.is_trained(CELLS[0])


def test_a_long_run_on_a_cpu_announces_itself(session, tiny_params, paper_params, monkeypatch):
    session.params = changed(tiny_params, iterations=paper_params.train.iterations)
    monkeypatch.setattr("resnet_cifar.training.engine.EagerEngine.seconds_per_step", lambda _: 0.25)
    lines: list[str] = []
    packing._announce(CellRun(session, CELLS[0], None), lines.append)
    assert "64,000 iterations take about 4 h 26 min on this CPU" in lines[0]  # 64,000 x 0.25 s = 16,000 s
    assert "preset=quick" in lines[0]


def test_a_precision_that_the_device_lacks_falls_back_to_fp32_with_a_line(tiny_params, data, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_cifar.machine._has", lambda *_: False)
    session = Session(changed(tiny_params, precision="bf16"), data, tmp_path / "runs", tmp_path / "scratch")
    lines: list[str] = []
    packing.train_cells(session, [CELLS[0]], lines.append)
    assert "training in fp32" in lines[0]
    assert json.loads(run_files(session.runs, CELLS[0]).record.read_text())["precision"] == "fp32"


def test_validation_stands_in_history(tiny_params, tmp_path):
    data = write_tiny_dataset(tmp_path / "cifar10.safetensors", validation=20)
    session = Session(tiny_params, data, tmp_path / "runs", tmp_path / "scratch")
    packing.train_cells(session, [CELLS[0]])
    rows = list(csv.DictReader(run_files(session.runs, CELLS[0]).history.open()))
    assert 0 <= float(rows[-1]["validation_error"]) <= 100


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("RESNET_CIFAR_PACK", "many", "RESNET_CIFAR_PACK is 'many'"),
        ("RESNET_CIFAR_PACK", "33", "from 1 to 32"),
        ("RESNET_CIFAR_SAVE_EVERY", "-1", "RESNET_CIFAR_SAVE_EVERY is '-1'"),
        ("RESNET_CIFAR_THREADS", "0", "RESNET_CIFAR_THREADS is '0'"),
        ("RESNET_CIFAR_DEVICE", "tpu", "RESNET_CIFAR_DEVICE is 'tpu'"),
    ],
)
def test_bad_settings_are_one_sentence(tiny_params, data, tmp_path, monkeypatch, variable, value, sentence):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=sentence):
        packing.train_cells(Session(tiny_params, data, tmp_path / "r", tmp_path / "s"), CELLS)


# The stage script, as DVC and people without DVC call it.


def stage(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "stages/train.py"), *arguments]
    environment = os.environ | {"RESNET_CIFAR_SAVE_EVERY": "0.05"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def checkout(compose, tmp_path_factory) -> Path:
    """A folder with params.yaml, data, and an uninterrupted run of two seconds."""
    folder = tmp_path_factory.mktemp("checkout")
    overrides = ["model.n=1", "train.seeds=0", "train.iterations=150", "train.batch_size=16", "train.milestones=[20]"]
    text = compose(*overrides, "train.eval_every=30", "train.precision=fp32")
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how far the process is")
def test_ctrl_c_during_the_imports_shows_no_traceback(checkout):
    process = stage(checkout)
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cells", "resnet-0-0"], "error: 'resnet-0-0' is not a cell"),
        (["--data", "nowhere.safetensors"], "error: nowhere.safetensors does not exist"),
        (["--data", "data"], "error: data is not a preprocessed data set"),
        (["--runs", "params.yaml"], "error: params.yaml: File exists."),
        (["--scratch", "params.yaml/x"], "error: params.yaml/x: Not a directory."),
    ],
)
def test_bad_arguments_are_one_line(checkout, arguments, sentence):
    process = stage(checkout, *arguments)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith(sentence)
    assert errors.count("\n") == 1
