"""The preprocessed data set as training and evaluation see it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images, uint8 of shape (N, 3, 32, 32), and their labels, int64 of shape (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """The same on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """The splits and the statistics of the training split, all pixels scaled to [0, 1].

    ``pixel_mean`` has the shape (3, 32, 32), ``channel_mean`` and ``channel_std`` (3, 1, 1), float32.
    ``validation`` is None if no training image is held out.
    """

    train: Split
    validation: Split | None
    test: Split
    pixel_mean: Tensor
    channel_mean: Tensor
    channel_std: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Dataset":
        """What lies in data/cifar10.safetensors; KeyError names a tensor that is missing."""

        def split(name: str) -> Split:
            return Split(tensors[f"{name}_images"], tensors[f"{name}_labels"].long())

        return cls(
            train=split("train"),
            validation=split("validation") if "validation_labels" in tensors else None,
            test=split("test"),
            pixel_mean=tensors["pixel_mean"],
            channel_mean=tensors["channel_mean"],
            channel_std=tensors["channel_std"],
        )

    @property
    def held_out(self) -> dict[str, Split]:
        """The splits that are evaluated, by name: ``test``, and ``validation`` if there is one."""
        return {"test": self.test} | ({"validation": self.validation} if self.validation else {})

    def to(self, device: torch.device) -> "Dataset":
        """The same with its splits on ``device``."""
        return Dataset(
            train=self.train.to(device),
            validation=self.validation.to(device) if self.validation else None,
            test=self.test.to(device),
            pixel_mean=self.pixel_mean,
            channel_mean=self.channel_mean,
            channel_std=self.channel_std,
        )

    def normalization(self, kind: str) -> tuple[Tensor, Tensor]:
        """What is subtracted, and what then divides: ``pixel_mean`` (the paper's; divides by one) or ``channel``."""
        if kind == "pixel_mean":
            return self.pixel_mean, torch.ones_like(self.channel_std)
        return self.channel_mean, self.channel_std


def pixel_values() -> Tensor:
    """Pixels of 0 to 255 scaled to [0, 1], float32 of shape (256,): x / 255 as ``pixel_values()[x]``.

    A table, because a GPU divides by a constant in multiplying with its rounded reciprocal.
    """
    return torch.arange(256, dtype=torch.float32) / 255


def scaled(images: Tensor, values: Tensor) -> Tensor:
    """Images, uint8 of any shape, scaled to [0, 1] by :func:`pixel_values` on the same device."""
    return values.index_select(0, images.reshape(-1).int()).view(images.shape)
