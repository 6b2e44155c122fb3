"""How strongly each layer of a trained network responds (section 4.2, Figure 7)."""

import copy
import math

import torch
from torch import Tensor, nn

from resnet_cifar.numerics.data import Split, pixel_values, scaled
from resnet_cifar.numerics.models import BatchNorm, CifarResNet

IMAGES = 200
BATCH = 100
DECIMALS = 4


@torch.inference_mode()
def layer_responses(model: CifarResNet, split: Split) -> list[float]:
    """The standard deviation of each 3x3 layer's response, after batch normalisation, before nonlinearity and addition.

    Over all pixels and channels of the split's first 200 images, by the running statistics. Computed in float64 on
    the CPU, whatever trained the network, and rounded to four decimals: another processor or number of threads moves a
    value by less than 1e-14, so that fewer than one in a billion are rounded otherwise.

    Parameters
    ----------
    model : CifarResNet
        In eval mode; it stays as it is.
    split : Split
        Images, on any device.

    Returns
    -------
    list of float
        From the first layer to the last convolution, 6n+1.
    """
    wide = copy.deepcopy(model).to("cpu", torch.float64)
    layers = {name: layer for name, layer in wide.named_modules() if isinstance(layer, BatchNorm)}
    sums = [_Sums(layer) for name, layer in layers.items() if ".downsample." not in name]
    for images in split.images[:IMAGES].cpu().split(BATCH):
        wide(scaled(images, pixel_values()).double())
    return [each.deviation() for each in sums]


class _Sums:
    """Count, sum and sum of squares of what a layer gives from now on."""

    def __init__(self, layer: nn.Module) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0
        layer.register_forward_hook(self._add)

    def _add(self, _layer: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        self.count += output.numel()
        self.sum += output.sum().item()
        self.squares += output.square().sum().item()

    def deviation(self) -> float:
        mean = self.sum / self.count
        return round(math.sqrt(max(0.0, self.squares / self.count - mean * mean)), DECIMALS)
