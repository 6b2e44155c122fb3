"""The native engine: the same bits on every instruction set, right to float64's numbers, refusing what it cannot do."""

import ctypes
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import native_runs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, needs_native
from native_runs import (
    COUNT,
    MOMENTUM,
    TINY,
    WEIGHT_DECAY,
    Run,
    fractions,
    make_batches,
    make_images,
    make_state,
    outcome,
)
from numpy.typing import NDArray

from resnet_cifar.errors import InputError
from resnet_cifar.native import sets
from resnet_cifar.native.library import Library, load
from resnet_cifar.native.network import Batches, Images, NativeNetwork, NonFinite, State
from resnet_cifar.numerics import batches
from resnet_cifar.numerics.models import Architecture, CifarResNet

pytestmark = needs_native
GOLDEN = json.loads((ROOT / "tests/golden/native.json").read_text())
BATCH = 20


@pytest.fixture(scope="module")
def library() -> Library:
    """The fastest one of this machine."""
    return load(None, print)


@pytest.fixture
def network(library) -> NativeNetwork:
    return NativeNetwork(library, "resnet", 1, BATCH, threads=1)


def copy(state: State) -> State:
    return State(state.weights.copy(), state.velocity.copy(), state.statistics.copy())


def same(x: State, y: State) -> bool:
    """Bit by bit."""
    return all(getattr(x, name).tobytes() == getattr(y, name).tobytes() for name in vars(x))


def train(network: NativeNetwork, state: State, images: Images, seen: Batches, lr: float = 0.1) -> NDArray[np.float64]:
    return network.train(images, state, seen, [lr] * len(seen.index), MOMENTUM, WEIGHT_DECAY)[0]


# ---- The bits


@pytest.mark.parametrize("name", [each.name for each in sets.runnable(sets.FAST)])
@pytest.mark.parametrize("run", native_runs.RUNS, ids=lambda run: run.name)
def test_the_bits_are_the_golden_ones(name, run):
    library = load(name, print)
    assert library.set == name
    assert library.bits == GOLDEN["bits"]
    assert outcome(library, run, threads=1).digest(run.n) == GOLDEN["sha256"][run.name]


def test_the_plain_set_gives_the_golden_bits():
    """It is slow to run, and a minute to compile the first time."""
    assert outcome(load("plain", print), TINY, threads=1).digest(TINY.n) == GOLDEN["sha256"][TINY.name]


@pytest.mark.parametrize("batch", [3, 19])
def test_the_bits_of_groups_that_are_not_full_are_those_of_every_set(library, batch):
    run = Run("resnet", 1, 2, batch)
    expected = outcome(library, run, threads=1).digest(run.n)
    found = {outcome(load(each.name, print), run, 3).digest(run.n) for each in sets.runnable(sets.FAST)}
    assert found == {expected}


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(library, threads):
    run = replace(native_runs.RUNS[1], batch=40)
    assert outcome(library, run, threads).digest(run.n) == outcome(library, run, 1).digest(run.n)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_floating_point_mode_changes_no_bit_and_is_left_as_it_was(library, threads):
    run = native_runs.RUNS[1]
    network = NativeNetwork(library, run.net, run.n, run.batch, threads)
    images, state, seen = make_images(), make_state(run.n), make_batches(run.steps, run.batch)
    rates = native_runs.rates(run.steps)
    libm, toward_zero = ctypes.CDLL("libm.so.6"), {"x86_64": 0xC00, "aarch64": 0xC00000}[platform.machine()]
    torch.set_flush_denormal(True)
    libm.fesetround(toward_zero)
    try:
        losses, errors = network.train(images, state, seen, rates, MOMENTUM, WEIGHT_DECAY)
        logits = network.logits(images, state, 0, COUNT)
        left = libm.fegetround(), (torch.tensor([1e-310], dtype=torch.float64) * 1).item()
    finally:
        libm.fesetround(0)
        torch.set_flush_denormal(False)
    assert left == (toward_zero, 0.0)
    found = native_runs.Outcome(state, losses, errors, logits)
    assert found.digest(run.n) == GOLDEN["sha256"][run.name]


