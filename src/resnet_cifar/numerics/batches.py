"""The batches of a run, images and augmentation, drawn on the CPU from the seed alone."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 4
SIZE = 32


@dataclass(frozen=True)
class BatchStream:
    """What every iteration of a run sees; each tensor has the shape (iterations, batch size).

    ``index`` (int32) selects training images; ``top`` and ``left`` (uint8, 0 to 8) place the 32x32 crop in the
    padded 40x40 image; ``flip`` (bool) mirrors it.
    """

    index: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> "BatchStream":
        """The same stream on ``device``."""
        return BatchStream(*(tensor.to(device) for tensor in (self.index, self.top, self.left, self.flip)))


def draw(seed: int, images: int, iterations: int, batch_size: int) -> BatchStream:
    """Draw the whole stream of a run.

    The permutations of the epochs are concatenated and cut into full batches, so that every image is seen equally
    often, to within one; crop and flip are drawn for each image anew (section 4.2 of the paper).

    Parameters
    ----------
    seed : int
        The only source of randomness.
    images, iterations, batch_size : int
        The size of the training set, of the run and of a batch.
    """
    shape = (iterations, batch_size)
    count = iterations * batch_size
    order, crop, mirror = (np.random.default_rng([seed, role]) for role in range(3))
    epochs = [order.permutation(images).astype(np.int32) for _ in range(-(-count // images))]
    top, left = crop.integers(0, 2 * PAD + 1, size=(2, *shape), dtype=np.uint8)
    return BatchStream(
        index=torch.from_numpy(np.concatenate(epochs)[:count].reshape(shape)),
        top=torch.from_numpy(top),
        left=torch.from_numpy(left),
        flip=torch.from_numpy(mirror.integers(0, 2, size=shape, dtype=np.uint8).astype(bool)),
    )


def augment(x: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad normalised images with zeros by 4, crop 32x32 and mirror, each image as drawn.

    Zero is the mean after normalisation, so the border is the mean image's, not black.

    Parameters
    ----------
    x : Tensor
        Normalised images, shape (N, 3, 32, 32).
    top, left, flip : Tensor
        One row of a :class:`BatchStream`, shape (N,).

    Returns
    -------
    Tensor
        Shape (N, 3, 32, 32), channels last in memory.
    """
    padded = F.pad(x, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1)
    across = torch.arange(SIZE, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    rows = top[:, None].long() + across
    columns = left[:, None].long() + torch.where(flip[:, None], SIZE - 1 - across, across)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
