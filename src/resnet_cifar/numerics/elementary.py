"""Exponential and logarithm in float64, with the same bits on every machine.

A system's math library and NumPy's vector loops round them differently from one processor to the next. These are made
of + - * / alone, which IEEE 754 rounds correctly, as NumPy functions one at a time, so that nothing is fused.
"""

import numpy as np

LOG2_HIGH, LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2; a few bits are zero
SQRT_HALF = 0.7071067811865476
EXP_TERMS = 14
LOG_TERMS = 13


def exp(x: np.ndarray) -> np.ndarray:
    """The exponential, to within three units in the last place; 0 below -700.

    Parameters
    ----------
    x : ndarray of float64
        Finite, at most 700.

    >>> exp(np.array([-1000.0, 0.0, 1.0])).round(9).tolist()
    [0.0, 1.0, 2.718281828]
    """
    bounded = np.maximum(x, -700.0)
    power = np.floor(bounded / (LOG2_HIGH + LOG2_LOW) + 0.5)
    rest = (bounded - power * LOG2_HIGH) - power * LOG2_LOW
    series = np.ones_like(x)
    for term in range(EXP_TERMS, 0, -1):
        series = series * (rest / term) + 1.0
    return np.where(x < -700, 0.0, np.ldexp(series, power.astype(np.int32)))


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm, to within three units in the last place.

    Parameters
    ----------
    x : ndarray of float64
        Positive and finite.

    >>> log(np.array([1.0, 2.0])).tolist()
    [0.0, 0.6931471805599453]
    """
    mantissa, power = np.frexp(x)
    small = mantissa < SQRT_HALF
    mantissa = np.where(small, 2 * mantissa, mantissa)
    power = power - small
    ratio = (mantissa - 1) / (mantissa + 1)  # log m = 2 artanh of it
    square = ratio * ratio
    series = np.zeros_like(ratio)
    for term in range(2 * LOG_TERMS - 1, 0, -2):
        series = series * square + 1.0 / term
    return power * LOG2_HIGH + (power * LOG2_LOW + 2 * (ratio * series))
