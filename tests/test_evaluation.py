"""Metrics against values computed by hand, and logits against the model called image by image."""

import json
import math

import numpy as np
import pytest
import torch

from resnet_cifar.evaluation import BrokenSealError, Measures, Result, expected_calibration_error, measure, predict
from resnet_cifar.numerics import logits as numerics
from resnet_cifar.numerics.initialization import initialize
from resnet_cifar.numerics.models import Architecture, CifarResNet


@pytest.fixture
def model(tiny_dataset) -> CifarResNet:
    made = CifarResNet(Architecture("resnet", 1))
    initialize(made, seed=0)
    made.set_normalization(*tiny_dataset.normalization("pixel_mean"))
    return made.eval()


def logits_of(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax is the given probabilities, and zero for the classes after them."""
    found = np.full((len(rows), 10), -1e4, np.float32)
    for row, probabilities in zip(found, rows, strict=True):
        row[: len(probabilities)] = np.log(probabilities)
    return found


def test_measure_by_hand():
    """Four images of three classes: right at 0.5, wrong at 0.65 (its class has 0.3), right at 0.8, wrong at 0.8 (0.1).

    Bins are 1/15 wide, so 0.5 and 0.65 and the two 0.8 fall in three bins: gaps 0.5, -0.65 and (1 - 1.6).
    """
    logits = logits_of([0.5, 0.25, 0.25], [0.65, 0.3, 0.05], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8])
    measured = measure(logits, np.array([0, 1, 2, 0]))
    assert measured.error == 50.0
    # Logits are fp32, so the loss is right to seven digits.
    expected = -(math.log(0.5) + math.log(0.3) + math.log(0.8) + math.log(0.1)) / 4
    assert measured.loss == pytest.approx(expected, rel=1e-6)
    assert measured.calibration_error == pytest.approx(100 * (0.5 + 0.65 + 0.6) / 4, abs=1e-4)
    assert measured.class_errors == [50.0, 100.0, 0.0, *[None] * 7]  # no image, no error
    assert [row[:3] for row in measured.confusion[:3]] == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert sum(map(sum, measured.confusion)) == 4


def test_numbers_are_rounded_to_what_is_worth_reading():
    logits = logits_of(*[[0.7, 0.3]] * 3)
    measured = measure(logits, np.array([0, 0, 1]))
    assert measured.error == 33.3333
    assert measured.class_errors[:2] == [0.0, 100.0]
    assert measured.loss == round(measured.loss, 6)


def test_calibration_error_of_known_cases():
    """Always sure: the error itself. Right as often as it says: 0. A confidence of 1 is in the last bin."""
    sure = np.eye(2)[[0, 0, 0, 1]]
    assert expected_calibration_error(sure, np.array([0, 0, 1, 1])) == 25.0
    calibrated = np.array([[0.75, 0.25]] * 4)
    assert expected_calibration_error(calibrated, np.array([0, 0, 0, 1])) == 0.0


def test_calibration_bins_include_their_upper_edge():
    """0.6 is 9/15: with (8/15, 9/15] it shares a bin with 0.55 but not with 0.61; gaps cancel only within a bin."""
    below, above = np.array([[0.6, 0.4], [0.55, 0.45]]), np.array([[0.6, 0.4], [0.61, 0.39]])
    labels = np.array([0, 1])
    assert expected_calibration_error(below, labels) == pytest.approx(100 * abs(0.4 - 0.55) / 2)
    assert expected_calibration_error(above, labels) == pytest.approx(100 * (0.4 + 0.61) / 2)


def test_calibration_of_ten_thousand_images_is_that_of_the_definition():
    """Equation (3) of Guo et al. 2017, bin by bin."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(10, 0.2), 10_000)
    labels = generator.integers(0, 10, 10_000)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for number in range(1, 16):
        chosen = (confidence > (number - 1) / 15) & (confidence <= number / 15)
        if chosen.any():
            expected += chosen.sum() / 10_000 * abs(right[chosen].mean() - confidence[chosen].mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(100 * expected, rel=1e-9)


def test_predict_takes_pixels_in_0_1_and_keeps_the_order(model, tiny_dataset, monkeypatch):
    monkeypatch.setitem(numerics.BATCH, "cpu", 8)
    split = tiny_dataset.test
    with torch.no_grad():
        expected = torch.cat([model(image[None].float() / 255) for image in split.images])
    logits = predict(model, split, torch.device("cpu"))
    assert logits.dtype == np.float32
    assert len(split) % 8  # the last batch is smaller
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_result_is_sorted_json_without_what_is_not_there():
    measured = measure(np.eye(10, dtype=np.float32), np.arange(10))
    values = {
        **{"cell": "resnet-1-0", "parameters": 75_290, "test": measured.model_dump()},
        **{f"{name}_sha256": "a" * 64 for name in ("weights", "data", "predictions")},
        "arithmetic": {"engine": "native", "precision": "fp32", "bits": 1},
        "responses": [0.5] * 7,
    }
    result = Result.model_validate(values)
    content = result.content()
    assert Result.parse(content) == result
    written = json.loads(content)
    assert list(written) == sorted(written)
    assert "validation" not in written
    assert written["arithmetic"] == {"bits": 1, "engine": "native", "precision": "fp32"}
    both = result.model_copy(update={"validation": measured})
    assert Result.parse(both.content()).validation == measured
    with pytest.raises(BrokenSealError):
        Result.parse(content.replace(b'"parameters": 75290', b'"parameters": 75291'))
    for wrong in (b"", b"[]", b"{}", content.replace(b'"parameters"', b'"parameter"')):
        with pytest.raises(ValueError, match=r"."):
            Result.parse(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [("error", "50"), ("class_errors", [0.0] * 9), ("confusion", [[0] * 10] * 9), ("confusion", [[0.5] * 10] * 10)],
)
def test_measures_are_read_strictly(field, value):
    good = measure(np.eye(10, dtype=np.float32), np.arange(10)).model_dump()
    Measures.model_validate_json(json.dumps(good))
    with pytest.raises(ValueError, match=field):
        Measures.model_validate_json(json.dumps(good | {field: value}))
