"""A tiny data set in CIFAR-10's format, for tests."""

from pathlib import Path

import numpy as np

FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def write_tiny_cifar10(folder: Path, train: int = 100, test: int = 100, seed: int = 0) -> None:
    """Write the six files of the binary layout: noisy images of one colour a class, which a network can learn.

    Parameters
    ----------
    folder : Path
        Where to; it is made if it is missing.
    train, test : int
        Images in each of the five training files, and in the test file. The classes are as equal as they can be.
    seed : int
        Of the labels' order and the noise. The colours are always the same, so that sets of two seeds match.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(0).integers(40, 216, (10, 3))
    random = np.random.default_rng(seed)
    for name in FILES:
        count = test if name == "test_batch.bin" else train
        labels = random.permutation(count) % 10
        images = colours[labels][:, :, None, None] + random.normal(0, 20, (count, 3, 32, 32))
        pixels = images.clip(0, 255).astype(np.uint8).reshape(count, -1)
        (folder / name).write_bytes(np.column_stack([labels.astype(np.uint8), pixels]).tobytes())
