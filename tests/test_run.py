"""The way of one network: its curve, its end, its divergence, and the same bytes from every interruption."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Generator

import numpy as np
import pytest
import torch
from conftest import advance, changed, drain, write_tiny_dataset

from resnet_cifar import dataset
from resnet_cifar.cells import Cell
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Engine, Outcome, Turn
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.numerics.run import DivergedError, Run
from resnet_cifar.numerics.weights import digest, serialize


def new(recipe: Recipe, data: Dataset, stretch: int = 1) -> Run:
    kind = type("Stretched", (EagerEngine,), {"stretch": stretch})
    return Run(recipe, data, kind(recipe, data, recipe.precision))


def outcome(run: Run) -> tuple[bytes, str]:
    return serialize(run.state_dict(), run.recipe.net, run.recipe.n, run.recipe.seed), run.history()


def rows(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run.history())))


@pytest.fixture(scope="module")
def finished(tiny_recipe, tiny_dataset) -> Run:
    return advance(new(tiny_recipe, tiny_dataset), 6)


def test_the_curve_has_a_point_after_every_fourth_iteration_and_the_last(finished):
    assert finished.finished
    assert list(rows(finished)[0]) == [
        *("iteration", "lr", "train_loss", "train_error", "test_loss", "test_error", "weights_sha256")
    ]
    assert [row["iteration"] for row in rows(finished)] == ["4", "6"]
    assert [row["lr"] for row in rows(finished)] == ["0.01", "0.001"]
    assert finished.history().endswith("\n")


def test_the_last_point_is_what_the_finished_network_gives(finished, tiny_dataset):
    """Worked out anew with nothing but the model: the whole test set at once, torch's loss."""
    model = CifarResNet(Architecture("resnet", 1))
    model.load_state_dict(finished.state_dict(), strict=True)
    model.eval()
    test = tiny_dataset.test
    with torch.no_grad():
        logits = model(test.images.float() / 255)
    last = rows(finished)[-1]
    wrong = (logits.argmax(1) != test.labels).sum().item()
    assert float(last["test_error"]) == 100 * wrong / 20
    expected = torch.nn.functional.cross_entropy(logits, test.labels).item()
    assert float(last["test_loss"]) == pytest.approx(expected, rel=1e-4)
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {6}


def test_a_points_digest_is_that_of_weights_statistics_and_velocities(finished):
    network = finished.engine.network
    tensors = network.state_dict() | {f"velocity.{name}": tensor for name, tensor in network.velocities().items()}
    assert len([name for name in tensors if name.startswith("velocity.")]) == len(list(network.model.parameters()))
    assert rows(finished)[-1]["weights_sha256"] == digest(tensors)
    assert rows(finished)[0]["weights_sha256"] != digest(tensors)


class Made:
    """An engine with given losses and errors, and logits that are all right."""

    name, stretch = "made", 4

    def __init__(self, data: Dataset, losses: list[float], errors: list[int]) -> None:
        self.data, self.outcomes = data, iter(zip(losses, errors, strict=True))

    def steps(self, _: object, rates: np.ndarray) -> Generator[Turn, None, Outcome]:
        losses, errors = zip(*[next(self.outcomes) for _ in rates], strict=True)
        yield Turn.WAITING
        return Outcome(np.array(losses), np.array(errors))

    def evaluate(self) -> Generator[Turn, None, dict[str, np.ndarray]]:
        yield Turn.WORKING
        return {"test": 50 * np.eye(10, dtype=np.float32)[self.data.test.labels.numpy()]}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    velocities = tensors = state_dict


def test_training_loss_and_error_are_means_since_the_last_point_rounded_once(tiny_recipe, tiny_dataset):
    """1e16 + 1 is 1e16 in float64: the first mean, 0.5, is found only by a sum that loses nothing."""
    engine: Engine = Made(tiny_dataset, [1e16, 1.0, -1e16, 1.0, 2.0, 5.0], [8, 0, 0, 0, 1, 2])
    run = Run(tiny_recipe, tiny_dataset, engine)
    drain(run.train())
    assert [row["train_loss"] for row in rows(run)] == ["0.500000", "3.500000"]
    assert [row["train_error"] for row in rows(run)] == ["25.000000", "18.750000"]  # 8 of 4 x 8, 3 of 2 x 8
    assert [row["test_error"] for row in rows(run)] == ["0.000000"] * 2
    assert run.loss == 5.0


