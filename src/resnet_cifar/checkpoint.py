"""A trained network as a file: byte-stable safetensors that say which network they are, loaded strictly."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError
from resnet_cifar.models import Architecture, CifarResNet

# One key alone: safetensors writes several metadata keys in random order.
KEY = "resnet_cifar"


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a network's state in one piece; equal arguments give equal bytes.

    Parameters
    ----------
    path : Path
        The file, in a folder that exists.
    state : dict of Tensor
        What ``CifarResNet.state_dict`` gives: contiguous, fp32, the counters of batch normalisation int64.
    metadata : dict
        ``net``, ``n``, ``seed`` and ``shortcut``, which say which network it is, and whatever else JSON can hold.
    """
    write_whole(path, save(state, {KEY: json.dumps(metadata, sort_keys=True)}))


def load_model(path: Path) -> tuple[CifarResNet, dict[str, Any]]:
    """Build the network that a file's metadata names and load its weights strictly.

    Returns
    -------
    CifarResNet
        In eval mode, on the CPU. Images in [0, 1] go in, logits come out.
    dict
        The metadata.

    Raises
    ------
    InputError
        If the file is missing, unreadable or not by :func:`save_weights`, or if a tensor is missing, additional or of
        another shape or type than the network's.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})[KEY])
            cell = Cell.parse(f"{metadata['net']}-{metadata['n']}-{metadata['seed']}")
            architecture = Architecture(cell.net, cell.n, metadata["shortcut"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: train the cell first, or fetch it with `dvc pull`.") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a checkpoint of this project ({error}).") from None
    model = CifarResNet(architecture)
    wrong = sorted({name for name, _ in _layout(state) ^ _layout(model.state_dict())})
    if wrong:
        raise InputError(
            f"{path} does not hold a {cell.network}: {wrong[0]} is the first of {len(wrong)} tensors that are missing, "
            "additional or of another shape or type."
        )
    model.load_state_dict(state, strict=True)
    return model.eval(), metadata


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, ``path`` is what it was or all of ``content``."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _layout(state: dict[str, Tensor]) -> set[tuple[str, tuple[Any, ...]]]:
    """Each tensor's name with its shape and type."""
    return {(name, (tensor.shape, tensor.dtype)) for name, tensor in state.items()}
