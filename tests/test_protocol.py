"""The paper's schedule and optimizer."""

import dataclasses

import pytest
import torch

from resnet_cifar.cells import Cell
from resnet_cifar.params import Params
from resnet_cifar.training.protocol import learning_rates, recipe, sgd_


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
def test_learning_rate_of_section_4_2(paper_params, n, iteration, rate):
    rates = learning_rates(recipe(paper_params, Cell("resnet", n, 0), "fp32"))
    assert rates.shape == (64_000,)
    assert rates[iteration - 1].item() == pytest.approx(rate, rel=1e-6)


def test_paper_preset_is_the_papers_protocol(paper_params):
    made = recipe(paper_params, Cell("resnet", 3, 0), "fp32")
    assert (made.batch_size, made.momentum, made.weight_decay) == (128, 0.9, 1e-4)
    assert (made.shortcut, made.normalize) == ("A", "pixel_mean")


def test_sgd_equals_torch_with_decay_on_every_parameter(paper_params):
    """Against torch.optim.SGD: decay once, as g + wd * w; momentum without dampening; no Nesterov."""
    made = recipe(paper_params, Cell("resnet", 3, 0), "fp32")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(50, generator=generator)
    reference = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=1e-4)
    velocity = torch.zeros(50)
    for rate in (0.1, 0.1, 0.01):
        gradient = torch.randn(50, generator=generator)
        reference.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        sgd_(weights, velocity, gradient, torch.tensor([rate]), made)
    assert torch.allclose(weights, reference, rtol=1e-6, atol=1e-7)


def test_digest_follows_what_affects_this_cell_alone(paper_params):
    """A warm-up that this network does not have leaves its digest as it is."""

    def changed(n: int, **train: object) -> bool:
        values = paper_params.model_dump()
        values["train"] |= train
        cell = Cell("resnet", n, 0)
        other = recipe(Params.model_validate(values), cell, "fp32")
        return other.digest != recipe(paper_params, cell, "fp32").digest

    warmup = {"min_n": 18, "iterations": 300, "lr": 0.02}
    assert changed(18, warmup=warmup)
    assert not changed(9, warmup=warmup)
    assert not changed(9, eval_every=500)
    assert changed(9, lr=0.05)


def test_digest_differs_for_every_field(paper_params):
    made = recipe(paper_params, Cell("resnet", 3, 0), "fp32")
    digests = {made.digest}
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        other = (1,) if isinstance(value, tuple) else value + "x" if isinstance(value, str) else value + 1
        digests.add(dataclasses.replace(made, **{field.name: other}).digest)
    assert len(digests) == len(dataclasses.fields(made)) + 1
