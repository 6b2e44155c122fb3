"""What drives a network in training. There are three ways: eager (the reference), CUDA graph, and native on CPUs."""

from collections.abc import Generator
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from resnet_cifar.numerics.batches import Rows


class Turn(Enum):
    """What a network in training says each time it gives another one a turn."""

    WAITING = "its device has enough to do"
    WORKING = "something was done"
    WHOLE = "something was done, and its state can be saved now"


class Outcome(NamedTuple):
    """What some iterations gave; each array has the shape (iterations,).

    ``losses`` (float) are the batches' mean cross-entropies in nats, ``errors`` (int) their wrong predictions.
    """

    losses: np.ndarray
    errors: np.ndarray


class NonFiniteError(ArithmeticError):
    """A step is not finite: so many iterations of the call were."""

    def __init__(self, finite: int) -> None:
        super().__init__(finite)
        self.finite = finite


class Engine(Protocol):
    """One network and the way it is computed."""

    name: str
    """As it stands in the record of a run."""

    stretch: int
    """The most iterations of one call of :meth:`steps`."""

    def steps(self, rows: Rows, rates: np.ndarray) -> Generator[Turn, None, Outcome]:
        """Run some iterations, giving turns to others meanwhile.

        Parameters
        ----------
        rows : Rows
            The batches.
        rates : ndarray of float32, shape (iterations,)
            The learning rates.

        Raises
        ------
        NonFiniteError
            If a loss is not finite.
        """
        ...

    def evaluate(self) -> Generator[Turn, None, dict[str, np.ndarray]]:
        """The logits of each split that is evaluated, by its name, float32 of shape (N, classes)."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that an iteration changes and a later one reads, by name: what a resumed run needs."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by their names in a ``CifarResNet``, fp32, on the CPU, without its counters."""
        ...

    def velocities(self) -> dict[str, Tensor]:
        """The velocity of each parameter, as :meth:`state_dict` gives weights."""
        ...


def check_finite(losses: np.ndarray) -> None:
    """Raise :class:`NonFiniteError` if a loss is not finite."""
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        raise NonFiniteError(int(wrong[0]))