def test_steps_at_once_or_one_by_one(network):
    images, seen = make_images(), make_batches(3, BATCH)
    at_once, one_by_one = make_state(1), make_state(1)
    train(network, at_once, images, seen)
    for step in range(3):
        row = Batches(*(getattr(seen, name)[step : step + 1] for name in vars(seen)))
        train(network, one_by_one, images, row)
    assert same(at_once, one_by_one)


def test_the_working_memory_carries_nothing_over(library):
    """A network that has seen another state and larger batches is as a new one."""
    used, new = (NativeNetwork(library, "resnet", 1, size, threads=1) for size in (40, BATCH))
    train(used, make_state(1, seed=1), make_images(1), make_batches(2, 40, seed=1))
    states = make_state(1), make_state(1)
    for network, state in zip((used, new), states, strict=True):
        train(network, state, make_images(), make_batches(2, BATCH))
    assert same(*states)


# ---- The numbers, against float64


def reference(run: Run, images: Images, state: State, network: NativeNetwork) -> CifarResNet:
    """The same network in float64."""
    model = CifarResNet(Architecture(run.net, run.n)).double()
    tensors = network.weights.unpack(state.weights) | network.statistics.unpack(state.statistics)
    missing, unexpected = model.load_state_dict(torch_tensors(tensors), strict=False)
    assert not unexpected
    assert all(name in ("mean", "std") or name.endswith("num_batches_tracked") for name in missing)
    model.set_normalization(torch.from_numpy(images.mean), torch.from_numpy(images.std)[:, None, None])
    return model


