"""The machine that computes: which device, what it is called, and which precisions it has."""

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from resnet_cifar.errors import InputError


def choose_device(given: str | None) -> torch.device:
    """The device that the environment names, by default the GPU if there is one.

    Raises
    ------
    InputError
        If it is not there, or if torch cannot use this machine's GPU.
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    wanted = given or ("cuda" if there else "cpu")
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in ["cpu", *there]:
        reason = "" if there or not name.startswith("cuda") else f" ({_why_no_cuda()})"
        raise InputError(f"RESNET_CIFAR_DEVICE is {given!r}; this machine has {', '.join(['cpu', *there])}{reason}.")
    return torch.device(name)


def _why_no_cuda() -> str:
    """Why torch finds no GPU: a driver that is too old makes everything else fall back to the CPU in silence."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].rstrip(".")
    return "torch sees no GPU"


@contextmanager
def usable(device: torch.device) -> Iterator[None]:
    """Around the use of a device that no cell alone is to blame for: say so where another process fills or holds it.

    Raises
    ------
    InputError
        If the device has not enough memory, or fails.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"{device} has not enough memory or fails ({reason}): RESNET_CIFAR_DEVICE may name another, or cpu."
        ) from None


def has_precision(precision: str, device: torch.device) -> bool:
    """Whether the device computes in ``precision`` (fp32, bf16 or fp16) natively."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= ((8, 0) if precision == "bf16" else (7, 0))
    if precision == "bf16":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cpu._is_amx_fp16_supported()


def device_name(device: torch.device) -> str:
    """The processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return model[1] if model else platform.machine()
