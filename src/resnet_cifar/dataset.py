"""The preprocessed data set, data/cifar10.safetensors, as training and evaluation read it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from resnet_cifar.errors import InputError


@dataclass(frozen=True)
class Split:
    """Images, uint8 of shape (N, 3, 32, 32), and their labels, int64 of shape (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """The splits and the statistics of the training split, all pixels scaled to [0, 1].

    ``pixel_mean`` has the shape (3, 32, 32), ``channel_mean`` and ``channel_std`` (3, 1, 1), float32.
    ``validation`` is None if no training image is held out.
    """

    train: Split
    validation: Split | None
    test: Split
    pixel_mean: torch.Tensor
    channel_mean: torch.Tensor
    channel_std: torch.Tensor

    def normalization(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted, and what then divides: ``pixel_mean`` (the paper's; divides by one) or ``channel``."""
        if kind == "pixel_mean":
            return self.pixel_mean, torch.ones_like(self.channel_std)
        return self.channel_mean, self.channel_std


def load(path: Path) -> Dataset:
    """Read the preprocessed data set.

    Raises
    ------
    InputError
        If the file is missing or is not what the preprocess stage writes.
    """
    try:
        tensors = load_file(path)
        splits = {
            name: Split(tensors[f"{name}_images"], tensors[f"{name}_labels"].long())
            for name in ("train", "validation", "test")
            if f"{name}_labels" in tensors
        }
        return Dataset(
            splits["train"],
            splits.get("validation"),
            splits["test"],
            tensors["pixel_mean"],
            tensors["channel_mean"],
            tensors["channel_std"],
        )
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: make it with `dvc repro preprocess`.") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path} is not a preprocessed data set ({error}): make it again with `dvc repro -f -s preprocess`."
        ) from None
