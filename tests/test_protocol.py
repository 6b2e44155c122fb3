"""The paper's schedule, and what a run is known by."""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import changed

from resnet_cifar.cells import Cell
from resnet_cifar.numerics.protocol import Recipe, learning_rates, resolve


@pytest.mark.parametrize(
    ("n", "iteration", "rate"),
    [
        (9, 1, 0.1),
        (9, 400, 0.1),
        (9, 401, 0.1),
        (9, 32_000, 0.1),
        (9, 32_001, 0.01),
        (9, 48_000, 0.01),
        (9, 48_001, 0.001),
        (9, 64_000, 0.001),
        (18, 1, 0.01),
        (18, 400, 0.01),
        (18, 401, 0.1),
        (18, 32_000, 0.1),
        (18, 32_001, 0.01),
        (18, 64_000, 0.001),
    ],
)
def test_learning_rate_of_section_4_2(paper_study, n, iteration, rate):
    (found,) = learning_rates(resolve(paper_study, "resnet", n, 0), start=iteration - 1, count=1)
    assert found.dtype == np.float32
    assert found == pytest.approx(rate, rel=1e-7)


def test_rates_of_a_stretch_are_those_of_its_iterations(tiny_recipe):
    """Milestones after 3 and 5, a warm-up of 2: iterations 1 to 6."""
    warm = dataclasses.replace(tiny_recipe, warmup_iterations=2, warmup_lr=0.5)
    expected = [0.5, 0.5, 0.1, 0.01, 0.01, 0.001]
    assert learning_rates(warm, 0, 6) == pytest.approx(expected)
    assert np.concatenate([learning_rates(warm, start, 2) for start in (0, 2, 4)]).tolist() == (
        learning_rates(warm, 0, 6).tolist()
    )
    assert learning_rates(warm, 3, 2) == pytest.approx(expected[3:5])


def test_the_rate_of_a_warm_up_longer_than_a_milestone_is_multiplied_afterwards(tiny_recipe):
    warm = dataclasses.replace(tiny_recipe, warmup_iterations=4, warmup_lr=0.5)
    assert learning_rates(warm, 0, 6) == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.01, 0.001])


def test_points_of_the_curve(tiny_recipe):
    """After every 4th iteration, and after the last."""
    made = dataclasses.replace(tiny_recipe, iterations=10, eval_every=4)
    assert [made.next_evaluation(iteration) for iteration in (0, 3, 4, 7, 8, 9)] == [4, 4, 8, 8, 10, 10]
    assert dataclasses.replace(made, eval_every=99).next_evaluation(0) == 10


@pytest.mark.parametrize(("n", "iterations", "rate"), [(17, 0, 0.1), (18, 400, 0.01), (19, 400, 0.01)])
def test_the_warm_up_is_for_deep_networks(paper_study, n, iterations, rate):
    made = resolve(paper_study, "resnet", n, 0)
    assert (made.warmup_iterations, made.warmup_lr) == (iterations, rate)


def test_a_warm_up_of_no_iterations_is_none(paper_study):
    study = changed(paper_study, warmup={"min_n": 18, "iterations": 0, "lr": 0.02})
    made = resolve(study, "resnet", 18, 0)
    assert (made.warmup_iterations, made.warmup_lr) == (0, made.lr)


def test_digest_follows_what_affects_this_cell_alone(paper_study):
    """A warm-up that this network does not have leaves its digest as it is; the curve's points are in the history."""

    def moved(n: int, **train: object) -> bool:
        study = changed(paper_study, **train)
        return resolve(study, "resnet", n, 0).digest != resolve(paper_study, "resnet", n, 0).digest

    warmup = {"min_n": 18, "iterations": 300, "lr": 0.02}
    assert moved(18, warmup=warmup)
    assert not moved(9, warmup=warmup)
    assert moved(9, eval_every=500)
    assert moved(9, lr=0.05)


def test_digest_differs_for_every_field(tiny_recipe):
    digests = {tiny_recipe.digest}
    for field in dataclasses.fields(tiny_recipe):
        value = getattr(tiny_recipe, field.name)
        other = (1,) if isinstance(value, tuple) else value + "x" if isinstance(value, str) else value + 1
        digests.add(dataclasses.replace(tiny_recipe, **{field.name: other}).digest)
    assert len(digests) == len(dataclasses.fields(tiny_recipe)) + 1


@dataclass(frozen=True)
class Later(Recipe):
    """With a parameter that came after cells were trained."""

    nesterov: bool = False
    cutout: int = 0


def test_a_later_parameter_stands_in_no_digest_as_long_as_it_has_its_default(tiny_recipe):
    values = dataclasses.asdict(tiny_recipe)
    assert Later(**values).digest == tiny_recipe.digest
    others = {Later(**values, nesterov=True).digest, Later(**values, cutout=8).digest}
    assert len(others | {tiny_recipe.digest}) == 3


@pytest.mark.parametrize("kind", ["he_convolutions", "pytorch"])
def test_he_initialisation_is_the_default_under_which_cells_were_trained(tiny_study, tiny_recipe, kind):
    values = tiny_study.model_dump()
    values["model"] |= {"initialization": kind}
    other = type(tiny_study).model_validate(values).recipe(Cell("resnet", 1, 0))
    assert (tiny_recipe.initialization, other.initialization) == ("he", kind)
    assert other.digest != tiny_recipe.digest


def test_digest_is_that_of_the_sorted_values(tiny_recipe):
    """Written out, because cells keep it: what is computed otherwise makes each of them another."""
    text = (
        '{"batch_size": 8, "eval_every": 4, "gamma": 0.1, "iterations": 6, "lr": 0.1, "milestones": [3, 5], '
        '"momentum": 0.9, "n": 1, "net": "resnet", "normalize": "pixel_mean", "precision": "fp32", "seed": 0, '
        '"shortcut": "A", "warmup_iterations": 0, "warmup_lr": 0.1, "weight_decay": 0.0001}'
    )
    assert tiny_recipe.digest == hashlib.sha256(text.encode()).hexdigest()
