"""The machine that computes: device, CPU threads and arithmetic, set here alone because they decide the bits.

How a run is executed is the environment's business, never a parameter:

``RESNET_CIFAR_DEVICE``   cpu, cuda or cuda:K; by default the GPU if there is one
``RESNET_CIFAR_THREADS``  CPU threads; by default as many as there are cores for this process
"""

import os
import platform
import re
from pathlib import Path

# Must stand in the environment before CUDA starts: cuBLAS is deterministic only with a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch

from resnet_cifar.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def configure() -> torch.device:
    """Make torch deterministic, set the number of CPU threads and return the device.

    Raises
    ------
    InputError
        If an environment variable names a device that is not there or a thread count that is not a number.
    """
    torch.set_num_threads(threads())
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return _device()


def threads() -> int:
    """CPU threads, by the environment or by the cores that this process may use."""
    given = os.environ.get("RESNET_CIFAR_THREADS", "")
    if not given:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"RESNET_CIFAR_THREADS is {given!r}; it should be a whole number from 1.")
    return int(given)


def _device() -> torch.device:
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    given = os.environ.get("RESNET_CIFAR_DEVICE", "") or ("cuda" if there else "cpu")
    name = "cuda:0" if given == "cuda" else given
    if name not in ["cpu", *there]:
        raise InputError(f"RESNET_CIFAR_DEVICE is {given!r}; this machine has {', '.join(['cpu', *there])}.")
    return torch.device(name)


def precision_in_force(wanted: str, device: torch.device) -> str:
    """``wanted`` (fp32, bf16 or fp16) if the device computes in it natively, else fp32."""
    return wanted if wanted == "fp32" or _has(wanted, device) else "fp32"


def _has(precision: str, device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= ((8, 0) if precision == "bf16" else (7, 0))
    if precision == "bf16":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cpu._is_amx_fp16_supported()


def describe(device: torch.device) -> dict[str, str | int]:
    """The kind of machine: what has to be equal for the same bits; NumPy draws the batches."""
    return {
        "device": _name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return f"{model[1] if model else platform.machine()} (CPU, {torch.backends.cpu.get_cpu_capability()})"
