"""The random numbers of a run against PCG64 in Python's integers, their distribution, and golden hashes."""

import hashlib
import itertools
import math
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from resnet_cifar.numerics.initialization import initialize
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.randomness import epoch, normals
from resnet_cifar.numerics.weights import digest
from resnet_cifar.params import Cells

# ---- A second implementation, slow and plain: O'Neill 2014, "PCG", and the seed sequence that NumPy keeps fixed.

MASK_32, MASK_64, MASK_128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def seed_words(entropy: list[int]) -> list[int]:
    """Eight 32-bit words of a seed sequence with up to four 32-bit words of entropy."""
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & MASK_32
        value = value * constant & MASK_32
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (x * 0xCA01F9DD - y * 0x4973F715) & MASK_32
        return value ^ value >> 16

    pool = [hashed(value) for value in (entropy + [0] * 4)[:4]]
    for source, target in itertools.product(range(4), range(4)):
        if source != target:
            pool[target] = mixed(pool[target], hashed(pool[source]))
    constant = 0x8B51F9DD
    words = []
    for index in range(8):
        value = pool[index % 4] ^ constant
        constant = constant * 0x58F38DED & MASK_32
        value = value * constant & MASK_32
        words.append(value ^ value >> 16)
    return words


def pcg64(seed: int, role: int, part: int) -> Iterator[int]:
    """The 64-bit words of PCG-XSL-RR-128/64."""
    low = seed_words([seed, role, part])
    a, b, c, d = (low[2 * index] | low[2 * index + 1] << 32 for index in range(4))
    state, increment = a << 64 | b, ((c << 64 | d) << 1 | 1) & MASK_128
    state = ((increment + state) * MULTIPLIER + increment) & MASK_128
    while True:
        state = (state * MULTIPLIER + increment) & MASK_128
        value, turn = (state >> 64 ^ state) & MASK_64, state >> 122
        yield (value >> turn | value << (64 - turn)) & MASK_64


