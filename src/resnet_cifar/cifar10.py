"""CIFAR-10's binary layout as arrays, with the statistics of the training images: data/cifar10.safetensors."""

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from resnet_cifar import files
from resnet_cifar.errors import InputError

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + math.prod(SHAPE)
SPLIT_SEED = 0
CHUNK = 1000


def preprocess(raw: Path, out: Path, validation: int) -> None:
    """Write the data set that :func:`resnet_cifar.dataset.load` reads.

    Its tensors are ``train_images``, uint8 of shape (N, 3, 32, 32), ``train_labels``, uint8 of shape (N,), the same for
    ``test`` and, if images are held out, for ``validation``; ``pixel_mean``, float32 of shape (3, 32, 32), and
    ``channel_mean`` and ``channel_std``, float32 of shape (3, 1, 1), of the remaining training images, with pixels
    scaled to [0, 1]. The same input gives the same bytes on every machine.

    Parameters
    ----------
    raw : Path
        The folder of the six binary files.
    out : Path
        The file to write; it appears complete or not at all.
    validation : int
        The number of training images to hold out.

    Raises
    ------
    InputError
        If a raw file is missing or malformed, or if no training image would remain.
    OSError
        If ``out`` cannot be written.
    """
    batches = [read_records(raw / name) for name in TRAIN_FILES]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    del batches
    if validation >= len(labels):
        raise InputError(
            f"data.validation: {validation} leaves none of the {len(labels)} training images; "
            f"it must be below {len(labels)}."
        )
    tensors = {}
    if validation:
        held_out = hold_out(labels, validation)
        tensors |= {"validation_images": images[held_out], "validation_labels": labels[held_out]}
        images, labels = images[~held_out], labels[~held_out]
    tensors |= {"train_images": images, "train_labels": labels, **statistics(images)}
    tensors["test_images"], tensors["test_labels"] = read_records(raw / TEST_FILE)
    # Contiguous, because safetensors writes an array's memory as it lies, whatever its strides.
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(out, content)


def read_records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file in the binary layout.

    Returns
    -------
    images : ndarray of uint8, shape (N, 3, 32, 32)
    labels : ndarray of uint8, shape (N,)

    Raises
    ------
    InputError
        If it is missing, is not a whole number of records, or has a label above 9.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): fetch it with `dvc repro download`.") from None
    if not data.size or data.size % RECORD:
        raise InputError(
            f"{path} has {data.size} bytes; CIFAR-10's binary layout is one or more records of {RECORD}: "
            "fetch it again with `dvc repro -f -s download`."
        )
    records = data.reshape(-1, RECORD)
    labels = records[:, 0]
    if labels.max() >= len(CLASSES):
        wrong = int(np.argmax(labels >= len(CLASSES)))
        raise InputError(
            f"{path} has the label {labels[wrong]} in record {wrong}; labels are 0 to {len(CLASSES) - 1}: "
            "fetch it again with `dvc repro -f -s download`."
        )
    return records[:, 1:].reshape(-1, *SHAPE), labels


def hold_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` images, from each class the same share of its images, drawn by a fixed seed.

    Parameters
    ----------
    labels : ndarray of uint8, shape (N,)
    count : int
        Below N.

    Returns
    -------
    ndarray of bool, shape (N,)
        True for the images that are held out.

    Examples
    --------
    >>> labels = np.arange(40, dtype=np.uint8) % 10
    >>> np.bincount(labels[hold_out(labels, 20)]).tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    # RandomState, whose stream NumPy has frozen; that of a Generator may change from one version to the next.
    random = np.random.RandomState(SPLIT_SEED)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (random.permutation(len(members)) + 0.5) / len(members)
    held_out = np.zeros(len(labels), bool)
    held_out[np.lexsort((labels, rank))[:count]] = True
    return held_out


def statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of each pixel, and mean and standard deviation (divisor N) of each channel, of pixels scaled to [0, 1].

    They come from exact integer sums, so that they do not depend on a machine's order of summation.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 3, 32, 32)

    Returns
    -------
    dict of str to ndarray of float32
        ``pixel_mean`` of shape (3, 32, 32), ``channel_mean`` and ``channel_std`` of shape (3, 1, 1).

    Examples
    --------
    >>> black_and_white = np.stack([np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)])
    >>> statistics(black_and_white)["channel_std"].ravel().tolist()
    [0.5, 0.5, 0.5]
    """
    pixel_sum = np.zeros(SHAPE, np.uint64)
    square_sum = np.zeros(SHAPE[0], np.uint64)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].astype(np.uint32)
        pixel_sum += chunk.sum(axis=0, dtype=np.uint64)
        square_sum += (chunk * chunk).sum(axis=(0, 2, 3), dtype=np.uint64)
    count = len(images) * math.prod(SHAPE[1:])
    means, deviations = [], []
    for total, squares in zip(pixel_sum.sum(axis=(1, 2)).tolist(), square_sum.tolist(), strict=True):
        means.append(total / (255 * count))
        deviations.append(math.sqrt(count * squares - total**2) / (255 * count))  # Python's integers: beyond 64 bits
    return {
        "pixel_mean": (pixel_sum / (255 * len(images))).astype(np.float32),
        "channel_mean": np.array(means, np.float32).reshape(-1, 1, 1),
        "channel_std": np.array(deviations, np.float32).reshape(-1, 1, 1),
    }
