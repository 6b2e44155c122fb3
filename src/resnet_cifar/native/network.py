"""A network of the native engine on NumPy arrays: where its tensors lie, training steps, gradients, logits."""

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from resnet_cifar.errors import InputError
from resnet_cifar.native.library import BatchesStruct, ImagesStruct, Library, StateStruct

OK, NONFINITE = 0, 6
REASONS = {
    1: "The native engine refused its arguments; a network, a batch size and rates of a recipe would be right.",
    2: "A label is not a class of the network; labels should be below {classes}.",
    3: "A batch names an image or a crop that is not there; images should be from 0 to {last}, crops from 0 to 8.",
    4: "There is not enough memory for a network of {layers} layers; a smaller batch would need less.",
    5: "The native engine is computing in another thread; one call at a time would be right.",
}
"""What a status of cpp/engine.h means to whoever called."""

WIDTHS = (16, 32, 64)
COLUMNS = 16  # of the classifier, as stored
LARGEST_N, LARGEST_BATCH = 1000, 65535


class NonFinite(ArithmeticError):  # noqa: N818
    """A step gave an infinite value or NaN and has changed nothing.

    Attributes
    ----------
    done : int
        Steps before it, which were done.
    """

    def __init__(self, done: int) -> None:
        super().__init__(f"step {done + 1} is infinite or NaN")
        self.done = done


