"""The training step against float64 and torch's own optimizer, its precisions, and what it keeps."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import drain

from resnet_cifar.numerics import network as numerics
from resnet_cifar.numerics.batches import BatchStream, Rows
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import NonFiniteError, check_finite
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.network import TorchNetwork, count_errors, evaluate, sgd_, step
from resnet_cifar.numerics.protocol import Recipe

STEPS = 3


def rows_of(recipe: Recipe, data: Dataset) -> Rows:
    return BatchStream(recipe.seed, len(data.train), recipe.batch_size).rows(0, STEPS)


def loaded(recipe: Recipe, data: Dataset, precision: str = "fp32", rates: tuple[float, ...] = (0.1,) * STEPS):
    """A network with its first batches."""
    made = TorchNetwork(recipe, data, precision, STEPS)
    made.load(rows_of(recipe, data), torch.tensor(rates, dtype=torch.float32))
    return made


def crop(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    padded = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
    return padded.flip(2) if flip else padded


def difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative to the length of ``y``."""
    return ((x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-12)).item()


@pytest.fixture
def double(monkeypatch):
    """Train in float64: the same code, without the ReLUs that rounding switches."""
    monkeypatch.setitem(numerics.DTYPES, "fp32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("normalize", ["pixel_mean", "channel"])
@pytest.mark.parametrize(("net", "shortcut"), [("resnet", "A"), ("resnet", "B"), ("plain", "A")])
def test_steps_in_float64_equal_autograd_with_torchs_sgd(tiny_recipe, tiny_dataset, net, shortcut, normalize):
    """Weights, momentum, batch-norm statistics, losses and errors of three steps, and the evaluation after them."""
    made = dataclasses.replace(tiny_recipe, net=net, shortcut=shortcut, normalize=normalize)
    rates = (0.01, 0.01, 0.001)
    trained = loaded(made, tiny_dataset, rates=rates)
    assert trained.weights.dtype == torch.float64
    model = CifarResNet(Architecture(net, made.n, shortcut))
    model.load_state_dict(trained.state_dict(), strict=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    rows, train = rows_of(made, tiny_dataset), tiny_dataset.train
    for i, rate in enumerate(rates):
        step(trained)
        index = torch.from_numpy(rows.index[i]).long()
        images = model.normalize(train.images[index].float() / 255)
        placed = zip(images, rows.top[i].tolist(), rows.left[i].tolist(), rows.flip[i].tolist(), strict=True)
        model.train()
        # The loss is computed in fp32 whatever the network's precision is, and so is the rate.
        logits = model.forward_head(model.features(torch.stack([crop(*each) for each in placed]))).float()
        loss = F.cross_entropy(logits, train.labels[index])
        optimizer.param_groups[0]["lr"] = torch.tensor(rate, dtype=torch.float32).item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trained.losses[i].item() == pytest.approx(loss.item(), rel=1e-6)
        assert trained.errors[i].item() == (logits.argmax(1) != train.labels[index]).sum().item()
    velocities = trained.velocities()
    for name, parameter in model.named_parameters():
        assert difference(velocities[name], optimizer.state[parameter]["momentum_buffer"]) < 1e-6, name
    state = model.state_dict()
    assert state.keys() - trained.state_dict() == {name for name in state if name.endswith("num_batches_tracked")}
    for name, tensor in trained.state_dict().items():
        assert difference(tensor, state[name]) < 1e-6, name

    evaluate(trained)
    model.eval()
    with torch.no_grad():
        logits = model(tiny_dataset.test.images.float() / 255)
    assert difference(trained.logits["test"], logits) < 1e-6


def test_fp32_is_float64_to_rounding(tiny_recipe, tiny_dataset, request):
    """One step. Where rounding switches a ReLU, its one pixel's gradient is added or lacks."""
    single = loaded(tiny_recipe, tiny_dataset)
    start = single.weights.double()
    step(single)
    request.getfixturevalue("double")
    exact = loaded(tiny_recipe, tiny_dataset)
    exact.weights.copy_(start)
    step(exact)
    assert exact.weights.dtype == torch.float64
    assert single.losses[0].item() == pytest.approx(exact.losses[0].item(), rel=1e-5)
    assert difference(single.velocity, exact.velocity) < 1e-2
    statistics = [name for name in exact.state_dict() if "running" in name]
    assert len(statistics) == 2 * 7
    for name in statistics:
        assert difference(single.state_dict()[name], exact.state_dict()[name]) < 1e-4, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_fp32_weights_and_statistics(tiny_recipe, tiny_dataset, precision):
    """Close to fp32 after one step, the master weights exact to fp32, and convolutions in half precision."""
    exact, half = loaded(tiny_recipe, tiny_dataset), loaded(tiny_recipe, tiny_dataset, precision)
    assert torch.equal(exact.weights, half.weights)
    step(exact)
    step(half)
    assert half.weights.dtype == half.velocity.dtype == torch.float32
    assert half.model.conv1.weight.dtype == numerics.DTYPES[precision]
    assert half.model.bn1.weight.dtype == half.model.bn1.running_mean.dtype == torch.float32
    assert torch.equal(half.working, half.weights.to(half.dtype))
    assert half.losses[0].item() == pytest.approx(exact.losses[0].item(), rel=0.02)
    cosine = F.cosine_similarity(half.velocity, exact.velocity, dim=0)
    assert cosine > 0.99  # the loss scale is taken out again: direction and length agree
    assert half.velocity.norm().item() == pytest.approx(exact.velocity.norm().item(), rel=0.05)


def test_the_state_is_contiguous_fp32_and_has_the_normalisation(tiny_recipe, tiny_dataset):
    made = loaded(dataclasses.replace(tiny_recipe, normalize="channel"), tiny_dataset, "bf16")
    state = made.state_dict()
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    assert torch.equal(state["mean"], tiny_dataset.channel_mean.expand(3, 32, 32))
    assert torch.equal(state["std"], tiny_dataset.channel_std)
    assert torch.equal(loaded(tiny_recipe, tiny_dataset).state_dict()["mean"], tiny_dataset.pixel_mean)


def test_restore_brings_back_every_bit(tiny_recipe, tiny_dataset):
    """From any iteration: what follows is the same, in half precision too, whose working weights are derived."""
    whole = loaded(tiny_recipe, tiny_dataset, "bf16")
    step(whole)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    step(whole)
    step(whole)
    other = loaded(tiny_recipe, tiny_dataset, "bf16")
    other.row += 1
    other.restore(saved)
    step(other)
    step(other)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in other.tensors().items())
    assert torch.equal(other.losses[1:], whole.losses[1:])


def test_sgd_equals_torch_with_decay_on_every_parameter(tiny_recipe):
    """Against torch.optim.SGD: decay once, as g + wd * w; momentum without dampening; no Nesterov."""
    made = dataclasses.replace(tiny_recipe, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(50, generator=generator)
    reference = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=0.01)
    trained = SimpleNamespace(recipe=made, weights=weights, velocity=torch.zeros(50), gradient=torch.empty(50))
    for rate in (0.1, 0.1, 0.01):
        trained.gradient.copy_(torch.randn(50, generator=generator))
        reference.grad = trained.gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        sgd_(trained, torch.tensor([rate]))
    assert torch.allclose(weights, reference, rtol=1e-6, atol=1e-7)


def test_of_equal_logits_the_first_counts():
    logits = torch.tensor([[1.0, 3, 3], [3, 3, 1], [2, 2, 2], [0, 1, 2]])
    assert count_errors(logits, torch.tensor([1, 0, 0, 2])) == 0
    assert count_errors(logits, torch.tensor([2, 1, 1, 2])) == 3
    drawn = np.random.default_rng(0).integers(0, 4, (1000, 10)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 10, 1000)
    expected = np.count_nonzero(drawn.argmax(1) != labels)  # NumPy says that it takes the first
    assert count_errors(torch.from_numpy(drawn), torch.from_numpy(labels)) == expected


def test_the_eager_engine_gives_what_its_steps_note(tiny_recipe, tiny_dataset):
    expected = loaded(tiny_recipe, tiny_dataset)
    engine = EagerEngine(tiny_recipe, tiny_dataset, "fp32")
    rows = rows_of(tiny_recipe, tiny_dataset)
    for i in range(STEPS):
        step(expected)
        outcome = drain(engine.steps(Rows(*(array[i : i + 1] for array in rows)), np.array([0.1], np.float32)))
        assert outcome.losses.tolist() == expected.losses[i : i + 1].tolist()
        assert outcome.errors.tolist() == expected.errors[i : i + 1].tolist()
    evaluate(expected)
    assert np.array_equal(drain(engine.evaluate())["test"], expected.logits["test"].numpy())


def test_a_step_that_is_not_finite_is_an_error_that_counts_those_before_it(tiny_recipe, tiny_dataset):
    check_finite(np.array([1.0, 2.0]))
    for wrong in (np.nan, np.inf):
        with pytest.raises(NonFiniteError) as caught:
            check_finite(np.array([1.0, wrong, 2.0, np.nan]))
        assert caught.value.finite == 1
    engine = EagerEngine(tiny_recipe, tiny_dataset, "fp32")
    engine.network.weights[:100] = torch.inf
    with pytest.raises(NonFiniteError):
        drain(engine.steps(Rows(*(array[:1] for array in rows_of(tiny_recipe, tiny_dataset))), np.array([0.1], "f4")))
