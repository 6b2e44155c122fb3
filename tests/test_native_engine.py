"""The native engine as a cell's driver: whole runs, their golden hashes, and the eager engine beside it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, drain, needs_native
from native_runs import integers

from resnet_cifar.errors import InputError
from resnet_cifar.native.engine import NativeEngine, compute_logits
from resnet_cifar.native.library import Library, load
from resnet_cifar.native.sets import FAST, runnable
from resnet_cifar.numerics import bits
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Turn
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.numerics.run import DivergedError, Run
from resnet_cifar.numerics.weights import digest

pytestmark = needs_native
GOLDEN = json.loads((ROOT / "tests/golden/cells.json").read_text())
BASE = {
    "seed": 3,
    "shortcut": "A",
    "iterations": 6,
    "batch_size": 20,  # one chunk of 16 images and a shorter one
    "lr": 0.1,
    "milestones": (4,),
    "gamma": 0.1,
    "warmup_iterations": 1,
    "warmup_lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "precision": "fp32",
    "eval_every": 4,
}
RECIPES = {
    "resnet-3": Recipe(net="resnet", n=3, normalize="pixel_mean", **BASE),
    "plain-1": Recipe(net="plain", n=1, normalize="channel", **BASE),
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Made of integers alone: 50 training, 21 test and 5 validation images, statistics with short fractions."""
    tensors = {
        f"{name}_{kind}": torch.from_numpy(integers(0, f"{name} {kind}", shape, 0, top).astype(np.uint8))
        for name, count in (("train", 50), ("test", 21), ("validation", 5))
        for kind, shape, top in (("images", (count, 3, 32, 32), 255), ("labels", (count,), 9))
    }
    for name, shape in (("pixel_mean", (3, 32, 32)), ("channel_mean", (3, 1, 1)), ("channel_std", (3, 1, 1))):
        drawn = integers(0, name, shape, 200, 600) / 1024
        tensors[name] = torch.from_numpy(drawn.astype(np.float32))
    return Dataset.of(tensors)


def library(name: str) -> Library:
    return load(name, print)


def test_one_number_says_which_bits():
    """The C++ and the dependency of train: an edit of one alone would leave stale cells believed, or all stale."""
    assert library(runnable(FAST)[0].name).bits == bits.NATIVE == GOLDEN["bits"]


def trained(recipe: Recipe, data: Dataset, name: str, threads: int) -> Run:
    run = Run(recipe, data, NativeEngine(recipe, data, library(name), threads))
    drain(run.train())
    return run


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", [each.name for each in runnable(FAST)])
@pytest.mark.parametrize("network", RECIPES)
def test_golden_hashes_of_cells(network, name, threads, data):
    """How they were confirmed stands in the file. Where they change, numerics/bits.py must be raised with them."""
    run = trained(RECIPES[network], data, name, threads)
    history = hashlib.sha256(run.history().encode()).hexdigest()
    assert {"weights": digest(run.state_dict()), "history": history} == GOLDEN["sha256"][network]


@pytest.mark.parametrize("network", RECIPES)
def test_the_driver_is_the_eager_one_to_rounding(network, data):
    """The same batches, rates, order of images, statistics and evaluation: nothing but rounding differs."""
    recipe = replace(RECIPES[network], lr=0.01, warmup_lr=0.001)  # at higher rates rounding grows
    run = trained(recipe, data, runnable()[0].name, 1)
    eager = Run(recipe, data, EagerEngine(recipe, data, "fp32"))
    drain(eager.train())
    ours, theirs = ([line.split(",") for line in each.history().splitlines()] for each in (run, eager))
    assert ours[0] == theirs[0]
    for mine, its in zip(ours[1:], theirs[1:], strict=True):
        assert mine[:2] == its[:2]
        loss, error = range(2, len(mine) - 1, 2), range(3, len(mine) - 1, 2)
        assert [float(mine[i]) for i in loss] == pytest.approx([float(its[i]) for i in loss], rel=2e-3)
        assert [mine[i] for i in error] == [its[i] for i in error]
    weights, expected = run.state_dict(), eager.state_dict()
    assert weights.keys() == expected.keys()
    for key, tensor in weights.items():
        assert tensor.dtype == expected[key].dtype
        torch.testing.assert_close(tensor, expected[key], rtol=5e-3, atol=5e-3)


def test_a_resumed_run_has_the_same_bytes_with_another_set_and_other_threads(data):
    recipe = RECIPES["resnet-3"]
    whole = trained(recipe, data, runnable(FAST)[0].name, 2)
    first = Run(recipe, data, NativeEngine(recipe, data, library(runnable(FAST)[0].name), 1))
    turns = first.train()
    while next(turns) is not Turn.WHOLE or first.iteration < 4:
        pass
    tensors, rest = first.saved()
    second = Run(recipe, data, NativeEngine(recipe, data, library(runnable(FAST)[-1].name), 3))
    second.restore(*json_round_trip(tensors, rest))
    drain(second.train())
    assert second.history() == whole.history()
    assert digest(second.state_dict()) == digest(whole.state_dict())


