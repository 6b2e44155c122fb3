"""A network's tensors as bytes: the digest written down by hand, and the checkpoint's file."""

import hashlib
import json
import struct

import torch
from safetensors import safe_open

from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import digest, serialize


def test_the_digest_is_that_of_names_types_shapes_and_values():
    tensors = {"b": torch.tensor([[1.5, -2.0], [0.25, 3.0]]), "a": torch.tensor(7)}
    expected = b"a int64 \n" + struct.pack("<q", 7) + b"b float32 2x2\n" + struct.pack("<4f", 1.5, -2, 0.25, 3)
    assert digest(tensors) == hashlib.sha256(expected).hexdigest()


def test_the_digest_does_not_depend_on_memory_layout_or_order():
    tensor = torch.arange(120.0).view(2, 3, 4, 5)
    one, two = {"x": tensor, "y": tensor[0]}, {"y": tensor[0].clone(), "x": tensor.to(memory_format=torch.channels_last)}
    assert digest(one) == digest(two)
    assert digest({"x": tensor}) != digest({"x": tensor + 1e-5})
    assert digest({"x": torch.zeros(1)}) != digest({"x": -torch.zeros(1)})


def test_a_checkpoint_has_one_note_and_the_same_bytes_in_any_order(tmp_path):
    state = CifarResNet(Architecture("plain", 1)).state_dict()
    content = serialize(state, "plain", 1, 3)
    assert content == serialize(dict(reversed(state.items())), "plain", 1, 3)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        (note,) = file.metadata().values()
        assert json.loads(note) == {"net": "plain", "n": 1, "seed": 3}
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in state.items()
        }
