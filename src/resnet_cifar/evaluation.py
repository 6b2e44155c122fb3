"""What a trained network is worth: error, loss, calibration and confusion, from its checkpoint alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.checkpoint import load_model, write_whole
from resnet_cifar.dataset import Dataset, Split
from resnet_cifar.errors import InputError
from resnet_cifar.models import CifarResNet

BATCH = 50  # the fastest on two CPU cores; one size for all, because the size can change the last bits
BINS = 15


@torch.inference_mode()
def predict(model: CifarResNet, split: Split, device: torch.device) -> Tensor:
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
    Tensor
        Logits, float32 of shape (N, 10), on the CPU.
    """
    model.to(device, memory_format=torch.channels_last)
    logits = []
    for images in split.images.split(BATCH):
        scaled = images.to(device).float().div_(255)
        logits.append(model(scaled.contiguous(memory_format=torch.channels_last)))
    return torch.cat(logits).cpu()


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """How far confidence is from accuracy, in percent: the mean over 15 equal-width bins, weighted by their images.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation (3); bin m is ((m-1)/15, m/15].

    Parameters
    ----------
    probabilities : Tensor
        Shape (N, C), float64.
    labels : Tensor
        The true classes, int64 of shape (N,).
    """
    confidence, predicted = probabilities.max(1)
    index = (confidence * BINS).ceil().long() - 1
    gap = (predicted == labels).double() - confidence
    return 100 * (torch.bincount(index, gap).abs().sum() / len(labels)).item()


def measure(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """All metrics of one split, rounded to what is reproducible.

    Parameters
    ----------
    logits : Tensor
        Shape (N, C), on the CPU.
    labels : Tensor
        The true classes, int64 of shape (N,).

    Returns
    -------
    dict
        ``error`` and ``calibration_error`` in percent; ``loss``, the mean cross-entropy in nats; ``class_errors`` in
        percent, None for a class without images; ``confusion``, images by true class (rows) and predicted class.
    """
    classes = logits.shape[1]
    log_probabilities = F.log_softmax(logits.double(), 1)
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).tolist()
    return {
        "error": round(100 * (predicted != labels).double().mean().item(), 4),
        "loss": round(F.nll_loss(log_probabilities, labels).item(), 6),
        "calibration_error": round(expected_calibration_error(log_probabilities.exp(), labels), 4),
        "class_errors": [
            round(100 * (1 - row[label] / sum(row)), 4) if sum(row) else None for label, row in enumerate(confusion)
        ],
        "confusion": confusion,
    }


def evaluate_cell(cell: Cell, data: Dataset, runs: Path, results: Path, device: torch.device) -> dict[str, Any]:
    """Evaluate a cell's last iterate; write ``metrics.json`` and ``predictions.safetensors`` under ``results/<cell>``.

    Parameters
    ----------
    cell : Cell
        Which one.
    data : Dataset
        Its test split, and its validation split if there is one.
    runs, results : Path
        The folders of the runs and of the results.
    device : torch.device
        Where to compute.

    Returns
    -------
    dict
        What ``metrics.json`` holds.

    Raises
    ------
    InputError
        If the checkpoint cannot be loaded, is another cell's or gives logits that are not finite.
    """
    path = run_files(runs, cell).weights
    model, metadata = load_model(path)
    found = Cell(metadata["net"], metadata["n"], metadata["seed"])
    if found != cell:
        raise InputError(f"{path} holds the weights of {found}, not those of {cell}.")
    splits = {"test": data.test} | ({"validation": data.validation} if data.validation else {})
    logits = {name: predict(model, split, device) for name, split in splits.items()}
    if not all(each.isfinite().all() for each in logits.values()):
        raise InputError(f"{path} gives logits that are not finite: train {cell} again.")
    measured = {name: measure(logits[name], split.labels) for name, split in splits.items()}
    metrics = {
        "cell": cell.name,
        "net": cell.net,
        "n": cell.n,
        "seed": cell.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "test": measured["test"],
        "validation": measured.get("validation"),
    }
    folder = results / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "predictions.safetensors", save({f"{name}_logits": each for name, each in logits.items()}))
    write_whole(folder / "metrics.json", (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    return metrics
