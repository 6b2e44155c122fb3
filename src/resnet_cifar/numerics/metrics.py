"""Error and loss of a network's logits, for the curve and for the table alike, with the same bits on every machine."""

import math

import numpy as np

from resnet_cifar.numerics.elementary import exp, log


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, C)

    Returns
    -------
    ndarray of float64, shape (N, C)
    """
    shifted, total = _exponentials(logits)
    return shifted / total[:, None]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats; NaN if a logit is not finite.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, C)
    labels : ndarray of int, shape (N,)

    >>> round(cross_entropy(np.zeros((2, 10), np.float32), np.array([3, 4])), 6)  # log 10
    2.302585
    """
    if not np.isfinite(logits).all():
        return math.nan
    _, total = _exponentials(logits)
    wide = logits.astype(np.float64)
    losses = log(total) + (wide.max(1) - wide[np.arange(len(labels)), labels])
    return math.fsum(losses.tolist()) / len(labels)


def error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit, the first of equal ones, is not their label's, in percent."""
    return 100 * int(np.count_nonzero(logits.argmax(1) != labels)) / len(labels)


def _exponentials(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp(logit - largest), and its sum in the order of the classes: NumPy's own order depends on the machine."""
    wide = logits.astype(np.float64)
    shifted = exp(wide - wide.max(1, keepdims=True))
    total = np.zeros(len(shifted))
    for column in shifted.T:
        total = total + column
    return shifted, total
