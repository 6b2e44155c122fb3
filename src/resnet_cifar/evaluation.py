"""What a trained network is worth: error, loss, calibration and confusion, from its checkpoint alone."""

import hashlib
import json
import math
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from resnet_cifar.numerics import metrics
from resnet_cifar.numerics.data import Split, pixel_values
from resnet_cifar.numerics.logits import compute_logits
from resnet_cifar.numerics.models import CifarResNet
from resnet_cifar.training.record import Arithmetic, Digest

CLASSES = 10
BINS = 15
SEAL = "sha256"
ClassErrors = Annotated[list[float | None], Field(min_length=CLASSES, max_length=CLASSES)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Row = Annotated[list[int], Field(min_length=CLASSES, max_length=CLASSES)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Measures(_Part):
    """What one split says of a network.

    Parameters
    ----------
    error, calibration_error : float
        In percent.
    loss : float
        The mean cross-entropy in nats.
    class_errors : list of float or None
        In percent; None for a class without images.
    confusion : list of list of int
        Images by true class (rows) and predicted class.
    """

    error: float
    loss: float
    calibration_error: float
    class_errors: ClassErrors
    confusion: Annotated[list[Row], Field(min_length=CLASSES, max_length=CLASSES)]


class BrokenSealError(ValueError):
    """The values of a result are not those of its digest."""


class Result(_Part):
    """metrics.json: one cell's evaluation, with digests of what it read and of the logits beside it.

    Parameters
    ----------
    cell : str
    parameters : int
        Weights of the network.
    weights_sha256, data_sha256, predictions_sha256 : str
        Digests of the checkpoint's tensors, of the data set's file and of the logits in predictions.safetensors.
    arithmetic : Arithmetic
        How the logits were computed.
    test, validation : Measures
        ``validation`` is None if no image is held out.
    responses : list of float
        Of each layer, as :func:`resnet_cifar.responses.layer_responses` gives them for the test images.
    """

    cell: str
    parameters: int
    weights_sha256: Digest
    data_sha256: Digest
    predictions_sha256: Digest
    arithmetic: Arithmetic
    test: Measures
    responses: Annotated[list[Deviation], Field(min_length=7)]
    validation: Measures | None = None

    def content(self) -> bytes:
        """What metrics.json holds: the values, and a digest of them."""
        values = self.model_dump(exclude_defaults=True)
        return (json.dumps(values | {SEAL: _seal(values)}, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The result that metrics.json holds.

        Raises
        ------
        BrokenSealError
            If the values are not those of the digest.
        ValueError
            If it is no result.
        """
        values = json.loads(content)
        if not isinstance(values, dict) or SEAL not in values:
            raise ValueError("there is no digest")
        sealed = values.pop(SEAL)
        result = cls.model_validate(values)
        if sealed != _seal(values):
            raise BrokenSealError
        return result


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@torch.inference_mode()
def predict(model: CifarResNet, split: Split, device: torch.device) -> np.ndarray:
    """The logits of every image, computed in fp32 whatever the training's precision was.

    Parameters
    ----------
    model : CifarResNet
        In eval mode; it is moved to ``device``.
    split : Split
        N images.
    device : torch.device
        Where to compute.

    Returns
    -------
    ndarray of float32, shape (N, classes)
    """
    model.to(device, memory_format=torch.channels_last)
    logits = torch.zeros(len(split), model.num_classes, device=device)
    compute_logits(model, split.to(device), pixel_values().to(device), torch.float32, logits)
    return logits.cpu().numpy()


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence is from accuracy, in percent: the mean over 15 equal-width bins, weighted by their images.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation (3); bin m is ((m-1)/15, m/15].

    Parameters
    ----------
    probabilities : ndarray of float64, shape (N, C)
    labels : ndarray of int, shape (N,)
        The true classes.
    """
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    index = np.ceil(confidence * BINS).astype(int) - 1
    gap = (predicted == labels).astype(np.float64) - confidence
    return 100 * math.fsum(np.abs(np.bincount(index, gap)).tolist()) / len(labels)


def measure(logits: np.ndarray, labels: np.ndarray) -> Measures:
    """All metrics of one split, rounded to what is worth reading.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, C)
        Finite.
    labels : ndarray of int, shape (N,)
        The true classes.
    """
    classes = logits.shape[1]
    counts = np.bincount(labels * classes + logits.argmax(1), minlength=classes**2)
    confusion = counts.reshape(classes, classes).tolist()
    return Measures(
        error=round(metrics.error(logits, labels), 4),
        loss=round(metrics.cross_entropy(logits, labels), 6),
        calibration_error=round(expected_calibration_error(metrics.probabilities(logits), labels), 4),
        class_errors=[
            round(100 * (sum(row) - row[label]) / sum(row), 4) if sum(row) else None
            for label, row in enumerate(confusion)
        ],
        confusion=confusion,
    )
