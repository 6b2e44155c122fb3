"""Metrics against values computed by hand; the files of an evaluation and the stage's command."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError
from resnet_cifar.evaluation import evaluate_cell, expected_calibration_error, measure, predict
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import serialize

ROOT = Path(__file__).resolve().parents[1]
CELL = Cell("resnet", 1, 0)
METADATA = {"net": "resnet", "n": 1, "seed": 0}
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_dataset) -> CifarResNet:
    torch.manual_seed(0)
    made = CifarResNet(Architecture("resnet", 1))
    made.set_normalization(*tiny_dataset.normalization("pixel_mean"))
    return made.eval()


@pytest.fixture
def runs(model, tmp_path) -> Path:
    folder = tmp_path / "runs" / CELL.name
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(serialize(model.state_dict(), **METADATA))
    return tmp_path / "runs"


@pytest.fixture
def weights(runs) -> Path:
    return runs / CELL.name / "weights.safetensors"


def logits_of(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_measure_by_hand():
    """Four images of three classes: right at 0.5, wrong at 0.6 (its class has 0.3), right at 0.8, wrong at 0.8 (0.1).

    Bins are 1/15 wide, so 0.5 and 0.6 and the two 0.8 fall in three bins: gaps 0.5, -0.6 and (1 - 1.6).
    """
    logits = logits_of([0.5, 0.25, 0.25], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8])
    measured = measure(logits, torch.tensor([0, 1, 2, 0]))
    assert measured == {
        "error": 50.0,
        "loss": round(-(math.log(0.5) + math.log(0.3) + math.log(0.8) + math.log(0.1)) / 4, 6),
        "calibration_error": pytest.approx(100 * (0.5 + 0.6 + 0.6) / 4),
        "class_errors": [50.0, 100.0, 0.0],
        "confusion": [[1, 0, 1], [1, 0, 0], [0, 0, 1]],
    }


def test_class_without_images_has_no_error():
    measured = measure(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert measured["class_errors"] == [0.0, 0.0, None]


def test_calibration_error_of_known_cases():
    """Always sure: the error itself. Right as often as it says: 0. A confidence of 1 is in the last bin."""
    sure = torch.eye(2, dtype=torch.float64)[[0, 0, 0, 1]]
    assert expected_calibration_error(sure, torch.tensor([0, 0, 1, 1])) == 25.0
    calibrated = torch.tensor([[0.75, 0.25]] * 4, dtype=torch.float64)
    assert expected_calibration_error(calibrated, torch.tensor([0, 0, 0, 1])) == 0.0


def test_calibration_bins_include_their_upper_edge():
    """0.6 is 9/15: with (8/15, 9/15] it shares a bin with 0.55 but not with 0.61; gaps cancel only within a bin."""
    below = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.float64)
    above = torch.tensor([[0.6, 0.4], [0.61, 0.39]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert expected_calibration_error(below, labels) == pytest.approx(100 * abs(0.4 - 0.55) / 2)
    assert expected_calibration_error(above, labels) == pytest.approx(100 * (0.4 + 0.61) / 2)


def test_loss_survives_confident_logits():
    """Logits of 200 overflow exp in fp32; the loss of a wrong answer at that distance is 200 nats."""
    measured = measure(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    assert measured["loss"] == 200.0


def test_predict_takes_pixels_in_0_1_and_keeps_the_order(model, tiny_dataset, monkeypatch):
    monkeypatch.setattr("resnet_cifar.evaluation.BATCH", 8)
    split = tiny_dataset.test
    logits = predict(model, split, CPU)
    with torch.no_grad():
        expected = torch.cat([model(image[None].float() / 255) for image in split.images])
    assert logits.dtype == torch.float32
    assert len(split) % 8  # the last batch is smaller
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"seed": 1}, {"net": "plain"}])
def test_weights_of_another_cell_are_refused(runs, weights, model, tiny_dataset, tmp_path, change):
    """A plain network has the residual one's tensors: only the metadata tells them apart."""
    weights.write_bytes(serialize(model.state_dict(), **METADATA | change))
    with pytest.raises(InputError, match="not those of resnet-1-0"):
        evaluate_cell(CELL, tiny_dataset, runs, tmp_path / "results", CPU)
    assert not (tmp_path / "results").exists()


