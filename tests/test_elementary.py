"""exp and log against the system's math library, which is within one unit in the last place on common machines."""

import math

import numpy as np
import pytest

from resnet_cifar.numerics.elementary import exp, log

# Three roundings make a result (of exp: the rest, the last product, the last sum; of log: the sum, the quotient, the
# product), each of half a unit or, where the result's first digits are smaller than the operand's, of a whole one;
# those before them count for little. The system's may be one away itself, but never was where the others added up.
UNITS = 3


def units_apart(x: np.ndarray, expected: list[float]) -> np.ndarray:
    return np.abs(x - np.array(expected)) / np.array([math.ulp(value) for value in expected])


@pytest.mark.parametrize("largest", [1e-9, 1.0, 40.0, 690.0])
def test_exp(largest):
    x = np.random.default_rng(0).uniform(-largest, largest, 20_000)
    assert units_apart(exp(x), [math.exp(value) for value in x.tolist()]).max() <= UNITS


def test_exp_where_its_parts_change():
    """Beside the halves of log 2, where the power of two changes, and at both ends of what it takes."""
    edges = [(k + 0.5) * math.log(2) for k in range(-1009, 1009)]
    x = np.array([near for edge in edges for near in (math.nextafter(edge, -1e9), edge, math.nextafter(edge, 1e9))])
    x = np.concatenate([x, [700.0, -700.0]])
    assert units_apart(exp(x), [math.exp(value) for value in x.tolist()]).max() <= UNITS


def test_exp_of_special_values():
    assert exp(np.array([0.0, -0.0])).tolist() == [1.0, 1.0]
    with np.errstate(all="raise"):  # as far below as two float32 numbers may lie apart
        assert exp(np.array([-700.1, -745.2, -1e6, -6.8e38])).tolist() == [0.0] * 4
    assert exp(np.array([[1.0, -1.0]])).shape == (1, 2)


@pytest.mark.parametrize(("low", "high"), [(1e-300, 1e-290), (1e-9, 1.0), (0.5, 2.0), (0.999999, 1.000001), (1.0, 1e9)])
def test_log(low, high):
    x = np.random.default_rng(0).uniform(low, high, 20_000)
    assert units_apart(log(x), [math.log(value) for value in x.tolist()]).max() <= UNITS


def test_log_where_its_parts_change():
    """Beside the powers of two and their square roots, and at the smallest and largest numbers."""
    edges = [math.ldexp(m, k) for m in (1.0, math.sqrt(0.5)) for k in range(-1020, 1020, 7)]
    x = np.array([near for edge in edges for near in (math.nextafter(edge, 0), edge, math.nextafter(edge, math.inf))])
    x = np.concatenate([x, [5e-324, 2.2e-308, 1.79e308]])
    assert units_apart(log(x), [math.log(value) for value in x.tolist()]).max() <= UNITS


def test_log_of_special_values():
    assert log(np.array([1.0])).tolist() == [0.0]
    # The logarithm of a power of two is that multiple of log 2, correctly rounded.
    assert log(np.array([2.0, 0.5])).tolist() == [math.log(2), -math.log(2)]


def test_neither_falls_where_it_must_rise():
    """Softmax and the loss rely on the order. Steps of many units: rounding may make neighbours equal or swap them."""
    x = np.linspace(-700, 700, 1_000_001)
    assert (np.diff(exp(x)) > 0).all()
    assert (np.diff(log(np.linspace(1e-3, 100, 1_000_001))) > 0).all()