def json_round_trip(tensors: dict, rest: dict) -> tuple[dict, dict]:
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(rest))


def test_the_checkpoint_gives_the_logits_of_the_curve(data):
    """So that the last point of the curve is the table's number."""
    run = trained(RECIPES["resnet-3"], data, runnable()[0].name, 1)
    model = CifarResNet(Architecture("resnet", 3))
    model.load_state_dict(run.state_dict())
    expected = drain(run.engine.evaluate())["test"]
    found = compute_logits(library(runnable()[0].name), 2, model.eval(), data.test)
    assert np.array_equal(found, expected)


def test_the_documents_snippet_has_the_same_bytes_with_every_set(data):
    """Seven classes, on arrays of a user's own."""
    blocks = (ROOT / "docs/native.md").read_text().split("```python\n")[1:]
    (snippet,) = [block.partition("```")[0] for block in blocks if "NativeEngine" in block]
    for given, small in {
        '2000, "batch_size": 128, "eval_every": 500': '4, "batch_size": 20, "eval_every": 2',
        "(1000, 1500)": "(2, 3)",
    }.items():
        assert snippet.count(given) == 1
        snippet = snippet.replace(given, small)
    images = {"x": data.train.images.numpy(), "held_x": data.test.images.numpy()}
    labels = {"y": data.train.labels.numpy(), "held_y": data.test.labels.numpy()}
    names: dict = images | {name: (label % 7).astype(np.uint8) for name, label in labels.items()}
    exec(snippet, names)
    run = names["run"]
    assert [line.split(",")[0] for line in run.history().splitlines()] == ["iteration", "2", "4"]
    with torch.inference_mode():
        logits = names["model"].eval()(data.test.images / 255)
    wrong = 100 * (logits.argmax(1) != data.test.labels % 7).double().mean()
    assert logits.shape[1] == 7
    assert f"{wrong:.6f}" in run.history().splitlines()[-1]
    for each in runnable(FAST):
        engine = NativeEngine(run.recipe, names["data"], library(each.name), threads=3, classes=7)
        again = Run(run.recipe, names["data"], engine)
        drain(again.train())
        assert again.history() == run.history()


@pytest.mark.parametrize(
    ("rates", "what", "iteration"),
    [
        ({"lr": 3e38}, "the loss", 3),  # from the second iteration on
        ({"milestones": (5,), "gamma": 3e39}, "the evaluation's loss", 6),  # in the last iteration
    ],
)
def test_a_rate_that_throws_the_weights_out_ends_the_run_after_its_iteration(data, rates, what, iteration):
    recipe = replace(RECIPES["plain-1"], **rates)
    run = Run(recipe, data, NativeEngine(recipe, data, library(runnable()[0].name), 1))
    with pytest.raises(DivergedError) as caught:
        drain(run.train())
    assert (caught.value.what, caught.value.iteration) == (what, iteration)


def test_logits_of_a_network_that_is_not_finite_are_not_made_up(data):
    model = CifarResNet(Architecture("plain", 1))
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    assert not np.isfinite(compute_logits(library(runnable()[0].name), 1, model, data.test)).any()


def test_projections_are_refused_and_not_left_out(data):
    recipe = replace(RECIPES["resnet-3"], shortcut="B")
    for compute in (
        lambda loaded: NativeEngine(recipe, data, loaded, 1),
        lambda loaded: compute_logits(loaded, 1, CifarResNet(Architecture("resnet", 3, "B")), data.test),
    ):
        with pytest.raises(
            InputError, match=r"^The native engine has no network with shortcut 'B'; it should be 'A'\.$"
        ):
            compute(library(runnable()[0].name))


@pytest.mark.parametrize("classes", [0, 1, 17])
def test_a_number_of_classes_that_is_not_possible_is_a_sentence(data, classes):
    with pytest.raises(InputError, match=f"{classes} classes.* is not possible; it should be .*2 to 16 classes"):
        NativeEngine(RECIPES["plain-1"], data, library(runnable()[0].name), 1, classes)


def test_a_label_that_the_network_does_not_have_is_a_sentence(data):
    wrong = Dataset(**{**vars(data), "train": type(data.train)(data.train.images, data.train.labels + 6)})
    engine = NativeEngine(RECIPES["plain-1"], wrong, library(runnable()[0].name), 1)
    run = Run(RECIPES["plain-1"], wrong, engine)
    with pytest.raises(InputError, match="label"):
        drain(run.train())