def test_logits_that_are_not_finite_are_refused(runs, weights, model, tiny_dataset, tmp_path):
    model.fc.bias.data[0] = torch.nan
    weights.write_bytes(serialize(model.state_dict(), **METADATA))
    with pytest.raises(InputError, match="not finite"):
        evaluate_cell(CELL, tiny_dataset, runs, tmp_path / "results", CPU)
    assert not (tmp_path / "results").exists()


def test_evaluate_cell_writes_its_two_files(runs, weights, tiny_dataset, tmp_path):
    folder = tmp_path / "results" / CELL.name
    evaluate_cell(CELL, tiny_dataset, runs, tmp_path / "results", CPU)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.safetensors"]
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    metrics = json.loads(before[0])
    assert list(metrics) == sorted(metrics)
    assert (metrics["cell"], metrics["validation"]) == ("resnet-1-0", None)
    assert (metrics["net"], metrics["n"], metrics["seed"]) == ("resnet", 1, 0)
    assert metrics["parameters"] == 75_290  # 97,216 less than each further n: 269,722 - 2 * 97,216
    assert metrics["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()

    predictions = load_file(folder / "predictions.safetensors")
    assert set(predictions) == {"test_logits"}
    logits = predictions["test_logits"]
    assert (logits.shape, logits.dtype) == ((20, 10), torch.float32)
    wrong = (logits.argmax(1) != tiny_dataset.test.labels).sum().item()
    assert metrics["test"]["error"] == 100 * wrong / 20
    confusion = torch.tensor(metrics["test"]["confusion"])
    assert (confusion.shape, confusion.sum(), confusion.trace()) == ((10, 10), 20, 20 - wrong)
    assert torch.equal(confusion.sum(1), torch.bincount(tiny_dataset.test.labels, minlength=10))

    evaluate_cell(CELL, tiny_dataset, runs, tmp_path / "results", CPU)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == before


def test_validation_stands_beside_the_test(runs, tiny_dataset, tmp_path):
    data = dataclasses.replace(tiny_dataset, validation=tiny_dataset.train)
    metrics = evaluate_cell(CELL, data, runs, tmp_path, CPU)
    assert metrics["validation"].keys() == metrics["test"].keys()
    assert sum(map(sum, metrics["validation"]["confusion"])) == 60
    assert load_file(tmp_path / CELL.name / "predictions.safetensors")["validation_logits"].shape == (60, 10)


@pytest.mark.usefixtures("runs")
def test_the_stage_reports_and_fails_in_one_line(tiny_dataset, tmp_path):
    """From another folder: the script finds its own checkout's code."""
    splits = {"train": tiny_dataset.train, "test": tiny_dataset.test}
    tensors = {f"{name}_images": split.images for name, split in splits.items()}
    tensors |= {f"{name}_labels": split.labels for name, split in splits.items()}
    tensors |= {name: getattr(tiny_dataset, name) for name in ("pixel_mean", "channel_mean", "channel_std")}
    save_file(tensors, tmp_path / "data.safetensors")
    command = [sys.executable, str(ROOT / "stages/evaluate.py"), "--data", "data.safetensors", "--cells"]
    done = subprocess.run([*command, "resnet-1-0", "resnet-1-1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    metrics = json.loads((tmp_path / "results" / "resnet-1-0" / "metrics.json").read_text())
    assert done.stdout == f"resnet-1-0: ResNet-8, test error {metrics['test']['error']:.2f}%\n"
    assert done.stderr.startswith("error: runs/resnet-1-1/weights.safetensors does not exist")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results" / "resnet-1-1").exists()
