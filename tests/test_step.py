"""The training step against float64 and torch's own optimizer, its precisions, and what it keeps."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_cifar import machine
from resnet_cifar.cells import Cell
from resnet_cifar.models import CifarResNet
from resnet_cifar.training.engine import EagerEngine
from resnet_cifar.training.protocol import recipe
from resnet_cifar.training.step import TrainState, evaluate, step


@pytest.fixture
def tiny_recipe(tiny_params):
    return recipe(tiny_params, Cell("resnet", 1, 0), "fp32")


def crop(image: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    padded = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
    return padded.flip(2) if flip else padded


def difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative to the length of ``y``."""
    return ((x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-12)).item()


@pytest.fixture
def double(monkeypatch):
    """Train in float64: the same code, without the ReLUs that rounding switches."""
    monkeypatch.setitem(machine.DTYPES, "fp32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("normalize", ["pixel_mean", "channel"])
@pytest.mark.parametrize(("net", "shortcut"), [("resnet", "A"), ("resnet", "B"), ("plain", "A")])
def test_steps_in_float64_equal_autograd_with_torchs_sgd(tiny_recipe, tiny_dataset, net, shortcut, normalize):
    """Weights, momentum, batch-norm statistics, losses and errors of three steps, and the evaluation after them."""
    made = dataclasses.replace(tiny_recipe, net=net, shortcut=shortcut, normalize=normalize, lr=0.01, milestones=(2,))
    state = TrainState(made, tiny_dataset, eval_every=3)
    state.losses = state.losses.float()
    assert state.weights.dtype == torch.float64
    model = CifarResNet(made.architecture)
    model.load_state_dict(state.state_dict(), strict=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    stream, train = state.stream, tiny_dataset.train
    for i, rate in enumerate((0.01, 0.01, 0.001)):
        step(state)
        index = stream.index[i].long()
        images = model.normalize(train.images[index].float() / 255)
        placed = zip(images, stream.top[i].tolist(), stream.left[i].tolist(), stream.flip[i].tolist(), strict=True)
        model.train()
        # The loss is computed in fp32 whatever the network's precision is, and so is the rate.
        logits = model.forward_head(model.forward_features(torch.stack([crop(*each) for each in placed]))).float()
        loss = F.cross_entropy(logits, train.labels[index])
        optimizer.param_groups[0]["lr"] = torch.tensor(rate, dtype=torch.float32).item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert state.losses[i].item() == pytest.approx(loss.item(), rel=1e-6)
        assert state.errors[i].item() == (logits.argmax(1) != train.labels[index]).sum().item()
    momentum = state._views(state.velocity)
    for name, parameter in model.named_parameters():
        assert difference(momentum[name], optimizer.state[parameter]["momentum_buffer"]) < 1e-6, name
    for name, tensor in state.state_dict().items():
        assert difference(tensor, model.state_dict()[name]) < 1e-6, name

    evaluate(state)
    model.eval()
    with torch.no_grad():
        logits = model(tiny_dataset.test.images.float() / 255)
    noted = state.evaluations["test"][0]
    assert noted[0].item() == pytest.approx(F.cross_entropy(logits, tiny_dataset.test.labels).item(), rel=1e-6)
    assert noted[1].item() == (logits.argmax(1) != tiny_dataset.test.labels).double().mean().item()


def test_fp32_is_float64_to_rounding(tiny_recipe, tiny_dataset, request):
    """One step. Where rounding switches a ReLU, its one pixel's gradient is added or lacks."""
    single = TrainState(tiny_recipe, tiny_dataset, 3)
    start = single.weights.double()
    step(single)
    request.getfixturevalue("double")
    exact = TrainState(tiny_recipe, tiny_dataset, 3)
    exact.losses = exact.losses.float()
    exact.weights.copy_(start)
    step(exact)
    assert exact.weights.dtype == torch.float64
    assert single.losses[0].item() == pytest.approx(exact.losses[0].item(), rel=1e-5)
    assert difference(single.velocity, exact.velocity) < 1e-2
    statistics = [name for name in exact.state_dict() if "running" in name]
    assert len(statistics) == 2 * 7
    for name in statistics:
        assert difference(single.state_dict()[name], exact.state_dict()[name]) < 1e-4, name


def test_state_dict_loads_strictly_and_counts_batches(tiny_recipe, tiny_dataset):
    state = TrainState(tiny_recipe, tiny_dataset, 3)
    EagerEngine(state).steps(2)
    model = CifarResNet(tiny_recipe.architecture)
    model.load_state_dict(state.state_dict(), strict=True)
    assert all(int(m.num_batches_tracked) == 2 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(model.mean, tiny_dataset.pixel_mean)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_fp32_weights_and_statistics(tiny_recipe, tiny_dataset, precision):
    """Close to fp32 after one step, the master weights exact to fp32, and convolutions in half precision."""
    exact = TrainState(tiny_recipe, tiny_dataset, 3)
    half = TrainState(dataclasses.replace(tiny_recipe, precision=precision), tiny_dataset, 3)
    assert torch.equal(exact.weights, half.weights)
    step(exact)
    step(half)
    assert half.weights.dtype == half.velocity.dtype == torch.float32
    assert half.model.conv1.weight.dtype == machine.DTYPES[precision]
    assert half.model.bn1.weight.dtype == half.model.bn1.running_mean.dtype == torch.float32
    assert torch.equal(half.working, half.weights.to(half.dtype))
    assert half.losses[0].item() == pytest.approx(exact.losses[0].item(), rel=0.02)
    cosine = F.cosine_similarity(half.velocity, exact.velocity, dim=0)
    assert cosine > 0.99  # the loss scale is taken out again: direction and length agree
    assert half.velocity.norm().item() == pytest.approx(exact.velocity.norm().item(), rel=0.05)


def test_timing_a_step_leaves_the_network_as_it_was(tiny_recipe, tiny_dataset):
    state = TrainState(tiny_recipe, tiny_dataset, 3)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert EagerEngine(state).seconds_per_step() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_restore_brings_back_every_bit(tiny_recipe, tiny_dataset):
    """From any iteration: what follows is the same, in half precision too, whose working weights are derived."""
    made = dataclasses.replace(tiny_recipe, precision="bf16")
    whole = TrainState(made, tiny_dataset, 3)
    EagerEngine(whole).steps(2)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    EagerEngine(whole).steps(3)
    other = TrainState(made, tiny_dataset, 3)
    other.restore(saved)
    EagerEngine(other).steps(3)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in other.tensors().items())
