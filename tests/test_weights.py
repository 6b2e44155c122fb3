"""The bytes of a network's tensors: a digest that depends on nothing else, and a file that is always the same."""

import hashlib
import json
import struct

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import digest, serialize


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return CifarResNet(Architecture("resnet", 1)).state_dict()


def test_digest_by_hand():
    """Name, type and shape of each tensor and its elements, in the order of names; a scalar has no shape."""
    tensors = {
        "b": torch.tensor(7),
        "a.weight": torch.tensor([[1.0, 2.0, -3.5], [0.0, 4.0, 5.0]]),
    }
    content = b"a.weight float32 2x3\n" + struct.pack("<6f", 1, 2, -3.5, 0, 4, 5) + b"b int64 \n" + struct.pack("<q", 7)
    assert digest(tensors) == hashlib.sha256(content).hexdigest()


def test_digest_does_not_depend_on_order_layout_or_file(tmp_path):
    tensors = state()
    expected = digest(tensors)
    assert digest(dict(reversed(tensors.items()))) == expected
    last = {
        name: each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each
        for name, each in tensors.items()
    }
    assert not last["conv1.weight"].is_contiguous()
    assert digest(last) == expected
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        file.write_bytes(serialize(tensors, "resnet", 1, seed))
    assert files[0].read_bytes() != files[1].read_bytes()
    assert [digest(load_file(file)) for file in files] == [expected, expected]


def test_digest_takes_parameters_and_views():
    tensors = dict(CifarResNet(Architecture("resnet", 1)).named_parameters())
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
    pieces = vector.split([tensor.numel() for tensor in tensors.values()])
    views = {name: piece.view(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}
    assert digest(views) == digest(tensors)


def test_digest_sees_names_types_shapes_and_values():
    """The same bytes under another name, of another type or in another shape are other weights; so is -0."""
    zeros = torch.zeros(2, 2)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(4)},
        {"a": zeros.view(torch.int32)},
        {"a": zeros[:1], "b": zeros[1:]},
        {"a": -zeros},
    ]
    assert len({digest(variant) for variant in variants}) == len(variants)


def test_files_of_equal_tensors_are_equal(tmp_path):
    """Whatever the order of the tensors."""
    tensors = state()
    content = serialize(tensors, "plain", 1, 3)
    assert serialize(dict(reversed(tensors.items())), "plain", 1, 3) == content
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"resnet_cifar": '{"n": 1, "net": "plain", "seed": 3}'}
        assert json.loads(file.metadata()["resnet_cifar"]) == {"net": "plain", "n": 1, "seed": 3}
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