def test_what_is_said_at_each_turn(tiny_recipe, tiny_dataset):
    """The state is whole after the stretch and, where one is due, its evaluation: never between the two."""
    run = Run(tiny_recipe, tiny_dataset, Made(tiny_dataset, [1.0] * 6, [0] * 6))
    turns = [(turn.name, run.iteration) for turn in run.train()]
    assert turns == [
        *[("WAITING", 0), ("WORKING", 4), ("WHOLE", 4)],
        *[("WAITING", 4), ("WORKING", 6), ("WHOLE", 6)],
    ]


def test_validation_has_columns_of_its_own(tiny_recipe, tmp_path):
    data = dataset.load(write_tiny_dataset(tmp_path / "data.safetensors", validation=30))
    run = advance(new(tiny_recipe, data), 6)
    model = CifarResNet(Architecture("resnet", 1))
    model.load_state_dict(run.state_dict())
    with torch.no_grad():
        logits = model.eval()(data.validation.images.float() / 255)
    wrong = (logits.argmax(1) != data.validation.labels).sum().item()
    assert float(rows(run)[-1]["validation_error"]) == pytest.approx(100 * wrong / 30, abs=1e-6)


@pytest.mark.parametrize("stretch", [2, 3, 250])
def test_how_many_iterations_a_call_has_changes_no_byte(finished, tiny_recipe, tiny_dataset, stretch):
    assert outcome(advance(new(tiny_recipe, tiny_dataset, stretch), 6)) == outcome(finished)


@pytest.mark.parametrize("stretch", [1, 3])
@pytest.mark.parametrize("iteration", range(1, 7))
def test_resumed_at_any_iteration_the_same_bytes(finished, tiny_recipe, tiny_dataset, iteration, stretch):
    """Weights and history; between and at points of the curve, and when all iterations are done."""
    tensors, rest = advance(new(tiny_recipe, tiny_dataset, stretch), iteration).saved()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    again = new(tiny_recipe, tiny_dataset, stretch)
    again.restore(tensors, json.loads(json.dumps(rest)))
    assert iteration <= again.iteration <= iteration + 2
    assert outcome(advance(again, 6)) == outcome(finished)


def test_a_resumed_run_in_half_precision(tiny_recipe, tiny_dataset):
    half = dataclasses.replace(tiny_recipe, precision="bf16")
    whole = outcome(advance(new(half, tiny_dataset), 6))
    saved = advance(new(half, tiny_dataset), 3).saved()
    again = new(half, tiny_dataset)
    again.restore(*saved)
    assert outcome(advance(again, 6)) == whole


def test_a_loss_that_is_not_finite_ends_the_run_at_its_iteration(tiny_recipe, tiny_dataset):
    """At iterations 1 to 3 the rate is 1e18; whatever the stretch is, the same iteration is named."""
    wild = dataclasses.replace(tiny_recipe, lr=1e18)
    named = set()
    for stretch in (1, 4):
        with pytest.raises(DivergedError) as caught:
            advance(new(wild, tiny_dataset, stretch), 6)
        named.add((caught.value.what, caught.value.iteration))
    ((what, iteration),) = named
    assert what == "the loss"
    assert iteration > 1
    assert math.isfinite(advance(new(wild, tiny_dataset), iteration - 1).loss)


def test_a_last_update_that_is_not_finite_is_no_finished_run(tiny_recipe, tiny_dataset):
    """The rate of the sixth iteration is 1e37: its loss is finite, and what it leaves is not."""
    wild = dataclasses.replace(tiny_recipe, milestones=(5,), gamma=1e38)
    with pytest.raises(DivergedError) as caught:
        advance(new(wild, tiny_dataset), 6)
    assert (caught.value.what, caught.value.iteration) == ("the evaluation's loss", 6)


@pytest.mark.parametrize("net", ["resnet", "plain"])
def test_a_second_run_has_the_same_bytes(tiny_study, tiny_dataset, net):
    """Twice in one process: nothing is left behind by the first run that the second one sees."""
    made = changed(tiny_study, weight_decay=0.01).recipe(Cell(net, 2, 1))
    assert outcome(advance(new(made, tiny_dataset), 6)) == outcome(advance(new(made, tiny_dataset), 6))
