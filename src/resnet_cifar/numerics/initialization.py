"""The initial weights of a run."""

import math

import numpy as np
import torch
from torch import nn

from resnet_cifar.numerics.randomness import normals, uniforms


@torch.no_grad()
def initialize(model: nn.Module, seed: int, kind: str = "he") -> None:
    """Draw the weights of every convolution and of the classifier, each layer by one of two rules.

    He: normal with variance 2 / fan-in, biases 0. He et al. 2015, "Delving Deep into Rectifiers", equation (10), the
    paper's reference [13]. PyTorch's: weights and biases uniform up to 1 / sqrt(fan-in), a gain of 1 / sqrt(3).
    Batch normalisation starts at scale 1 and shift 0, as torch makes it. Layers draw in the order of
    ``model.modules()``.

    Parameters
    ----------
    model : Module
        On the CPU.
    seed : int
        The run's.
    kind : str
        he: He's rule for all; he_convolutions: PyTorch's for the classifier; pytorch: PyTorch's for all.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for part, layer in enumerate(layers):
        size, fan_in = layer.weight.numel(), layer.weight[0].numel()
        if kind == "he" or (kind == "he_convolutions" and isinstance(layer, nn.Conv2d)):
            drawn, offsets = normals(seed, part, size) * math.sqrt(2 / fan_in), np.zeros(len(layer.weight))
        else:
            numbers = uniforms(seed, part, size + len(layer.weight)) * math.sqrt(1 / fan_in)
            drawn, offsets = numbers[:size], numbers[size:]
        layer.weight.copy_(torch.from_numpy(drawn.astype(np.float32)).view(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(offsets.astype(np.float32)))
