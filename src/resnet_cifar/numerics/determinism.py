"""Torch made deterministic: these settings decide bits."""

import os

import torch

VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS", "CUDNN_", "DNNL_", "MKL_", "MKLDNN_", "NVIDIA_TF32", "ONEDNN_"),
    *("TORCH_ALLOW_TF32", "TORCH_BLAS", "TORCH_CUDNN"),
)
"""How the names of the environment's variables begin that change torch's arithmetic."""


def configure(device: torch.device, threads: int) -> None:
    """Have torch take the same kernels and the same order of sums every time on the same machine.

    Before anything else uses CUDA, whose libraries read some of it once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # networks that train side by side have a queue each
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms does this, and imports the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else each process opens a context on the first GPU, too
