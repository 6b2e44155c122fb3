"""results/<cell>: a cell's evaluation, written from its checkpoint and read back by the report."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from resnet_cifar import checkpoint, evaluation
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.evaluation import BrokenSealError, Result
from resnet_cifar.files import check_readable, write_whole
from resnet_cifar.machine import usable
from resnet_cifar.native import engine as native
from resnet_cifar.native.library import Library, Unavailable
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.models import CifarResNet
from resnet_cifar.numerics.weights import digest
from resnet_cifar.progress import Say
from resnet_cifar.responses import layer_responses
from resnet_cifar.settings import Settings
from resnet_cifar.training import record
from resnet_cifar.training.engines import Computer, load_native, native_arithmetic
from resnet_cifar.training.record import RecordError


class ResultError(ValueError):
    """Why a result cannot be believed, in a few words that follow the cell's name."""


def read(results: Path, cell: Cell) -> Result:
    """Read a cell's evaluation and check that its predictions are those that it speaks of.

    Raises
    ------
    ResultError
        If a file is missing, damaged or altered.
    """
    metrics, predictions = _files(results, cell)
    try:
        result = Result.parse(metrics.read_bytes())
        check_readable(predictions)
        found = digest(load_file(predictions))
    except FileNotFoundError as error:
        raise ResultError(f"{error.filename or predictions} is missing") from None
    except BrokenSealError:
        raise ResultError(f"{metrics} was altered: its values are not those of its digest") from None
    except ValueError:
        raise ResultError(f"{metrics} is not the result of an evaluation") from None
    except OSError as error:
        raise ResultError(f"{error.filename or predictions} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, TypeError) as error:  # TypeError: of a type that numpy has not
        raise ResultError(f"{predictions} cannot be read ({error})") from None
    if found != result.predictions_sha256:
        raise ResultError(f"{predictions} is not what {metrics.name} speaks of: one of them was altered")
    return result


class Evaluator:
    """Evaluates cells, each by the engine that trained it where that decides bits.

    Parameters
    ----------
    data : Dataset
        Its test split, and its validation split if there is one.
    data_digest : str
        SHA-256 of its file.
    settings : Settings
        What the environment says.
    say : callable
        Gets the lines that a user should see.
    """

    def __init__(self, data: Dataset, data_digest: str, settings: Settings, say: Say) -> None:
        self.data, self.data_digest, self.settings, self.say = data, data_digest, settings, say
        self.computer = Computer(settings, say)

    def evaluate(self, cell: Cell, runs: Path, results: Path) -> Result:
        """Evaluate a cell's last iterate; write ``metrics.json`` and ``predictions.safetensors``.

        Raises
        ------
        InputError
            If the checkpoint cannot be loaded, is another cell's, not what its record says or gives logits that are not
            finite, or if the native engine trained it and cannot be used here.
        """
        path = run_files(runs, cell).weights
        model, found = checkpoint.load_model(path)
        if found != cell:
            raise InputError(f"{path} holds the weights of {found}, not those of {cell}.")
        weights = digest(model.state_dict())
        library = self._library(cell, model, weights, runs)
        splits = self.data.held_out
        if library:
            arithmetic = native_arithmetic()
            logits = {
                name: native.compute_logits(library, self.computer.threads, model, split)
                for name, split in splits.items()
            }
        else:
            arithmetic = self.computer.torch_arithmetic("eager", "fp32")
            device = self.computer.device
            with usable(device):
                logits = {name: evaluation.predict(model, split, device) for name, split in splits.items()}
        if not all(np.isfinite(each).all() for each in logits.values()):
            raise InputError(f"{path} gives logits that are not finite: train {cell} again.")
        measured = {name: evaluation.measure(logits[name], split.labels.numpy()) for name, split in splits.items()}
        predictions = {f"{name}_logits": torch.from_numpy(each) for name, each in logits.items()}
        result = Result(
            cell=cell.name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            weights_sha256=weights,
            data_sha256=self.data_digest,
            predictions_sha256=digest(predictions),
            arithmetic=arithmetic,
            responses=layer_responses(model, self.data.test),
            **measured,
        )
        metrics_file, predictions_file = _files(results, cell)
        metrics_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(predictions_file, save(predictions))
        write_whole(metrics_file, result.content())
        return result

    def _library(self, cell: Cell, model: CifarResNet, weights: str, runs: Path) -> Library | None:
        """The native engine if it trained the cell; where no run.json says who did, if it can be used."""
        files = run_files(runs, cell)
        trained_by = None
        try:
            if files.record.exists():  # its history is no dependency of this stage
                found = record.read_alone(files)
                record.check_weights(files, found, weights)
                trained_by = found.arithmetic.engine
        except RecordError as error:
            raise InputError(f"{cell} is not what its {files.record.name} says ({error}): train it again.") from None
        if trained_by == "native":
            try:
                if self.computer.fallback:
                    raise Unavailable(self.computer.fallback)
                return self.computer.native or load_native(self.settings, self.say)
            except Unavailable as error:
                raise InputError(
                    f"{cell} was trained by the native engine, which must evaluate it and cannot be used here: {error}."
                ) from None
        supported = native.native_can(model.architecture.net, model.architecture.shortcut)
        return self.computer.native if trained_by is None and supported else None


def _files(results: Path, cell: Cell) -> tuple[Path, Path]:
    folder = results / cell.name
    return folder / "metrics.json", folder / "predictions.safetensors"