@dataclass(frozen=True)
class Images:
    """Images as the data set has them and what normalises them: (p / 255 - mean) / std.

    Attributes
    ----------
    images : ndarray
        uint8, shape (N, 3, 32, 32).
    labels : ndarray
        uint8, shape (N,).
    mean, std : ndarray
        float32, shapes (3, 32, 32) and (3,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __post_init__(self) -> None:
        _check("images", self.images, np.uint8, (None, 3, 32, 32))
        _check("labels", self.labels, np.uint8, (len(self.images),))
        _check("mean", self.mean, np.float32, (3, 32, 32))
        _check("std", self.std, np.float32, (3,))

    def struct(self) -> ImagesStruct:
        pointers = [array.ctypes.data for array in (self.images, self.labels, self.mean, self.std)]
        return ImagesStruct(pointers[0], pointers[1], len(self.images), *pointers[2:])


@dataclass(frozen=True)
class State:
    """What training changes, in place: vectors of float32, the first two of one size.

    Their contents lie as the layouts of a :class:`NativeNetwork` say.
    """

    weights: NDArray[np.float32]
    velocity: NDArray[np.float32]
    statistics: NDArray[np.float32]

    def __post_init__(self) -> None:
        _check("weights", self.weights, np.float32, (None,), writeable=True)
        _check("velocity", self.velocity, np.float32, self.weights.shape, writeable=True)
        _check("statistics", self.statistics, np.float32, (None,), writeable=True)

    def struct(self) -> StateStruct:
        return StateStruct(*(array.ctypes.data for array in (self.weights, self.velocity, self.statistics)))


@dataclass(frozen=True)
class Batches:
    """What each step sees, all of shape (steps, batch size), as in :class:`resnet_cifar.numerics.batches.Rows`.

    Attributes
    ----------
    index : ndarray
        int32, images.
    top, left : ndarray
        uint8, 0 to 8, where the crop lies in the padded image.
    flip : ndarray
        uint8 or bool, whether it is then mirrored.
    """

    index: NDArray[np.int32]
    top: NDArray[np.uint8]
    left: NDArray[np.uint8]
    flip: NDArray[np.uint8] | NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check("index", self.index, np.int32, (None, None))
        for name in ("top", "left", "flip"):
            array = getattr(self, name)
            _check(name, array, bool if array.dtype == bool and name == "flip" else np.uint8, self.index.shape)

    def struct(self) -> BatchesStruct:
        return BatchesStruct(*(array.ctypes.data for array in (self.index, self.top, self.left, self.flip)))


def _check(name: str, array: NDArray, dtype: DTypeLike, shape: tuple[int | None, ...], writeable: bool = False) -> None:
    """Refuse an array that the engine would misread; None in ``shape`` is any size."""
    flags = array.flags
    fits = len(array.shape) == len(shape) and all(
        size in (None, own) for size, own in zip(shape, array.shape, strict=True)
    )
    usable = flags.c_contiguous and flags.aligned and (flags.writeable or not writeable)
    if not (fits and usable and array.dtype == dtype):
        sizes = ", ".join("any" if size is None else f"{size}" for size in shape)
        right = f"{np.dtype(dtype)} of shape ({sizes}), contiguous{' and writeable' if writeable else ''}"
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}; it should be {right}.")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a vector: from ``start``, stored in the shape ``stored``."""

    start: int
    stored: tuple[int, ...]
    shape: tuple[int, ...]

    def view(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The tensor in torch's shape, as a view of the vector."""
        stored = vector[self.start : self.start + math.prod(self.stored)].reshape(self.stored)
        if len(self.shape) == 4:
            return stored.transpose(3, 2, 0, 1)
        return stored.T[: self.shape[0]]


class Layout:
    """Tensors by the names that torchvision gives a ResNet's, and where each lies in a vector of ``size`` floats."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.size = 0

    def _add(self, name: str, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.places[name] = Place(self.size, stored, shape)
        self.size += math.prod(stored)

    def pack(self, tensors: Mapping[str, NDArray[np.float32]], out: NDArray[np.float32]) -> None:
        """Copy tensors of torch's shapes into a vector; what lies between them becomes zero.

        Raises
        ------
        InputError
            If one of the tensors is missing or has another shape.
        """
        out[:] = 0
        for name, place in self.places.items():
            found = getattr(tensors.get(name), "shape", None)
            if found is None or tuple(found) != place.shape:
                there = "missing" if found is None else f"of shape {tuple(found)}"
                raise InputError(f"{name} is {there}; it should have the shape {place.shape}.")
            place.view(out)[...] = tensors[name]

    def unpack(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The tensors by name, copied, in torch's shapes."""
        return {name: place.view(vector).copy(order="C") for name, place in self.places.items()}


def _layers(n: int) -> Iterator[tuple[str, str, int, int]]:
    """Names of convolution and batch normalisation, channels in and out, of every layer in order."""
    yield "conv1", "bn1", 3, WIDTHS[0]
    channels = WIDTHS[0]
    for stage, width in enumerate(WIDTHS, start=1):
        for block in range(n):
            for part in (1, 2):
                yield f"layer{stage}.{block}.conv{part}", f"layer{stage}.{block}.bn{part}", channels, width
                channels = width


def weight_layout(n: int, classes: int) -> Layout:
    """Weights, velocity and gradient of a network of depth 6n+2, in the order of cpp/engine.h."""
    layout = Layout()
    for conv, norm, inputs, outputs in _layers(n):
        layout._add(f"{conv}.weight", (3, 3, inputs, outputs), (outputs, inputs, 3, 3))
        layout._add(f"{norm}.weight", (outputs,), (outputs,))
        layout._add(f"{norm}.bias", (outputs,), (outputs,))
    layout._add("fc.weight", (WIDTHS[-1], COLUMNS), (classes, WIDTHS[-1]))
    layout._add("fc.bias", (COLUMNS,), (classes,))
    return layout


def statistic_layout(n: int) -> Layout:
    """Running statistics of a network of depth 6n+2, 64 places each."""
    layout = Layout()
    for _, norm, _, outputs in _layers(n):
        layout._add(f"{norm}.running_mean", (WIDTHS[-1],), (outputs,))
        layout._add(f"{norm}.running_var", (WIDTHS[-1],), (outputs,))
    return layout


class NativeNetwork:
    """A network and its working memory; the arrays are the caller's.

    Parameters
    ----------
    library : Library
        What computes.
    net : str
        resnet or plain.
    n : int
        The depth is 6n+2.
    batch_size : int
        The largest batch.
    threads : int
        CPU threads; the results are the same with any number.
    classes : int
        2 to 16.

    Attributes
    ----------
    weights, statistics : Layout
        Where the tensors lie in the vectors of a :class:`State`.

    Raises
    ------
    InputError
        If a size is not possible or there is not enough memory.
    """

    def __init__(self, library: Library, net: str, n: int, batch_size: int, threads: int, classes: int = 10) -> None:
        sizes = 1 <= n <= LARGEST_N and 1 <= batch_size <= LARGEST_BATCH and 2 <= classes <= COLUMNS
        if net not in ("resnet", "plain") or threads < 1 or not sizes:
            raise InputError(
                f"{net} of n={n}, {classes} classes, batches of {batch_size} and {threads} threads is not possible; it "
                f"should be resnet or plain, n from 1 to {LARGEST_N}, 2 to {COLUMNS} classes, batches of 1 to "
                f"{LARGEST_BATCH} images and one thread or more."
            )
        self.library, self.n, self.batch_size, self.threads, self.classes = library, n, batch_size, threads, classes
        self.weights, self.statistics = weight_layout(n, classes), statistic_layout(n)
        self._call = library.functions
        self._handle = ctypes.c_void_p()
        self._call.rc_set_threads(threads)  # for whose buffers there is memory, or not
        self._ask(self._call.rc_create(net == "resnet", n, classes, batch_size, ctypes.byref(self._handle)))
        self._free = weakref.finalize(self, self._call.rc_destroy, self._handle)
        self._free.atexit = False  # a daemon thread may compute until the process is gone
        assert self._call.rc_weight_count(self._handle) == self.weights.size
        assert self._call.rc_statistic_count(self._handle) == self.statistics.size

    def close(self) -> None:
        """Free the working memory now; without it, that happens with the object's end. Not while a call is running."""
        self._free()
        self._handle = ctypes.c_void_p()

    def train(
        self,
        images: Images,
        state: State,
        batches: Batches,
        lr: ArrayLike,
        momentum: float,
        weight_decay: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Do SGD steps, changing ``state``; nothing interrupts them, so let them be few.

        Parameters
        ----------
        images : Images
            The training set.
        state : State
            Weights, velocity and running statistics.
        batches : Batches
            One row a step, of 2 to ``batch_size`` images.
        lr : array_like
            The learning rate of each step; this and the next two are rounded to float32 first.
        momentum, weight_decay : float
            As in :func:`resnet_cifar.numerics.network.sgd_`.

        Returns
        -------
        losses : ndarray
            float64, shape (steps,): mean cross-entropy of the batch, in nats, before the step.
        errors : ndarray
            int32, shape (steps,): how many predictions were wrong.

        Raises
        ------
        InputError
            If the arrays do not fit, or if a label, an image or a crop is not there; nothing has changed.
        NonFinite
            If a step gives an infinite value or NaN; it has changed nothing.
        """
        steps, batch = batches.index.shape
        rates = np.ascontiguousarray(lr, np.float32)
        momentum, weight_decay = float(np.float32(momentum)), float(np.float32(weight_decay))
        if rates.shape != (steps,):
            raise InputError(f"lr has the shape {rates.shape}; it should be ({steps},), one for each step.")
        if not np.isfinite([*rates, momentum, weight_decay]).all():
            raise InputError("A learning rate, the momentum or the weight decay is not finite; all should be.")
        self._check(state, batch)
        losses, errors, done = np.zeros(steps), np.zeros(steps, np.int32), ctypes.c_int()
        status = self._run(
            self._call.rc_train,
            images.struct(),
            state.struct(),
            batches.struct(),
            batch,
            steps,
            rates.ctypes.data,
            momentum,
            weight_decay,
            losses.ctypes.data,
            errors.ctypes.data,
            ctypes.byref(done),
        )
        if status == NONFINITE:
            raise NonFinite(done.value)
        self._ask(status, images)
        return losses, errors

    def gradient(self, images: Images, state: State, batches: Batches) -> tuple[NDArray[np.float32], float, int]:
        """The gradient of one batch's loss, without weight decay; of ``state``, the statistics alone change.

        Parameters
        ----------
        images, state, batches
            As of :meth:`train`; ``batches`` has one row.

        Returns
        -------
        gradient : ndarray
            float32, in the layout ``weights``.
        loss : float
            Mean cross-entropy of the batch, in nats.
        errors : int
            How many predictions were wrong.

        Raises
        ------
        InputError, NonFinite
            As of :meth:`train`.
        """
        steps, batch = batches.index.shape
        if steps != 1:
            raise InputError(f"batches has {steps} rows; it should have one.")
        self._check(state, batch)
        gradient = np.zeros(self.weights.size, np.float32)
        loss, errors = ctypes.c_double(), ctypes.c_int32()
        status = self._run(
            self._call.rc_gradient,
            images.struct(),
            state.struct(),
            batches.struct(),
            batch,
            gradient.ctypes.data,
            ctypes.byref(loss),
            ctypes.byref(errors),
        )
        if status == NONFINITE:
            raise NonFinite(0)
        self._ask(status, images)
        return gradient, loss.value, errors.value

    def logits(self, images: Images, state: State, first: int, count: int) -> NDArray[np.float32]:
        """Logits by the running statistics, shape (count, classes), of the images from ``first`` on.

        Raises
        ------
        InputError
            If the arrays do not fit or an image is not there.
        NonFinite
            If a logit is infinite or NaN.
        """
        if count < 1 or first < 0 or first + count > len(images.images):
            raise InputError(f"There are no {count} images from {first} on; there are {len(images.images)} in all.")
        self._check(state)
        logits = np.zeros((count, self.classes), np.float32)
        status = self._run(
            self._call.rc_logits,
            images.struct(),
            state.weights.ctypes.data,
            state.statistics.ctypes.data,
            first,
            count,
            logits.ctypes.data,
        )
        if status == NONFINITE:
            raise NonFinite(0)
        self._ask(status, images)
        return logits

    def _check(self, state: State, batch: int | None = None) -> None:
        if state.weights.size != self.weights.size or state.statistics.size != self.statistics.size:
            raise InputError(
                f"The state has {state.weights.size} weights and {state.statistics.size} statistics; "
                f"this network has {self.weights.size} and {self.statistics.size}."
            )
        if batch is not None and not 2 <= batch <= self.batch_size:
            raise InputError(f"A batch has {batch} images; it should have 2 to {self.batch_size}.")

    def _run(self, function: Callable[..., int], *arguments: object) -> int:
        self._call.rc_set_threads(self.threads)
        return function(self._handle, *arguments)

    def _ask(self, status: int, images: Images | None = None) -> None:
        """Raise what a status means."""
        if status != OK:
            last = len(images.images) - 1 if images else 0
            raise InputError(REASONS[status].format(classes=self.classes, last=last, layers=6 * self.n + 2))
