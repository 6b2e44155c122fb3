"""What each iteration of a run sees, and its augmentation."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.numerics import randomness
from resnet_cifar.numerics.randomness import Epoch

PAD = 4
SIZE = 32


class Rows(NamedTuple):
    """What some iterations see; each array has the shape (iterations, batch size). See :class:`Epoch`."""

    index: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


class BatchStream:
    """The batches of a run.

    The epochs are put one after another and cut into full batches, so that every image is seen equally often, to within
    one; crop and flip are drawn for each image anew (section 4.2 of the paper). Only what is asked for is drawn.

    Parameters
    ----------
    seed : int
        The only source of randomness.
    images, batch_size : int
        The size of the training set and of a batch.

    >>> stream = BatchStream(seed=0, images=5, batch_size=4)
    >>> both = stream.rows(0, 5)  # four epochs of five images
    >>> np.bincount(both.index.reshape(-1)).tolist()
    [4, 4, 4, 4, 4]
    """

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self.seed, self.images, self.batch_size = seed, images, batch_size
        self._last: dict[int, Epoch] = {}

    def rows(self, start: int, count: int) -> Rows:
        """The rows of ``count`` iterations after the first ``start``."""
        first, end = start * self.batch_size, (start + count) * self.batch_size
        pieces = []
        for number in range(first // self.images, -(-end // self.images)):
            offset = number * self.images
            cut = slice(max(first - offset, 0), min(end - offset, self.images))
            pieces.append([array[cut] for array in self._epoch(number)])
        shape = (count, self.batch_size)
        return Rows(*(np.concatenate(arrays).reshape(shape) for arrays in zip(*pieces, strict=True)))

    def _epoch(self, number: int) -> Epoch:
        if number not in self._last:
            # A stretch of iterations goes over few epochs, and the next one begins in its last.
            self._last = {key: value for key, value in self._last.items() if key == number - 1}
            self._last[number] = randomness.epoch(self.seed, number, self.images)
        return self._last[number]


def augment(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad normalised images with zeros by 4, crop 32x32 and mirror, each image as drawn.

    Zero is the mean after normalisation, so the border is the mean image's, not black.

    Parameters
    ----------
    x : Tensor
        Normalised images, shape (N, 3, 32, 32).
    top, left, flip : Tensor
        One row each, shape (N,).

    Returns
    -------
    Tensor
        Shape (N, 3, 32, 32), channels last in memory.
    """
    padded = F.pad(x, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1)
    across = torch.arange(SIZE, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    rows = top[:, None].long() + across
    columns = left[:, None].long() + torch.where(flip[:, None].bool(), SIZE - 1 - across, across)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
