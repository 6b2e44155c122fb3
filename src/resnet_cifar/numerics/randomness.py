"""All random numbers of a run, from its seed alone, the same on every machine and with every version of NumPy.

NumPy guarantees the integers of a bit generator; it guarantees neither what its ``Generator`` makes of them nor, from
one processor to another, a normal distribution. So everything is made here of PCG64's words: with integers, and normals
with + - * / and square roots in float64, which IEEE 754 rounds correctly.

Each (seed, role, part) has a stream of its own: a part is an epoch, or a layer whose weights are drawn.
"""

from typing import NamedTuple

import numpy as np

from resnet_cifar.numerics.elementary import log

ORDER, CROP, FLIP, WEIGHTS = range(4)
"""What numbers are drawn for: the streams' second key."""

BLOCK = 4096


class Epoch(NamedTuple):
    """What is drawn for one pass over the images, in the order in which they are seen; each of shape (images,).

    ``index`` (int32) is a permutation of the images; ``top`` and ``left`` (uint8, 0 to 8) place the 32x32 crop in the
    image padded by 4; ``flip`` (uint8, 0 or 1) mirrors it.
    """

    index: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


def epoch(seed: int, number: int, images: int) -> Epoch:
    """Draw an epoch, without those before it.

    Parameters
    ----------
    seed : int
        The run's.
    number : int
        Of the epoch, from 0.
    images : int
        In the training set.

    >>> drawn = epoch(seed=0, number=3, images=5)
    >>> sorted(drawn.index.tolist())
    [0, 1, 2, 3, 4]
    """
    # Equal keys, one pair in 10^10 for CIFAR-10, stay in order.
    index = np.argsort(_words(seed, ORDER, number).random_raw(images), kind="stable").astype(np.int32)
    crops = _words(seed, CROP, number).random_raw(images)
    low, high = crops & np.uint64(0xFFFFFFFF), crops >> np.uint64(32)
    top, left = ((half * np.uint64(9) >> np.uint64(32)).astype(np.uint8) for half in (low, high))
    flip = (_words(seed, FLIP, number).random_raw(images) >> np.uint64(63)).astype(np.uint8)
    return Epoch(index, top, left, flip)


def normals(seed: int, part: int, count: int) -> np.ndarray:
    """Standard normal numbers for initial weights, float64 of shape (count,), by Marsaglia's polar method.

    Marsaglia and Bray 1964, "A convenient method for generating normal variables".

    Parameters
    ----------
    seed : int
        The run's.
    part : int
        Number of the layer.
    count : int
        How many.
    """
    words = _words(seed, WEIGHTS, part)
    found: list[np.ndarray] = []
    have = 0
    while have < count:
        u, v = _numbers(words, 2 * BLOCK).reshape(2, BLOCK)
        square = u * u + v * v
        inside = (square > 0) & (square < 1)
        u, v, square = u[inside], v[inside], square[inside]
        factor = np.sqrt(-2 * log(square) / square)
        found.append(np.stack([u * factor, v * factor], axis=1).reshape(-1))
        have += found[-1].size
    return np.concatenate(found)[:count]


def uniforms(seed: int, part: int, count: int) -> np.ndarray:
    """Numbers spread evenly over [-1, 1) for initial weights, float64 of shape (count,); arguments as of normals."""
    return _numbers(_words(seed, WEIGHTS, part), count)


def _numbers(words: np.random.PCG64, count: int) -> np.ndarray:
    """53 bits of each of the next words as a number in [-1, 1)."""
    return (words.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def _words(seed: int, role: int, part: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, role, part]))
