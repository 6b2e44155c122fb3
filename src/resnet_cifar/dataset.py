"""Reading of the preprocessed data set, data/cifar10.safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resnet_cifar.errors import InputError
from resnet_cifar.files import check_readable
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.models import NUM_CLASSES

IMAGE = (3, 32, 32)
STATISTICS = {"pixel_mean": IMAGE, "channel_mean": (3, 1, 1), "channel_std": (3, 1, 1)}


def load(path: Path) -> Dataset:
    """Read the preprocessed data set.

    Raises
    ------
    InputError
        If the file is missing or is not what the preprocess stage writes.
    """
    try:
        check_readable(path)
        tensors = load_file(path)
        _check(tensors)
        # Copies: load_file maps the file, and what another process writes into it would be trained on.
        return Dataset.of({name: tensor.clone() for name, tensor in tensors.items()})
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: make it with `dvc repro preprocess`.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (SafetensorError, _LayoutError) as error:
        raise InputError(
            f"{path} is not a preprocessed data set ({error}): make it again with `dvc repro -f -s preprocess`."
        ) from None


class _LayoutError(ValueError):
    """What is wrong with the tensors of a file, in words."""


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`_LayoutError` unless these are images, labels and statistics that belong together.

    Of the images, type and shape are looked at and no value.
    """
    splits = ["train", "test"] + ["validation"] * any(name.startswith("validation") for name in tensors)
    expected = {*STATISTICS, *(f"{split}_{what}" for split in splits for what in ("images", "labels"))}
    if missing := sorted(expected - tensors.keys()):
        raise _LayoutError(f"{missing[0]} is missing")
    for name, shape in STATISTICS.items():
        _expect(name, tensors[name], torch.float32, shape)
        if not tensors[name].isfinite().all():
            raise _LayoutError(f"{name} has a value that is not finite")
    for split in splits:
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        _expect(f"{split}_labels", labels, torch.uint8, (len(labels) if labels.dim() else 0,))
        _expect(f"{split}_images", images, torch.uint8, (len(labels), *IMAGE))
        if len(labels) == 0:
            raise _LayoutError(f"{split}_images has no image")
        if int(labels.max()) >= NUM_CLASSES:
            raise _LayoutError(
                f"{split}_labels has the label {int(labels.max())}; they are from 0 to {NUM_CLASSES - 1}"
            )


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
        raise _LayoutError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}, "
            f"not {str(dtype).removeprefix('torch.')} of shape {list(shape)}"
        )