def slow_epoch(seed: int, number: int, images: int) -> list[list[int]]:
    keys = list(itertools.islice(pcg64(seed, 0, number), images))
    crops = list(itertools.islice(pcg64(seed, 1, number), images))
    flips = list(itertools.islice(pcg64(seed, 2, number), images))
    index = sorted(range(images), key=keys.__getitem__)
    return [
        index,
        [(word & MASK_32) * 9 // 2**32 for word in crops],
        [(word >> 32) * 9 // 2**32 for word in crops],
        [word >> 63 for word in flips],
    ]


def slow_normals(seed: int, part: int, count: int) -> list[float]:
    """Marsaglia's polar method with the system's logarithm; u's words come first in each block, then v's."""
    words = pcg64(seed, 3, part)
    found: list[float] = []
    while len(found) < count:
        numbers = [(word >> 11) / 2**52 - 1 for word in itertools.islice(words, 8192)]
        for u, v in zip(numbers[:4096], numbers[4096:], strict=True):
            square = u * u + v * v
            if 0 < square < 1:
                factor = math.sqrt(-2 * math.log(square) / square)
                found += [u * factor, v * factor]
    return found[:count]


# ---- Equal to it


@pytest.mark.parametrize(("seed", "role", "part"), [(0, 0, 0), (4, 3, 18), (2**32 - 1, 1, 163)])
def test_numpys_words_are_those_of_pcg64(seed, role, part):
    made = np.random.PCG64(np.random.SeedSequence([seed, role, part])).random_raw(100)
    assert made.tolist() == list(itertools.islice(pcg64(seed, role, part), 100))


@pytest.mark.parametrize(("seed", "number", "images"), [(0, 0, 1000), (3, 163, 777), (2**32 - 1, 1, 10)])
def test_an_epoch_is_what_pcg64_gives(seed, number, images):
    drawn = epoch(seed, number, images)
    assert [array.tolist() for array in drawn] == slow_epoch(seed, number, images)
    assert [array.dtype for array in drawn] == [np.int32, np.uint8, np.uint8, np.uint8]


def test_normals_are_those_of_the_systems_logarithm_to_rounding():
    """The logarithm is within three units in the last place (tests/test_elementary.py); its root halves that."""
    made = normals(seed=5, part=2, count=20_000)
    expected = np.array(slow_normals(5, 2, 20_000))
    assert (np.abs(made - expected) <= 1e-15 * np.abs(expected)).all()


# ---- Golden: they change with what every trained network began from, and with nothing else.

# Of the index as little-endian int32, then top, left and flip as bytes, of the first, second and last epoch of 64,000
# iterations on CIFAR-10, by seed and number of the epoch.
EPOCHS = {
    (0, 0): "71e8f25e4307cc79554192f06fe213984c482328813aef5e7c0a79196d3ee2da",
    (0, 1): "0a11f73b80c62677040e6c6fae277beb272ffe7e0b08e5bfec2cfd57c1a9c2d9",
    (4, 163): "500beda8ad4e512a37c46c675ec9d1e5e3de735496452751373c65cc6334fc41",
}
# Of the initial state of ResNet-8, by seed.
WEIGHTS_OF_RESNET_8 = {
    0: "930a04a8582b454a7912a1bc33aaeebd3027bd890f6b1d475648dd1ceeaf9050",
    1: "de9c37cf7a9d76814052da322e52ab0d1b1e408b69fd1ea25d021db7438d30d9",
}


@pytest.mark.parametrize(("seed", "number"), EPOCHS)
def test_golden_epochs_by_both_implementations(seed, number):
    index, *rest = slow_epoch(seed, number, 50_000)
    slow = struct.pack("<50000i", *index) + b"".join(map(bytes, rest))
    assert hashlib.sha256(slow).hexdigest() == EPOCHS[seed, number]
    index, *rest = epoch(seed, number, 50_000)
    fast = index.astype("<i4").tobytes() + b"".join(array.tobytes() for array in rest)
    assert hashlib.sha256(fast).hexdigest() == EPOCHS[seed, number]


@pytest.mark.parametrize("seed", WEIGHTS_OF_RESNET_8)
def test_golden_weights_and_that_they_are_he_initialisation_of_the_slow_normals(seed):
    model = CifarResNet(Architecture("resnet", 1))
    initialize(model, seed)
    shapes = [(16, 3, 3, 3)]
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        shapes += [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
    shapes += [(10, 64)]
    weights = [tensor for tensor in model.state_dict().values() if tensor.dim() in (2, 4)]
    for part, (tensor, shape) in enumerate(zip(weights, shapes, strict=True)):
        fan_in = math.prod(shape[1:])  # equation (10) of "Delving Deep into Rectifiers"
        drawn = np.array(slow_normals(seed, part, math.prod(shape))) * math.sqrt(2 / fan_in)
        assert np.array_equal(tensor.numpy(), drawn.astype(np.float32).reshape(shape))
    assert not model.fc.bias.any()
    assert digest(model.state_dict()) == WEIGHTS_OF_RESNET_8[seed]


# Of the initial state of ResNet-8 with seed 0, by kind.
WEIGHTS_OF_OTHER_KINDS = {
    "pytorch": "5118d52a6afd92fafbd5fe74a73bd2a27d9910fb66cb0b465fda5f945dc09b1d",
    "he_convolutions": "37c391e4e40518ed506fb476824654713ce0718e20efdfaeb11266f7c75806fe",
}


def test_golden_weights_of_pytorchs_kind_and_that_they_are_the_slow_uniforms():
    """torch.nn.Conv2d and Linear: kaiming_uniform_(a=sqrt(5)), so up to 1/sqrt(fan-in), and the bias likewise."""
    model = CifarResNet(Architecture("resnet", 1))
    initialize(model, 0, "pytorch")
    weights = [(name, tensor) for name, tensor in model.state_dict().items() if tensor.dim() in (2, 4)]
    for part, (name, tensor) in enumerate(weights):
        bound = math.sqrt(1 / tensor[0].numel())
        numbers = itertools.islice(pcg64(0, 3, part), tensor.numel() + len(tensor))
        drawn = (np.array([(word >> 11) / 2**52 - 1 for word in numbers]) * bound).astype(np.float32)
        assert np.array_equal(tensor.numpy().reshape(-1), drawn[: tensor.numel()])
        if name == "fc.weight":
            assert np.array_equal(model.fc.bias.detach().numpy(), drawn[tensor.numel() :])
    assert digest(model.state_dict()) == WEIGHTS_OF_OTHER_KINDS["pytorch"]


def test_the_bounds_are_those_of_torchs_own_default():
    """Of each layer the largest of many numbers, ours and torch's, is within a hundredth of 1/sqrt(fan-in)."""
    torch.manual_seed(0)
    own, made = CifarResNet(Architecture("resnet", 1)), CifarResNet(Architecture("resnet", 1))
    initialize(made, 0, "pytorch")
    for name in ("layer1.0.conv2.weight", "layer2.0.conv1.weight", "layer3.0.conv2.weight"):
        bound = 1 / math.sqrt(own.state_dict()[name][0].numel())
        for model in (own, made):
            assert model.state_dict()[name].abs().max().item() == pytest.approx(bound, rel=0.01)
            assert model.state_dict()[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_he_convolutions_are_hes_and_their_classifier_pytorchs():
    states = {}
    for kind in ("he", "he_convolutions", "pytorch"):
        model = CifarResNet(Architecture("resnet", 1))
        initialize(model, 0, kind)
        states[kind] = model.state_dict()
    for name, tensor in states["he_convolutions"].items():
        assert torch.equal(tensor, states["pytorch" if name.startswith("fc.") else "he"][name])
    assert digest(states["he_convolutions"]) == WEIGHTS_OF_OTHER_KINDS["he_convolutions"]
    assert digest(states["he"]) == WEIGHTS_OF_RESNET_8[0]


# ---- Distribution, and what a stream depends on


def test_normals_are_normal_and_independent_of_their_neighbours():
    drawn = normals(seed=0, part=0, count=200_000)
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert stats.kstest(drawn[::2], drawn[1::2]).pvalue > 0.001  # the two numbers of a pair
    assert abs(np.corrcoef(drawn[::2], drawn[1::2])[0, 1]) < 5 / math.sqrt(100_000)
    assert abs(np.corrcoef(drawn[::2] ** 2, drawn[1::2] ** 2)[0, 1]) < 5 / math.sqrt(100_000)


def test_crops_and_flips_are_uniform_and_independent():
    drawn = epoch(seed=1, number=7, images=50_000)
    table = np.zeros((9, 9, 2))
    np.add.at(table, (drawn.top, drawn.left, drawn.flip), 1)
    assert stats.chisquare(table.reshape(-1)).pvalue > 0.001  # all 162 combinations equally often
    assert stats.chi2_contingency(table.reshape(81, 2)).pvalue > 0.001


def test_an_order_is_a_permutation_of_every_image_each_place_as_likely():
    places = np.zeros((10, 10))
    for number in range(2000):
        order = epoch(seed=2, number=number, images=10).index
        assert sorted(order.tolist()) == list(range(10))
        np.add.at(places, (np.arange(10), order), 1)
    assert stats.chisquare(places.reshape(-1), ddof=18).pvalue > 0.001  # rows and columns add up to 2,000 each


def test_what_is_drawn_does_not_depend_on_how_much_or_on_what_was_drawn_before():
    assert np.array_equal(normals(3, 1, 10_000)[:10], normals(3, 1, 10))
    alone = epoch(3, 20, 100)
    for number in range(20):
        epoch(3, number, 100)
    assert all(map(np.array_equal, epoch(3, 20, 100), alone))


def test_seeds_and_parts_have_streams_of_their_own():
    """For all seeds that a study may have. A seed of more than 32 bits would take a second word of the entropy."""
    keys = list(itertools.product((0, 1, 2**32 - 1), (0, 1, 163)))
    assert len({normals(*key, 1)[0] for key in keys}) == len(keys)
    assert len({epoch(*key, 100).index.tobytes() for key in keys}) == len(keys)
    assert Cells.model_validate({"net": ["resnet"], "n": [3], "seed": [2**32 - 1]})
    with pytest.raises(ValueError, match="less than 4294967296"):
        Cells.model_validate({"net": ["resnet"], "n": [3], "seed": [2**32]})
