"""Fixtures that several modules share."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["RESNET_CIFAR_THREADS"] = "1"  # the tests themselves run side by side
os.environ["RESNET_CIFAR_DEVICE"] = "cpu"

import pytest
import torch
import yaml
from safetensors.torch import save_file

from resnet_cifar import dataset, machine
from resnet_cifar.dataset import Dataset
from resnet_cifar.params import Params

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _deterministic() -> None:
    machine.configure()


def compose_to(path: Path, conf: Path, *overrides: str) -> None:
    """Write params.yaml as `dvc exp run` does."""
    from dvc.utils.hydra import compose_and_dump  # here, so that tests/test_cuda.py runs where DVC is not

    compose_and_dump(path, str(conf), None, "config", str(conf), list(overrides))


@pytest.fixture(scope="session")
def compose(tmp_path_factory):
    """Compose conf/ with overrides, as `dvc exp run -S` does; returns the text of params.yaml."""

    def composed(*overrides: str) -> str:
        path = tmp_path_factory.mktemp("params") / "params.yaml"
        compose_to(path, ROOT / "conf", *overrides)
        return path.read_text()

    return composed


@pytest.fixture(scope="session")
def paper_params(compose) -> Params:
    return Params.model_validate(yaml.safe_load(compose("preset=paper")))


@pytest.fixture(scope="session")
def tiny_params() -> Params:
    """ResNet-8, six iterations of eight images."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["model"]["n"] = values["cells"]["n"] = [1]
    values["train"] |= {"iterations": 6, "batch_size": 8, "lr": 0.1, "milestones": [3, 5], "eval_every": 4}
    values["train"]["precision"] = "fp32"
    values["train"]["warmup"]["iterations"] = 0
    return Params.model_validate(values)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Dataset:
    return dataset.load(write_tiny_dataset(tmp_path_factory.mktemp("dataset") / "cifar10.safetensors"))


def write_tiny_dataset(path: Path, validation: int = 0) -> Path:
    """Sixty training, twenty test images of noise, and so many for validation, as the preprocess stage leaves them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, count in (("train", 60), ("test", 20), ("validation", validation)):
        if count:
            shape = (count, 3, 32, 32)
            tensors[f"{name}_images"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            tensors[f"{name}_labels"] = torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)
    scaled = tensors["train_images"].float() / 255
    tensors["pixel_mean"] = scaled.mean(0)
    tensors["channel_mean"] = scaled.mean((0, 2, 3))[:, None, None]
    tensors["channel_std"] = scaled.std((0, 2, 3))[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
