"""results/<cell>: written from a checkpoint, by the engine that trained it, and read back strictly."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, changed, make_session, write_tiny_dataset
from safetensors.torch import load_file, save_file

from resnet_cifar import dataset, results, settings
from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.commands import evaluate
from resnet_cifar.errors import InputError
from resnet_cifar.files import sha256
from resnet_cifar.native.library import Unavailable
from resnet_cifar.numerics.weights import digest, serialize
from resnet_cifar.results import Evaluator, ResultError
from resnet_cifar.training.engines import Computer, native_arithmetic
from resnet_cifar.training.train import train_cells

CELL = Cell("resnet", 1, 0)


def silent(_: str) -> None:
    """Takes the lines of progress."""


def evaluator(data: Path, **changes: object) -> Evaluator:
    return Evaluator(dataset.load(data), sha256(data), dataclasses.replace(settings.read(), **changes), silent)


@pytest.fixture
def trained(session) -> RunFiles:
    assert train_cells(session, [CELL], silent) == {}
    return run_files(session.runs, CELL)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "results"


# ---- Written


def test_the_two_files_of_a_cell(session, trained, tiny_data, tiny_dataset, folder):
    result = evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    files = sorted((folder / CELL.name).iterdir())
    assert [path.name for path in files] == ["metrics.json", "predictions.safetensors"]
    assert files[0].read_bytes() == result.content()
    assert (result.cell, result.validation) == ("resnet-1-0", None)
    assert result.parameters == 75_290  # 97,216 less than each further n: 269,722 - 2 * 97,216
    assert result.weights_sha256 == digest(load_file(trained.weights))
    assert result.data_sha256 == sha256(tiny_data)
    assert result.arithmetic == session.arithmetic(CELL)

    predictions = load_file(files[1])
    assert set(predictions) == {"test_logits"}
    logits = predictions["test_logits"]
    assert (logits.shape, logits.dtype) == ((20, 10), torch.float32)
    wrong = (logits.argmax(1) != tiny_dataset.test.labels).sum().item()
    assert result.test.error == 100 * wrong / 20
    confusion = torch.tensor(result.test.confusion)
    assert (confusion.shape, confusion.sum(), confusion.trace()) == ((10, 10), 20, 20 - wrong)
    assert torch.equal(confusion.sum(1), torch.bincount(tiny_dataset.test.labels, minlength=10))

    before = [path.read_bytes() for path in files]
    evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(("net", "shortcut"), [("resnet", "A"), ("resnet", "B"), ("plain", "A")])
def test_the_curves_last_point_is_the_evaluation(tiny_study, tmp_path, folder, net, shortcut):
    """In fp32 the same numbers, digit by digit: error and loss, test and validation."""
    data = write_tiny_dataset(tmp_path / "data.safetensors", validation=30)
    values = tiny_study.model_dump()
    values["model"] |= {"shortcut": shortcut}
    session = make_session(type(tiny_study).model_validate(values), data, tmp_path)
    cell = Cell(net, 2, 0)
    assert train_cells(session, [cell], silent) == {}
    result = evaluator(data).evaluate(cell, session.runs, folder)
    last = list(csv.DictReader(run_files(session.runs, cell).history.open()))[-1]
    for name, measured in (("test", result.test), ("validation", result.validation)):
        assert float(last[f"{name}_error"]) == pytest.approx(measured.error, abs=5e-5)  # rounded to 6 and to 4 digits
        assert float(last[f"{name}_loss"]) == measured.loss
    assert load_file(folder / cell.name / "predictions.safetensors")["validation_logits"].shape == (30, 10)


def test_a_run_in_half_precision_is_evaluated_in_fp32(tiny_study, tiny_data, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("resnet_cifar.machine.has_precision", lambda *_: True)
    session = make_session(changed(tiny_study, precision="bf16"), tiny_data, tmp_path)
    assert train_cells(session, [CELL], silent) == {}
    assert session.arithmetic(CELL).precision == "bf16"
    assert evaluator(tiny_data).evaluate(CELL, session.runs, folder).arithmetic.precision == "fp32"


# ---- Refused


@pytest.mark.usefixtures("trained")
def test_a_device_that_fails_is_one_sentence(session, tiny_data, folder, monkeypatch):
    def failing(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available\nThe rest of a long message")

    monkeypatch.setattr("resnet_cifar.results.evaluation.predict", failing)
    with pytest.raises(InputError, match=r"^cpu has not enough memory or fails \(CUDA error: no kernel image is avail"):
        evaluator(tiny_data).evaluate(CELL, session.runs, folder)


@pytest.mark.usefixtures("trained")
def test_interrupted_it_has_written_neither_file(session, tiny_data, folder, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resnet_cifar.results.layer_responses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    assert not folder.exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"net": "plain"}])
def test_weights_of_another_cell_are_refused(session, trained, tiny_data, folder, change):
    """A plain network has the residual one's tensors: only the metadata tells them apart."""
    named = {"net": "resnet", "n": 1, "seed": 0} | change
    trained.weights.write_bytes(serialize(load_file(trained.weights), **named))
    with pytest.raises(InputError, match="not those of resnet-1-0"):
        evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    assert not folder.exists()


