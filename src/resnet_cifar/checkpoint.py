"""Trained networks read from their files, strictly. What the files hold is written by :mod:`numerics.weights`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError
from resnet_cifar.files import check_readable
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import KEY

TENSORS_PER_BLOCK = 12  # two convolutions, and scale, shift, mean, variance and counter of two batch normalisations


def cell_of(path: Path) -> Cell:
    """The cell that a checkpoint names.

    Raises
    ------
    InputError
        If the file is missing, unreadable or without the metadata of a checkpoint.
    """
    with _opened(path) as (cell, _):
        return cell


def read(path: Path) -> tuple[Cell, dict[str, Tensor]]:
    """The cell that a checkpoint names, and the tensors in it.

    Returns
    -------
    Cell
        From the file's metadata.
    dict of Tensor
        By name, whatever they are; copies, since what is mapped from a file changes with it.

    Raises
    ------
    InputError
        If the file is missing, unreadable or without the metadata of a checkpoint.
    """
    with _opened(path) as (cell, file):
        return cell, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Cell, Any]]:
    """A checkpoint's cell, and the file to read tensors from."""
    try:
        check_readable(path)
        with safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})[KEY])
            if set(fields) != {"net", "n", "seed"}:
                raise ValueError("its metadata does not consist of net, n and seed")
            cell = Cell.parse(f"{fields['net']}-{fields['n']}-{fields['seed']}")
            yield cell, file
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: train it, or fetch what dvc.lock names with `dvc pull train`."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a checkpoint of this project ({error}).") from None


def load_model(path: Path) -> tuple[CifarResNet, Cell]:
    """Build the network that a checkpoint names and load its weights strictly.

    A plain network has the tensors of the residual one of its depth: which of the two it is, the metadata says. Option
    B of section 3.3 has tensors of its own.

    Returns
    -------
    CifarResNet
        In eval mode, on the CPU. Images in [0, 1] go in, logits come out.
    Cell
        Which network it is.

    Raises
    ------
    InputError
        If the file is missing, unreadable or not a checkpoint, or if a tensor is missing, additional or of another
        shape or type than the network's. The values are not looked at.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from resnet_cifar.numerics.weights import serialize
    >>> trained = CifarResNet(Architecture("resnet", n=1))
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "weights.safetensors"
    ...     _ = path.write_bytes(serialize(trained.state_dict(), net="resnet", n=1, seed=0))
    ...     model, cell = load_model(path)
    >>> print(cell, cell.network, model(torch.rand(2, 3, 32, 32)).shape)
    resnet-1-0 ResNet-8 torch.Size([2, 10])
    """
    cell, tensors = read(path)
    if 3 * cell.n * TENSORS_PER_BLOCK > len(tensors):  # before a network of that n is built
        raise InputError(f"{path} does not hold the network that it names: it has too few tensors for its n.")
    shortcut = "B" if any(".downsample." in name for name in tensors) else "A"
    with torch.device("meta"):  # shapes alone, and no random number drawn
        model = CifarResNet(Architecture(cell.net, cell.n, shortcut))
    wrong = sorted({name for name, _ in _layout(tensors) ^ _layout(model.state_dict())})
    if wrong:
        raise InputError(
            f"{path} does not hold a {cell.network}: {wrong[0]} is the first of {len(wrong)} tensors that are missing, "
            "additional or of another shape or type."
        )
    model.load_state_dict(tensors, assign=True)
    return model.eval(), cell


def _layout(tensors: dict[str, Tensor]) -> set[tuple[str, tuple[Any, ...]]]:
    """Each tensor's name with its shape and type."""
    return {(name, (tensor.shape, tensor.dtype)) for name, tensor in tensors.items()}
