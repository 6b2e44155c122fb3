"""The eager engine: torch's own kernels, one after another. The reference for the other two."""

from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from resnet_cifar.numerics.batches import Rows
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.engine import Outcome, Turn, check_finite
from resnet_cifar.numerics.network import TorchNetwork, evaluate, step
from resnet_cifar.numerics.protocol import Recipe


class EagerEngine:
    """Runs the step as it is; on the CPU, and as the reference on a GPU.

    Parameters
    ----------
    recipe, data, precision
        As for :class:`TorchNetwork`.
    """

    name = "eager"
    stretch = 1

    def __init__(self, recipe: Recipe, data: Dataset, precision: str) -> None:
        self.network = TorchNetwork(recipe, data, precision, self.stretch)

    def steps(self, rows: Rows, rates: np.ndarray) -> Generator[Turn, None, Outcome]:
        self.network.load(rows, torch.from_numpy(rates))
        for _ in rates:
            step(self.network)
        yield Turn.WORKING
        losses, errors = (
            tensor[: len(rates)].cpu().numpy().copy() for tensor in (self.network.losses, self.network.errors)
        )
        check_finite(losses)
        return Outcome(losses, errors)

    def evaluate(self) -> Generator[Turn, None, dict[str, np.ndarray]]:
        evaluate(self.network)
        yield Turn.WORKING
        return {name: logits.cpu().numpy() for name, logits in self.network.logits.items()}

    def tensors(self) -> dict[str, Tensor]:
        return self.network.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.network.restore(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def velocities(self) -> dict[str, Tensor]:
        return self.network.velocities()