def test_logits_that_are_not_finite_are_refused(session, trained, tiny_data, folder):
    state = load_file(trained.weights)
    state["fc.bias"][0] = torch.nan
    trained.weights.write_bytes(serialize(state, "resnet", 1, 0))
    trained.record.unlink()
    with pytest.raises(InputError, match="not finite"):
        evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    assert not folder.exists()


def test_a_run_that_is_not_what_its_record_says_is_refused(session, trained, tiny_data, folder):
    """Who trained it, and so who must evaluate it, would otherwise be a guess."""
    state = load_file(trained.weights)
    state["fc.bias"][0] += 1
    trained.weights.write_bytes(serialize(state, "resnet", 1, 0))
    with pytest.raises(
        InputError, match=r"resnet-1-0 is not what its run.json says \(its weights.safetensors has the d"
    ):
        evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    assert not folder.exists()


def test_no_history_is_needed(session, trained, tiny_data, folder):
    """It is no dependency of the stage, so that DVC need not have brought it."""
    trained.history.unlink()
    assert evaluator(tiny_data).evaluate(CELL, session.runs, folder).cell == CELL.name


# ---- By the engine that trained it


@pytest.fixture
def native(session, monkeypatch) -> list[int]:
    """A run whose record says that the native engine made it; calls of the engine's evaluation are noted."""
    with monkeypatch.context() as patched:
        patched.setattr(Computer, "arithmetic", lambda *_: native_arithmetic())
        train_cells(session, [CELL], silent)
    calls: list[int] = []

    def compute_logits(_library: object, _threads: int, _model: object, split: object) -> np.ndarray:
        calls.append(len(split))
        return np.zeros((len(split), 10), np.float32)

    monkeypatch.setattr(results.native, "compute_logits", compute_logits)
    return calls


def loads(monkeypatch, library: object) -> None:
    def load(*_: object) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr("resnet_cifar.training.engines.library.load", load)


def test_the_native_engine_evaluates_what_it_trained(session, native, tiny_data, folder, monkeypatch):
    loads(monkeypatch, SimpleNamespace(set="avx2"))
    result = evaluator(tiny_data, simd=None).evaluate(CELL, session.runs, folder)
    assert native == [20]
    assert result.arithmetic == native_arithmetic()


@pytest.mark.parametrize(
    ("library", "simd", "reason"),
    [(Unavailable("no compiler"), None, "no compiler"), (None, "none", "RESNET_CIFAR_SIMD is 'none'")],
)
def test_nothing_else_evaluates_it(session, native, tiny_data, folder, monkeypatch, library, simd, reason):
    loads(monkeypatch, library)
    with pytest.raises(InputError, match=f"trained by the native engine, .*{reason}"):
        evaluator(tiny_data, simd=simd).evaluate(CELL, session.runs, folder)
    assert native == []
    assert not folder.exists()