def torch_tensors(tensors: dict[str, NDArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def augmented(model: CifarResNet, images: Images, seen: Batches) -> torch.Tensor:
    """The first batch as the first convolution sees it."""
    pixels = torch.from_numpy(images.images[seen.index[0]]).double() / 255
    drawn = (torch.from_numpy(getattr(seen, name)[0]) for name in ("top", "left", "flip"))
    top, left, flip = drawn
    return batches.augment(model.normalize(pixels), top, left, flip.bool())


def distance(x: NDArray, y: NDArray) -> float:
    """Of ``x`` from ``y``, relative to the length of ``y``."""
    return float(np.linalg.norm(x.astype(np.float64) - y) / np.linalg.norm(y))


# fp32 and Winograd's F(4x4) leave about 2e-6, ten times that in a plain network of depth 20, which is steeper, and in a
# ResNet-56. A batch of 128 is eight chunks; one of 3 or 19 images ends with a group that is not full, at 32 and at 64
# channels. The seeds are those of batches in which no unit's input is so near 0 that rounding decides its sign: one of
# them moves the gradient by up to 1e-2.
@pytest.mark.parametrize(
    ("run", "bound"),
    [
        (Run("resnet", 1, 1, seed=11), 1e-5),
        (Run("plain", 1, 1, seed=4), 1e-5),
        (Run("resnet", 3, 1, seed=14), 1e-5),
        (Run("resnet", 1, 1, batch=128, seed=18), 1e-5),
        (Run("resnet", 1, 1, batch=3, seed=2), 1e-5),
        (Run("resnet", 1, 1, batch=19, seed=3), 1e-5),
        (Run("plain", 3, 1, batch=2, seed=7), 5e-5),
        (Run("resnet", 9, 1, batch=2, seed=9), 5e-5),
    ],
    ids=["resnet-1", "plain-1", "resnet-3", "batch-128", "batch-3", "batch-19", "plain-3", "resnet-9"],
)
def test_a_step_is_float64s(library, run, bound):
    network = NativeNetwork(library, run.net, run.n, run.batch, threads=1)
    images, state, seen = make_images(run.seed), make_state(run.n, run.seed), make_batches(1, run.batch, run.seed)
    state.velocity[:] = make_state(run.n, run.seed + 1).weights / 8
    former = {
        name: fractions(run.seed, name, place.shape, -100, 100) + np.float32(name.endswith("var"))
        for name, place in network.statistics.places.items()
    }
    network.statistics.pack(former, state.statistics)
    before = copy(state)
    model = reference(run, images, state, network)
    logits = model.forward_head(model.features(augmented(model, images, seen)))
    labels = torch.from_numpy(images.labels[seen.index[0]]).long()
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    gradient, native_loss, native_errors = network.gradient(images, state, seen)
    assert native_loss == pytest.approx(loss.item(), rel=1e-6)
    assert native_errors == (logits.argmax(1) != labels).sum()
    assert same(replace(state, statistics=before.statistics), before)
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    for name, tensor in network.weights.unpack(gradient).items():
        assert distance(tensor, expected[name]) < bound, name
    expected = {name: tensor.numpy() for name, tensor in model.named_buffers()}
    found = network.statistics.unpack(state.statistics)
    for mean, var in zip(list(found)[::2], list(found)[1::2], strict=True):
        np.testing.assert_allclose(found[var], expected[var], rtol=3e-6)
        deviation = np.sqrt((expected[var] - 0.9 * former[var]) / 0.1)
        assert (np.abs(found[mean] - expected[mean]) < 5e-7 * deviation).all(), mean

    stepped = copy(before)
    losses, errors = network.train(images, stepped, seen, [0.1], MOMENTUM, WEIGHT_DECAY)
    assert (losses[0], errors[0]) == (native_loss, native_errors)
    assert stepped.statistics.tobytes() == state.statistics.tobytes()
    # From the engine's own gradient, so that what is left is the update's rounding.
    velocity = MOMENTUM * before.velocity.astype(np.float64) + gradient + WEIGHT_DECAY * before.weights
    assert distance(stepped.velocity, velocity) < 2e-7
    assert distance(stepped.weights, before.weights - 0.1 * velocity) < 2e-7


@pytest.mark.parametrize("bias", [[0.0] * 10, [0, 7, 0, 7, 0, 0, 0, 0, 0, -7], [0, 500, 0, 0, 0, 0, 0, 0, 0, 0]])
def test_loss_and_errors_by_hand(network, bias):
    """A classifier of biases alone; of equal logits the first one is the prediction."""
    images, state, seen = make_images(), make_state(1), make_batches(1, BATCH)
    tensors = network.weights.unpack(state.weights)
    tensors |= {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.float32(bias)}
    network.weights.pack(tensors, state.weights)
    gradient, loss, errors = network.gradient(images, state, seen)
    labels = images.labels[seen.index[0]]
    largest = max(bias)
    shares = np.exp(np.subtract(bias, largest)) / np.exp(np.subtract(bias, largest)).sum()
    assert loss == pytest.approx(np.mean([largest - np.log(shares[bias.index(largest)]) - bias[k] for k in labels]))
    assert errors == (labels != bias.index(largest)).sum()
    expected = shares - np.bincount(labels, minlength=10) / BATCH
    np.testing.assert_allclose(network.weights.unpack(gradient)["fc.bias"], expected, atol=1e-7)


@pytest.mark.parametrize(("bias", "counts"), [(50.0, True), (80.0, False)])
def test_a_gradient_below_two_to_the_minus_90_is_zero(network, bias, counts):
    """Of the logits of a sure batch: exp(-50) / 20 and less is about 2^-76, exp(-80) / 20 about 2^-120."""
    images, state, seen = make_images(), make_state(1), make_batches(1, BATCH)
    images = replace(images, labels=np.zeros_like(images.labels))
    tensors = network.weights.unpack(state.weights)
    tensors |= {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.float32([bias] + [0.0] * 9)}
    network.weights.pack(tensors, state.weights)
    gradient = network.weights.unpack(network.gradient(images, state, seen)[0])["fc.bias"]
    expected = np.full(9, np.exp(-bias) * counts)
    np.testing.assert_allclose(gradient[1:], expected, rtol=1e-6)


def test_padding_stays_zero(network):
    """The columns of the classifier and the statistics that the network does not have."""
    state = make_state(1)
    train(network, state, make_images(), make_batches(2, BATCH))
    for layout, vector in ((network.weights, state.weights), (network.statistics, state.statistics)):
        packed = np.ones_like(vector)
        layout.pack(layout.unpack(vector), packed)
        assert packed.tobytes() == vector.tobytes()


def test_any_number_of_classes(library):
    """Two here: the logits are those of a network of ten whose other eight nobody reads."""
    ten, two = (NativeNetwork(library, "resnet", 1, BATCH, 1, classes) for classes in (10, 2))
    state = make_state(1)
    tensors = ten.weights.unpack(state.weights)
    tensors |= {"fc.weight": tensors["fc.weight"][:2], "fc.bias": tensors["fc.bias"][:2]}
    fewer = copy(state)
    two.weights.pack(tensors, fewer.weights)
    images = replace(make_images(), labels=make_images().labels % 2)
    expected = ten.logits(images, state, 0, BATCH)[:, :2]
    assert two.logits(images, fewer, 0, BATCH).tobytes() == np.ascontiguousarray(expected).tobytes()
    losses = train(two, fewer, images, make_batches(1, BATCH))
    assert np.isfinite(losses).all()


# ---- Images and augmentation


def centred(count: int) -> Batches:
    """The first images as they are, in one batch."""
    index = np.arange(count, dtype=np.int32)[None]
    four, zero = np.full((1, count), 4, np.uint8), np.zeros((1, count), np.uint8)
    return Batches(index, four, four, zero)


@pytest.mark.parametrize(
    ("top", "left", "flip"), [(4, 4, 0), (4, 4, 1), (0, 0, 0), (8, 8, 0), (0, 8, 1), (8, 0, 1), (3, 6, 1)]
)
def test_a_crop_is_a_crop(network, top, left, flip):
    """Of an image whose padding is as black as the mean: then a crop of it is an image too, and gives the same bits."""
    images = replace(make_images(), mean=np.broadcast_to(np.float32(51) / np.float32(255), (3, 32, 32)).copy())
    padded = np.pad(images.images, ((0, 0), (0, 0), (4, 4), (4, 4)), constant_values=51)
    crops = padded[:, :, top : top + 32, left : left + 32]
    cropped = replace(images, images=np.ascontiguousarray(crops[..., ::-1] if flip else crops))
    seen = centred(BATCH)
    drawn = replace(seen, top=np.full_like(seen.top, top), left=np.full_like(seen.top, left), flip=seen.flip + flip)
    drawn = replace(drawn, flip=drawn.flip.astype(np.uint8))
    gradients = [
        network.gradient(*each)[0] for each in ((images, make_state(1), drawn), (cropped, make_state(1), seen))
    ]
    assert gradients[0].tobytes() == gradients[1].tobytes()


def test_flips_may_be_bool(network):
    states, seen = [make_state(1), make_state(1)], make_batches(1, BATCH)
    for state, flip in zip(states, (seen.flip, seen.flip.astype(bool)), strict=True):
        train(network, state, make_images(), replace(seen, flip=flip))
    assert same(*states)


def test_logits_are_float64s(network):
    images, state = make_images(), make_state(1)
    train(network, state, images, make_batches(2, BATCH))
    model = reference(TINY, images, state, network).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images.images).double() / 255).numpy()
    assert distance(network.logits(images, state, 0, COUNT), expected) < 2e-6


