"""Which device, and in which precisions it computes."""

import pytest
import torch

from resnet_cifar import machine
from resnet_cifar.errors import InputError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many GPUs."""

    def made(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return made


@pytest.mark.parametrize(
    ("count", "given", "device"),
    [
        (0, None, "cpu"),
        (0, "cpu", "cpu"),
        (2, None, "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_the_device(gpus, count, given, device):
    gpus(count)
    assert machine.choose_device(given) == torch.device(device)


@pytest.mark.parametrize("given", ["cuda:2", "cuda:-1", "cuda:01", "tpu", "CUDA", "mps", "cuda:"])
def test_a_device_that_is_not_there_is_an_error_with_those_that_are(gpus, given):
    gpus(2)
    with pytest.raises(InputError, match=f"RESNET_CIFAR_DEVICE is '{given}'; this machine has cpu, cuda:0, cuda:1"):
        machine.choose_device(given)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("The NVIDIA driver is too old (found version 12000).\nSee"),
            "The NVIDIA driver is too old (found",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (None, "torch sees no GPU"),
    ],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error_with_its_reason(gpus, monkeypatch, error, reason):
    """And no silent training on the CPU."""

    def init() -> None:
        if error:
            raise error

    gpus(0)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(InputError, match="RESNET_CIFAR_DEVICE is 'cuda'; this machine has cpu") as caught:
        machine.choose_device("cuda")
    assert f"({reason}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "has"), [((7, 0), {"fp32", "fp16"}), ((8, 0), {"fp32", "fp16", "bf16"}), ((6, 1), {"fp32"})]
)
def test_precisions_of_a_gpu(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda", 0)
    assert {precision for precision in ("fp32", "bf16", "fp16") if machine.has_precision(precision, device)} == has


def test_precisions_of_a_cpu(monkeypatch):
    """torch knows which instructions there are; fp32 is always there."""
    device = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert [machine.has_precision(each, device) for each in ("fp32", "bf16", "fp16")] == [True, False, False]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert [machine.has_precision(each, device) for each in ("fp32", "bf16", "fp16")] == [True, True, False]


def test_a_cpu_has_a_name():
    assert machine.device_name(torch.device("cpu")).strip()