def test_torch_evaluates_what_it_trained(session, native, tiny_data, folder, monkeypatch):
    """Though the native engine could, and trained it before."""
    run_files(session.runs, CELL).record.unlink()
    train_cells(session, [CELL], silent)
    loads(monkeypatch, SimpleNamespace(set="avx2"))
    result = evaluator(tiny_data, simd=None).evaluate(CELL, session.runs, folder)
    assert result.arithmetic.engine == "eager"
    assert native == []


@pytest.mark.usefixtures("native")
def test_weights_without_a_record_are_evaluated_by_what_there_is(session, tiny_data, folder, monkeypatch):
    files = run_files(session.runs, CELL)
    files.record.unlink()
    assert evaluator(tiny_data).evaluate(CELL, session.runs, folder).arithmetic.engine == "eager"
    loads(monkeypatch, SimpleNamespace(set="avx2"))
    assert evaluator(tiny_data, simd=None).evaluate(CELL, session.runs, folder).arithmetic.engine == "native"


# ---- Read back


@pytest.fixture
def evaluated(session, trained, tiny_data, folder) -> Path:
    assert trained.folder.parent == session.runs
    evaluator(tiny_data).evaluate(CELL, session.runs, folder)
    return folder / CELL.name


def test_what_was_written_is_read(evaluated, folder):
    assert results.read(folder, CELL).content() == (evaluated / "metrics.json").read_bytes()


@pytest.mark.parametrize("name", ["metrics.json", "predictions.safetensors"])
def test_a_missing_file_is_named(evaluated, folder, name):
    (evaluated / name).unlink()
    with pytest.raises(ResultError, match=rf"{name} is missing"):
        results.read(folder, CELL)


def test_altered_and_damaged_files_are_named(evaluated, folder):
    metrics, predictions = evaluated / "metrics.json", evaluated / "predictions.safetensors"
    before = metrics.read_text()
    for wrong in ("{", before.replace('"cell"', '"cells"'), before.replace('"error"', '"mistake"')):
        metrics.write_text(wrong)
        with pytest.raises(ResultError, match=r"metrics.json is not the result of an evaluation"):
            results.read(folder, CELL)
    metrics.write_text(before)
    logits = load_file(predictions)["test_logits"]
    logits[3, 4] += 1
    save_file({"test_logits": logits}, predictions)
    with pytest.raises(ResultError, match=r"predictions.safetensors is not what metrics.json speaks of"):
        results.read(folder, CELL)
    predictions.write_bytes(predictions.read_bytes()[:-1])
    with pytest.raises(ResultError, match=r"predictions.safetensors cannot be read"):
        results.read(folder, CELL)
    predictions.unlink()
    predictions.symlink_to(predictions)
    with pytest.raises(ResultError, match=r"predictions.safetensors cannot be read"):
        results.read(folder, CELL)
    metrics.unlink()
    metrics.symlink_to(metrics)
    with pytest.raises(ResultError, match=r"^[^(]*metrics.json cannot be read \(Too many levels"):
        results.read(folder, CELL)


# ---- The command


def test_a_link_that_dvc_would_refuse_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "repository/.git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    (tmp_path / "disk").mkdir()
    Path("results").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--data", "nowhere", "--cells", "resnet-1-0"])
    with pytest.raises(InputError, match=r"/results is a symbolic link .*`dvc cache dir"):
        evaluate._main()


def test_the_stage_reports_and_fails_in_one_line(trained, tiny_data, tmp_path):
    """From another folder: the script finds its own checkout's code."""
    assert trained.folder == tmp_path / "runs" / CELL.name
    command = [sys.executable, str(ROOT / "stages/evaluate.py"), "--data", str(tiny_data), "--cells"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "resnet-1-0", "resnet-1-1"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    metrics = json.loads((tmp_path / "results" / "resnet-1-0" / "metrics.json").read_text())
    assert done.stdout == f"resnet-1-0: ResNet-8, test error {metrics['test']['error']:.2f}%\n"
    assert done.stderr.startswith("error: runs/resnet-1-1/weights.safetensors does not exist")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results" / "resnet-1-1").exists()