def test_logits_do_not_depend_on_company(library, network):
    images, state = make_images(), make_state(1)
    together = network.logits(images, state, 0, COUNT)
    assert np.concatenate([network.logits(images, state, i, 1) for i in range(COUNT)]).tobytes() == together.tobytes()
    assert network.logits(images, state, 7, 23).tobytes() == together[7:30].tobytes()
    small = NativeNetwork(library, "resnet", 1, 3, threads=2)
    assert small.logits(images, state, 0, COUNT).tobytes() == together.tobytes()


# ---- What is refused, and changes nothing


@pytest.mark.parametrize("vector", ["weights", "velocity"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_changes_nothing(network, vector, value):
    state = make_state(1)
    getattr(state, vector)[100] = value
    before = copy(state)
    with pytest.raises(NonFinite, match=r"^step 1 is infinite or NaN$") as raised:
        train(network, state, make_images(), make_batches(2, BATCH))
    assert raised.value.done == 0
    assert same(state, before)


def test_what_was_done_before_it_stays(network):
    """The learning rate of the second step throws the weights out."""
    states, seen = [make_state(1), make_state(1)], make_batches(4, BATCH)
    with pytest.raises(NonFinite, match=r"^step 3 is infinite or NaN$") as raised:
        network.train(make_images(), states[0], seen, [0.1, 3e38, 0.1, 0.1], MOMENTUM, WEIGHT_DECAY)
    two = Batches(*(getattr(seen, name)[:2] for name in vars(seen)))
    network.train(make_images(), states[1], two, [0.1, 3e38], MOMENTUM, WEIGHT_DECAY)
    assert same(*states)
    assert raised.value.done == 2


@pytest.mark.parametrize("name", [each.name for each in sets.runnable(sets.FAST)])
def test_logits_of_a_weight_that_is_not_a_number_are_refused(name):
    """No maximum with 0 makes one of it on the way."""
    network, state = NativeNetwork(load(name, print), "resnet", 1, BATCH, threads=1), make_state(1)
    state.weights[100] = np.nan
    with pytest.raises(NonFinite, match="infinite or NaN"):
        network.logits(make_images(), state, 0, BATCH)


def edited(seen: Batches, name: str, value: int) -> Batches:
    array = getattr(seen, name).copy()
    array[-1, -1] = value
    return replace(seen, **{name: array})


@pytest.mark.parametrize(
    ("name", "value"),
    [("index", -1), ("index", COUNT), ("index", 2**31 - 1), ("top", 9), ("left", 9), ("left", 255)],
)
def test_an_image_or_crop_that_is_not_there(network, name, value):
    state = make_state(1)
    sentence = (
        r"^A batch names an image or a crop that is not there; images should be from 0 to 44, crops from 0 to 8\.$"
    )
    seen = edited(make_batches(1, BATCH), name, value)
    for call in (
        lambda: train(network, state, make_images(), seen),
        lambda: network.gradient(make_images(), state, seen),
    ):
        with pytest.raises(InputError, match=sentence):
            call()
    assert same(state, make_state(1))


def test_a_label_that_is_no_class(network):
    state, images, seen = make_state(1), make_images(), make_batches(1, BATCH)
    labels = images.labels.copy()
    labels[seen.index[0, 3]] = 10
    for call in (train, lambda network, state, *data: network.gradient(data[0], state, data[1])):
        with pytest.raises(InputError, match=r"^A label is not a class of the network; labels should be below 10\.$"):
            call(network, state, replace(images, labels=labels), seen)
    assert same(state, make_state(1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda n, s: train(n, s, make_images(), make_batches(1, 1)), r"^A batch has 1 .* it should have 2 to 20\.$"),
        (lambda n, s: train(n, s, make_images(), make_batches(1, 21)), r"^A batch has 21 .* it should have 2 to 20\.$"),
        (lambda n, s: train(n, s, make_images(), make_batches(1, 5), np.nan), r"^A learning rate, .* not finite; all"),
        (lambda n, s: n.train(make_images(), s, make_batches(1, 5), [0.1] * 2, 0.9, 0), r"^lr has the shape \(2,\); "),
        (lambda n, s: n.gradient(make_images(), s, make_batches(2, 3)), r"^batches has 2 rows; it should have one\.$"),
        (lambda n, s: n.logits(make_images(), s, 40, 6), r"^There are no 6 images from 40 on; there are 45 in all\.$"),
        (lambda n, s: n.logits(make_images(), s, -1, 6), r"^There are no 6 images from -1 on; there are 45 in all\.$"),
        (
            lambda n, s: n.logits(make_images(), replace(s, statistics=s.velocity), 0, 1),
            r"^The state has .*; this netw",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused(network, call, sentence):
    state = make_state(1)
    with pytest.raises(InputError, match=sentence):
        call(network, state)
    assert same(state, make_state(1))


@pytest.mark.parametrize(
    ("made", "name", "change", "sentence"),
    [
        (make_images(), "labels", lambda a: a.astype(int), r"^labels is int64 of shape \(45,\); it should be uint8 of"),
        (
            make_images(),
            "labels",
            lambda a: a[1:],
            r"^labels is uint8 of shape \(44,\); it should be .* \(45\), contig",
        ),
        (make_images(), "images", lambda a: a[:, ::-1], r"^images is .*; .* uint8 of shape \(any, 3, 32, 32\), contig"),
        (
            make_images(),
            "std",
            lambda a: a[:, None],
            r"^std is float32 of shape \(3, 1\); it should be .* \(3\), contig",
        ),
        (
            make_batches(1, 5),
            "top",
            lambda a: a[:, :4],
            r"^top is uint8 of shape \(1, 4\); it should be .* \(1, 5\), co",
        ),
        (make_batches(1, 5), "flip", lambda a: a.astype(int), r"^flip is int64 of .*; it should be uint8 of shape"),
        (make_state(1), "velocity", lambda a: a[1:], r"^velocity is .*; it should be float32 of .*, contiguous and wr"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(made, name, change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(made, **{name: change(getattr(made, name))})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("dense", 1, 2, 1),
            r"^dense of n=1, .* is not possible; it should be resnet or plain, n from 1 to 10",
        ),
        (("plain", 1, 2, 1, 17), r"^plain of n=1, 17 classes, .* is not possible"),
        (("plain", 1, 65_536, 1), r"^plain of n=1, 10 classes, batches of 65536 .* batches of 1 to 65535 images"),
    ],
)
def test_a_network_that_cannot_be_is_refused(library, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        NativeNetwork(library, *arguments)


def test_arrays_that_are_only_read_are_not_written():
    state = make_state(1)
    state.weights.flags.writeable = False
    with pytest.raises(InputError, match=r"^weights is float32 of .*, contiguous and writeable\.$"):
        State(state.weights, state.velocity, state.statistics)


def test_a_missing_tensor_is_named(network):
    state = make_state(1)
    tensors = network.weights.unpack(state.weights)
    del tensors["layer2.0.bn1.bias"]
    with pytest.raises(InputError, match=r"^layer2\.0\.bn1\.bias is missing; it should have the shape \(32,\)\.$"):
        network.weights.pack(tensors, state.weights)


# ---- Processes and threads


def test_a_forked_process_computes_the_same(library):
    """The threads of the parent are not there."""
    run = native_runs.RUNS[1]
    expected = outcome(library, run, threads=2).digest(run.n)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(outcome(library, run, threads=2).digest(run.n)))
    child.start()
    child.join(timeout=120)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0
    assert queue.get() == expected


def test_of_two_callers_one_is_told_so(library):
    """One call at a time in a library: while another thread calls again and again, one of ours meets its."""
    images, over = make_images(), threading.Event()

    def keep_calling() -> None:
        network, state = NativeNetwork(library, "resnet", 1, BATCH, threads=1), make_state(1)
        while not over.is_set():
            with suppress(InputError):
                train(network, state, images, make_batches(10, BATCH))

    network, refused = NativeNetwork(library, "resnet", 1, BATCH, threads=1), ""
    other = threading.Thread(target=keep_calling)
    other.start()
    try:
        deadline = time.monotonic() + 60
        while not refused and time.monotonic() < deadline:
            state = make_state(1)
            try:
                train(network, state, images, make_batches(1, BATCH))
            except InputError as error:
                refused = str(error)
    finally:
        over.set()
        other.join()
    assert refused == "The native engine is computing in another thread; one call at a time would be right."
    assert same(state, make_state(1))


AT_EXIT = """
import threading, time
from native_runs import make_batches, make_images, make_state
from resnet_cifar.native.library import load
from resnet_cifar.native.network import NativeNetwork

network = NativeNetwork(load(None, print), "resnet", 1, 40, threads=2)
arguments = make_images(), make_state(1), make_batches(5000, 40), [1e-6] * 5000, 0.9, 0.0
threading.Thread(target=network.train, args=arguments, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.usefixtures("library")
def test_a_process_may_end_while_a_daemon_thread_computes():
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", AT_EXIT], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0


def test_a_closed_network_computes_nothing(network):
    network.close()
    network.close()
    with pytest.raises(InputError, match=r"^The native engine refused its arguments"):
        network.logits(make_images(), make_state(1), 0, 1)
