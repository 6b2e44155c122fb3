"""The layers' responses against a network written out by hand in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar import responses
from resnet_cifar.numerics.data import Split
from resnet_cifar.numerics.models import Architecture, BatchNorm, CifarResNet
from resnet_cifar.responses import layer_responses

KINDS = [("resnet", "A"), ("resnet", "B"), ("plain", "A")]


def trained(net: str, shortcut: str, n: int = 1) -> CifarResNet:
    """A network whose batch normalisations are not what they were at the start."""
    torch.manual_seed(0)
    model = CifarResNet(Architecture(net, n, shortcut))
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                torch.nn.init.normal_(tensor)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    model.set_normalization(torch.rand(3, 32, 32), torch.rand(3, 1, 1) + 0.5)
    return model.eval()


def by_hand(model: CifarResNet, images: Tensor) -> list[float]:
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    found = []

    def normalised(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance, scale, shift = (
            state[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    def layer(*arguments: object) -> Tensor:
        y = normalised(*arguments)
        found.append(y.std(correction=0).item())
        return y

    x = layer((images.float() / 255).double().sub(state["mean"]).div(state["std"]), "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", 1 + (stage > 1)
        y = layer(x, f"{block}.conv1", f"{block}.bn1", stride).relu()
        y = layer(y, f"{block}.conv2", f"{block}.bn2")
        if model.architecture.net == "resnet" and stage == 1:
            y = y + x
        elif model.architecture.net == "resnet" and model.architecture.shortcut == "B":
            y = y + normalised(x, f"{block}.downsample.0", f"{block}.downsample.1", 2)
        elif model.architecture.net == "resnet":
            y = y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        x = y.relu()
    return found


@pytest.mark.parametrize(("net", "shortcut"), KINDS)
def test_responses_by_hand(net, shortcut, tiny_dataset, monkeypatch):
    """In batches of eight, the last one shorter; to four decimals."""
    monkeypatch.setattr(responses, "BATCH", 8)
    model = trained(net, shortcut)
    found = layer_responses(model, tiny_dataset.test)
    assert found == [round(value, 4) for value in by_hand(model, tiny_dataset.test.images)]
    assert len(found) == 7


def test_the_first_images_alone_count(tiny_dataset, monkeypatch):
    monkeypatch.setattr(responses, "IMAGES", 5)
    model, test = trained("resnet", "A"), tiny_dataset.test
    assert layer_responses(model, test) == layer_responses(model, Split(test.images[:5], test.labels[:5]))
    assert layer_responses(model, test) != layer_responses(model, Split(test.images[5:], test.labels[5:]))


def test_batches_and_memory_formats_change_no_digit_and_the_network_stays(tiny_dataset, monkeypatch):
    """What another processor may do, too: sums in another order."""
    model = trained("resnet", "A", n=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = layer_responses(model, tiny_dataset.test)
    monkeypatch.setattr(responses, "BATCH", 3)
    assert layer_responses(model.to(memory_format=torch.channels_last), tiny_dataset.test) == found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_a_layer_that_gives_one_number_responds_by_zero(tiny_dataset):
    """0.1 is not exact, so that the difference of two sums may be a little below zero."""
    model = trained("plain", "A")
    with torch.no_grad():
        model.bn1.weight.zero_()
        model.bn1.bias.fill_(0.1)
    assert layer_responses(model, tiny_dataset.test)[0] == 0
