"""The initial weights of a run."""

import math

import numpy as np
import torch
from torch import nn

from resnet_cifar.numerics.randomness import normals


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """He initialisation of every convolution and of the classifier: normal with variance 2 / fan-in.

    He et al. 2015, "Delving Deep into Rectifiers", equation (10), the paper's reference [13]. Biases become 0; batch
    normalisation starts at scale 1 and shift 0, as torch makes it. Layers draw in the order of ``model.modules()``.

    Parameters
    ----------
    model : Module
        On the CPU.
    seed : int
        The run's.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for part, layer in enumerate(layers):
        deviation = math.sqrt(2 / layer.weight[0].numel())
        drawn = (normals(seed, part, layer.weight.numel()) * deviation).astype(np.float32)
        layer.weight.copy_(torch.from_numpy(drawn).view(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()
