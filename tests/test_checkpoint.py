"""Checkpoints are loaded exactly or refused in one sentence."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resnet_cifar.cells import Cell
from resnet_cifar.checkpoint import load_model, read
from resnet_cifar.errors import InputError
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import serialize


def network(*architecture: object) -> CifarResNet:
    torch.manual_seed(0)
    model = CifarResNet(Architecture(*architecture))
    model.set_normalization(torch.rand(3, 32, 32), torch.ones(3, 1, 1))
    model(torch.rand(2, 3, 32, 32))  # for statistics of its own
    return model.eval()


def write(path: Path, state: dict[str, torch.Tensor], net: str = "resnet", n: int = 1, seed: int = 0) -> Path:
    path.write_bytes(serialize(state, net, n, seed))
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return network("resnet", 1).state_dict()


@pytest.mark.parametrize("architecture", [("resnet", 1), ("plain", 2), ("resnet", 1, "B")])
def test_what_was_trained_is_what_is_loaded(path, architecture):
    trained = network(*architecture)
    write(path, trained.state_dict(), *architecture[:2], seed=4)
    loaded, cell = load_model(path)
    assert cell == Cell(*architecture[:2], 4)
    assert loaded.architecture == Architecture(*architecture)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), trained(x))
    assert read(path)[0] == cell
    assert read(path)[1].keys() == trained.state_dict().keys()


def test_loading_draws_no_random_number(path, state):
    write(path, state)
    before = torch.random.get_rng_state()
    load_model(path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_network_outlives_its_file(path, state):
    """What a file maps into memory changes with it."""
    write(path, state)
    loaded, _ = load_model(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda state: state.pop("layer2.0.bn1.running_var"), "layer2.0.bn1.running_var"),
        (lambda state: state.pop("mean"), "mean"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "extra"),
        (lambda state: state.update({"fc.weight": torch.zeros(100, 64)}), "fc.weight"),
        (lambda state: state.update({"fc.weight": state["fc.weight"].half()}), "fc.weight"),
    ],
    ids=["missing", "no normalisation", "additional", "shape", "type"],
)
def test_loading_is_strict(path, state, change, first):
    changed = dict(state)
    change(changed)
    write(path, changed)
    with pytest.raises(InputError, match=f"does not hold a ResNet-8: {first} is the first of 1 tensors"):
        load_model(path)


def test_other_networks_than_the_metadata_names_are_refused(path):
    """Two blocks a stage where it says one or three; projections in a plain network; one projection of two."""
    write(path, network("resnet", 2).state_dict(), n=1)
    with pytest.raises(InputError, match=r"does not hold a ResNet-8: layer1\.1\S+ is the first"):
        load_model(path)
    write(path, network("resnet", 2).state_dict(), n=3)
    with pytest.raises(InputError, match="too few tensors"):
        load_model(path)
    projected = network("resnet", 1, "B").state_dict()
    write(path, projected, net="plain")
    with pytest.raises(InputError, match=r"does not hold a Plain-8: layer2\.0\.downsample"):
        load_model(path)
    write(path, {name: each for name, each in projected.items() if not name.startswith("layer3.0.downsample")})
    with pytest.raises(InputError, match=r"does not hold a ResNet-8: layer3\.0\.downsample"):
        load_model(path)


@pytest.mark.parametrize("n", [10**9, int("9" * 4300)], ids=["a billion", "the longest number that JSON reads"])
def test_an_impossible_n_costs_nothing(path, state, n):
    """It is refused before a network of it is built, which would take hours."""
    write(path, state, n=n)
    with pytest.raises(InputError, match="too few tensors"):
        load_model(path)


def test_missing_and_damaged_files_are_refused(path, state):
    with pytest.raises(InputError, match="does not exist"):
        load_model(path)
    link = path.with_name("link")
    link.symlink_to(link)
    for unreadable in (path.parent, link):
        with pytest.raises(InputError, match=rf"^{re.escape(str(unreadable))} cannot be read \(.+\)\.$"):
            load_model(unreadable)
    content = write(path, state).read_bytes()
    for damaged in (b"", content[:1000], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            load_model(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "{",
        "[]",
        json.dumps({"net": "other", "n": 1, "seed": 0}),
        json.dumps({"net": "resnet", "n": 0, "seed": 0}),
        json.dumps({"net": "resnet", "n": True, "seed": 0}),
        json.dumps({"net": "resnet", "n": 1.0, "seed": 0}),
        json.dumps({"net": "resnet", "n": 1}),
        json.dumps({"net": "resnet", "n": 1, "seed": 0, "shortcut": "A"}),
    ],
)
def test_metadata_that_is_not_a_cells_is_refused(path, state, metadata):
    save_file(state, path, None if metadata is None else {"resnet_cifar": metadata})
    assert load_file(path).keys() == state.keys()
    with pytest.raises(InputError, match="damaged or not a checkpoint of this project"):
        read(path)
