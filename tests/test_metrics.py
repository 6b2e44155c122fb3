"""Error and loss against values worked out by hand and against torch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnet_cifar.numerics import metrics


def test_cross_entropy_and_softmax_by_hand():
    """Logits that are the logarithms of 1, 2, 5 and 1, 1, 2: the softmax is them over their sum."""
    logits = np.log(np.array([[1, 2, 5], [1, 1, 2]])).astype(np.float32)
    probabilities = metrics.probabilities(logits)
    assert probabilities == pytest.approx(np.array([[1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 2 / 4]]), rel=1e-6)
    expected = -(math.log(5 / 8) + math.log(1 / 4)) / 2
    assert metrics.cross_entropy(logits, np.array([2, 0])) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_torchs_in_float64():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 20 * torch.randn(1000, 10, generator=generator), torch.randint(10, (1000,), generator=generator)
    expected = F.cross_entropy(logits.double(), labels).item()
    assert metrics.cross_entropy(logits.numpy(), labels.numpy()) == pytest.approx(expected, rel=1e-13)


def test_confident_logits_lose_nothing():
    """Logits of 200 overflow exp in fp32; the loss of a wrong answer at that distance is 200 nats."""
    logits = np.array([[200.0, 0.0], [-1e30, 1e30]], np.float32)
    assert metrics.cross_entropy(logits[:1], np.array([1])) == 200.0
    assert metrics.cross_entropy(logits[:1], np.array([0])) == 0.0
    assert metrics.cross_entropy(logits[1:], np.array([1])) == 0.0
    assert metrics.probabilities(logits).tolist()[1] == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_loss_of_what_is_not_finite_is_nan(wrong):
    logits = np.array([[0.0, wrong], [1.0, 2.0]], np.float32)
    assert math.isnan(metrics.cross_entropy(logits, np.array([0, 1])))


def test_the_mean_is_that_of_the_single_images_rounded_once():
    """And so does not depend on their order. Added up one by one or pairwise, in float64, the sum is another."""
    generator = np.random.default_rng(2)
    logits = (generator.standard_normal((3000, 10)) * np.logspace(-8, 2, 3000)[:, None]).astype(np.float32)
    labels = generator.integers(0, 10, 3000)
    single = [metrics.cross_entropy(logits[[i]], labels[[i]]) for i in range(3000)]
    found = metrics.cross_entropy(logits, labels)
    assert found == math.fsum(single) / 3000
    assert found not in (np.cumsum(single)[-1] / 3000, np.sum(single) / 3000)


def test_of_equal_logits_the_first_counts():
    logits = np.array([[1, 3, 3], [3, 3, 1], [2, 2, 2], [0, 1, 2]], np.float32)
    assert metrics.error(logits, np.array([1, 0, 0, 2])) == 0.0
    assert metrics.error(logits, np.array([2, 1, 2, 2])) == 75.0
