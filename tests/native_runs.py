"""Short runs of the native engine on made-up data and their hash, for the golden values in golden/native.json.

The data comes from integer arithmetic alone, so that it is the same wherever the runs are made: by a library in this
process or, where Python cannot load it, by src/resnet_cifar/native/cpp/golden.cpp.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_cifar.native.library import Library
from resnet_cifar.native.network import (
    Batches,
    Images,
    NativeNetwork,
    State,
    statistic_layout,
    weight_layout,
)

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
COUNT = 45
EXPONENTS = {3: 8, 16: 9, 32: 10, 64: 10}
"""By input channels: weights of -127 to 127, divided by 2 to this, spread about as He initialisation's."""


@dataclass(frozen=True)
class Run:
    """Some steps and an evaluation of all images; a batch of 20 is one chunk of 16 and a shorter one."""

    net: str
    n: int
    steps: int
    batch: int = 20
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.net}-{self.n}-{self.steps}x{self.batch}"


RUNS = (Run("resnet", 3, 4), Run("plain", 1, 4))
TINY = Run("resnet", 1, 1)


def integers(seed: int, role: str, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
    """Numbers from ``low`` to ``high`` by SplitMix64, whose state starts at a hash of ``seed`` and ``role``."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {role}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return low + (z % np.uint64(high - low + 1)).astype(np.int64).reshape(shape)


def fractions(seed: int, role: str, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.float32]:
    """:func:`integers` over 1024, which is exact."""
    return (integers(seed, role, shape, low, high) / 1024).astype(np.float32)


def make_images(seed: int = 0, count: int = COUNT) -> Images:
    """Noise, with a mean of its own for each pixel and a deviation for each channel."""
    return Images(
        integers(seed, "images", (count, 3, 32, 32), 0, 255).astype(np.uint8),
        integers(seed, "labels", (count,), 0, 9).astype(np.uint8),
        fractions(seed, "mean", (3, 32, 32), 400, 600),
        fractions(seed, "std", (3,), 200, 300),
    )


def make_state(n: int, seed: int = 0) -> State:
    """Weights about as at the start of training, zero velocity, statistics of mean 0 and variance 1."""
    weights, statistics = weight_layout(n, 10), statistic_layout(n)
    tensors = {}
    for name, place in weights.places.items():
        if len(place.shape) == 4:
            tensors[name] = np.float32(integers(seed, name, place.shape, -127, 127)) / 2 ** EXPONENTS[place.shape[1]]
        elif name == "fc.weight":
            tensors[name] = fractions(seed, name, place.shape, -250, 250)
        else:
            tensors[name] = fractions(seed, name, place.shape, -100, 100) + np.float32(name.endswith("weight"))
    state = State(
        *(np.zeros(weights.size, np.float32) for _ in range(2)),
        np.zeros(statistics.size, np.float32),
    )
    weights.pack(tensors, state.weights)
    start = {name: np.full(place.shape, name.endswith("var"), np.float32) for name, place in statistics.places.items()}
    statistics.pack(start, state.statistics)
    return state


def make_batches(steps: int, batch: int, seed: int = 0) -> Batches:
    shape = (steps, batch)
    return Batches(
        integers(seed, "index", shape, 0, COUNT - 1).astype(np.int32),
        integers(seed, "top", shape, 0, 8).astype(np.uint8),
        integers(seed, "left", shape, 0, 8).astype(np.uint8),
        integers(seed, "flip", shape, 0, 1).astype(np.uint8),
    )


def rates(steps: int) -> NDArray[np.float32]:
    return np.float32([0.01, 0.1, 0.05, 0.025][:steps])


@dataclass(frozen=True)
class Outcome:
    """What a run leaves."""

    state: State
    losses: NDArray[np.float64]
    errors: NDArray[np.int32]
    logits: NDArray[np.float32]

    def digest(self, n: int) -> str:
        """SHA-256 over the tensors in the order of their names, little-endian, losses float64 and errors int32."""
        weights, statistics = weight_layout(n, 10), statistic_layout(n)
        tensors = {"losses": self.losses, "errors": self.errors, "logits": self.logits}
        for kind, layout, vector in (
            ("weights", weights, self.state.weights),
            ("velocity", weights, self.state.velocity),
            ("statistics", statistics, self.state.statistics),
        ):
            tensors |= {f"{kind}.{name}": tensor for name, tensor in layout.unpack(vector).items()}
        digest = hashlib.sha256()
        for _, tensor in sorted(tensors.items()):
            digest.update(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def outcome(library: Library, run: Run, threads: int) -> Outcome:
    """Make a run."""
    network = NativeNetwork(library, run.net, run.n, run.batch, threads)
    images, state = make_images(run.seed), make_state(run.n, run.seed)
    batches = make_batches(run.steps, run.batch, run.seed)
    losses, errors = network.train(images, state, batches, rates(run.steps), MOMENTUM, WEIGHT_DECAY)
    logits = network.logits(images, state, 0, COUNT)
    network.close()
    return Outcome(state, losses, errors, logits)
