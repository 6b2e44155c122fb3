"""The logits of a network by its running statistics, the same in training and in evaluation."""

import torch
from torch import Tensor

from resnet_cifar.numerics.data import Split, scaled
from resnet_cifar.numerics.models import CifarResNet

BATCH = {"cpu": 100, "cuda": 1000}  # a CPU is fastest when a batch stays in its cache


@torch.no_grad()
def compute_logits(model: CifarResNet, split: Split, values: Tensor, dtype: torch.dtype, out: Tensor) -> None:
    """The logits of a split in batches of a fixed size, which can change the last bits.

    Parameters
    ----------
    model : CifarResNet
        In eval mode, its convolutions and classifier in ``dtype`` and channels last.
    split : Split
        N images, on the model's device.
    values : Tensor
        What :func:`~resnet_cifar.numerics.data.pixel_values` gives, on the same device.
    dtype : torch.dtype
        The type of the activations.
    out : Tensor
        Float32 of shape (N, classes), on the same device.
    """
    size = BATCH[out.device.type]
    for images, logits in zip(split.images.split(size), out.split(size), strict=True):
        x = model.normalize(scaled(images, values)).contiguous(memory_format=torch.channels_last)
        logits.copy_(model.forward_head(model.features(x.to(dtype))))
