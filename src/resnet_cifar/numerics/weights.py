"""A network's tensors as bytes: their digest, and the file weights.safetensors."""

import hashlib
import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

KEY = "resnet_cifar"  # one key alone: safetensors writes several metadata keys in random order


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors in the order of their names, whatever file or memory layout they have.

    Of each tensor a line with its name, NumPy's name of its type and its shape, then its values, little-endian, in the
    order of its indices.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        shape = "x".join(map(str, array.shape))
        total.update(f"{name} {array.dtype} {shape}\n".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()


def serialize(tensors: Mapping[str, Tensor], net: str, n: int, seed: int) -> bytes:
    """A network's state as safetensors that say which network it is and nothing else; equal arguments, equal bytes.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        What ``CifarResNet.state_dict`` gives: contiguous, fp32, the counters of batch normalisation int64.
    net, n, seed
        The cell.
    """
    return save(dict(tensors), {KEY: json.dumps({"net": net, "n": n, "seed": seed}, sort_keys=True)})
