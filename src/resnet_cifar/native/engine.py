"""The native engine: the protocol's step in C++ for CPUs, with the same bits on every processor.

It decides bytes without being a dependency of training: see :mod:`resnet_cifar.numerics.bits`.
"""

from collections.abc import Generator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from resnet_cifar.errors import InputError
from resnet_cifar.native.library import Library
from resnet_cifar.native.network import Batches, Images, NativeNetwork, NonFinite, State
from resnet_cifar.numerics.batches import Rows
from resnet_cifar.numerics.data import Dataset, Split
from resnet_cifar.numerics.engine import NonFiniteError, Outcome, Turn
from resnet_cifar.numerics.initialization import initialize
from resnet_cifar.numerics.models import NUM_CLASSES, Architecture, CifarResNet
from resnet_cifar.numerics.protocol import Recipe

EVALUATED = 1000  # images of one call: short enough for Ctrl-C


def native_can(net: str, shortcut: str) -> bool:
    """Whether the native engine has the network: it has no projections (shortcut B)."""
    return net == "plain" or shortcut == "A"


class NativeEngine:
    """Drives the library's step; it takes the place of :class:`~resnet_cifar.numerics.eager.EagerEngine` on CPUs.

    Parameters
    ----------
    recipe : Recipe
        What to train: fp32, and shortcut A or a plain network.
    data : Dataset
        On the CPU.
    library : Library
        The engine's library.
    threads : int
        CPU threads; they change no bit.
    classes : int
        2 to 16, for images that are not CIFAR-10's.

    Raises
    ------
    InputError
        If the network is not one of its, is too large, or there is not enough memory.
    """

    name = "native"
    stretch = 4

    def __init__(
        self, recipe: Recipe, data: Dataset, library: Library, threads: int, classes: int = NUM_CLASSES
    ) -> None:
        _check(recipe.net, recipe.shortcut)
        self.recipe = recipe
        self.network = NativeNetwork(library, recipe.net, recipe.n, recipe.batch_size, threads, classes)
        model = CifarResNet(Architecture(recipe.net, recipe.n, recipe.shortcut))
        model.fc = nn.Linear(model.num_features, classes)
        initialize(model, recipe.seed, recipe.initialization)
        model.set_normalization(*data.normalization(recipe.normalize))
        self.buffers = {"mean": model.mean.clone(), "std": model.std.clone()}
        self.state = _state(self.network, model.state_dict())
        self.images = _images(data.train, self.buffers)
        self.splits = {name: _images(split, self.buffers) for name, split in data.held_out.items()}

    def steps(self, rows: Rows, rates: np.ndarray) -> Generator[Turn, None, Outcome]:
        batches, recipe = Batches(*rows), self.recipe
        try:
            outcome = self.network.train(self.images, self.state, batches, rates, recipe.momentum, recipe.weight_decay)
        except NonFinite as error:
            raise NonFiniteError(error.done) from None
        yield Turn.WORKING
        return Outcome(*outcome)

    def evaluate(self) -> Generator[Turn, None, dict[str, np.ndarray]]:
        logits = {}
        for name, images in self.splits.items():
            parts = []
            for part in _logits(self.network, self.state, images):
                parts.append(part)
                yield Turn.WORKING
            logits[name] = np.concatenate(parts)
        return logits

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(vector) for name, vector in vars(self.state).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, vector in self.tensors().items():
            vector.copy_(tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        state = self.network.weights.unpack(self.state.weights) | self.network.statistics.unpack(self.state.statistics)
        return self.buffers | {name: torch.from_numpy(array) for name, array in state.items()}

    def velocities(self) -> dict[str, Tensor]:
        unpacked = self.network.weights.unpack(self.state.velocity)
        return {name: torch.from_numpy(array) for name, array in unpacked.items()}


def compute_logits(library: Library, threads: int, model: CifarResNet, split: Split) -> np.ndarray:
    """The logits of a split as the engine computes them while it trains.

    Parameters
    ----------
    library : Library
        The engine's library.
    threads : int
        CPU threads; they change no bit.
    model : CifarResNet
        Residual with shortcut A or plain; what it holds is used.
    split : Split
        N images, on the CPU.

    Returns
    -------
    ndarray of float32, shape (N, classes)
        Not finite where the network's numbers are not.

    Raises
    ------
    InputError
        If the network is not one of the engine's.
    """
    _check(model.architecture.net, model.architecture.shortcut)
    state = model.state_dict()
    network = NativeNetwork(library, model.architecture.net, model.architecture.n, 128, threads)
    return np.concatenate(list(_logits(network, _state(network, state), _images(split, state))))


def _check(net: str, shortcut: str) -> None:
    if not native_can(net, shortcut):
        raise InputError(f"The native engine has no network with shortcut {shortcut!r}; it should be 'A'.")


def _logits(network: NativeNetwork, state: State, images: Images) -> Generator[np.ndarray, None, None]:
    for first in range(0, len(images.images), EVALUATED):
        count = min(EVALUATED, len(images.images) - first)
        try:
            yield network.logits(images, state, first, count)
        except NonFinite:
            yield np.full((count, network.classes), np.nan, np.float32)


def _state(network: NativeNetwork, tensors: Mapping[str, Tensor]) -> State:
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    weights = np.zeros(network.weights.size, np.float32)
    statistics = np.zeros(network.statistics.size, np.float32)
    network.weights.pack(arrays, weights)
    network.statistics.pack(arrays, statistics)
    return State(weights, np.zeros_like(weights), statistics)


def _images(split: Split, buffers: Mapping[str, Tensor]) -> Images:
    mean, std = buffers["mean"].numpy(), buffers["std"].numpy().reshape(-1)
    return Images(split.images.numpy(), split.labels.numpy().astype(np.uint8), mean, std)
