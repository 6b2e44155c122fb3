"""Fixtures that several modules share."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

ASKED_DEVICE = os.environ.get("RESNET_CIFAR_DEVICE", "")  # what the caller wants; tests/test_cuda.py alone follows it
for name in [name for name in os.environ if name.startswith(("RESNET_CIFAR_", "CIFAR10_"))]:
    del os.environ[name]
for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):  # of a hook or `git rebase --exec`
    os.environ.pop(name, None)
os.environ["DVC_GLOBAL_CONFIG_DIR"] = os.environ["DVC_SYSTEM_CONFIG_DIR"] = (
    "/nonexistent"  # the user's cache and remotes
)
os.environ["OMP_NUM_THREADS"] = os.environ["RESNET_CIFAR_THREADS"] = "1"  # the tests themselves run side by side
os.environ["RESNET_CIFAR_DEVICE"] = "cpu"
os.environ["RESNET_CIFAR_SIMD"] = "none"

import pytest
import torch
import yaml
from safetensors.torch import save_file

from resnet_cifar import dataset, settings
from resnet_cifar.cells import Cell
from resnet_cifar.native import sets
from resnet_cifar.numerics import determinism
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.engine import Turn
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.numerics.run import Run
from resnet_cifar.params import Study
from resnet_cifar.training.session import Session

needs_native = pytest.mark.skipif(
    not sets.runnable(sets.FAST) or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="needs a processor and a compiler for the native engine",
)
ROOT = Path(__file__).resolve().parents[1]
Returned = TypeVar("Returned")


LONGEST = {f"test_{name}.py" for name in ("studies", "sweep", "pipeline", "train", "benchmarks", "report", "sources")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that the workers end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _deterministic() -> None:
    determinism.configure(torch.device("cpu"), 1)


@pytest.fixture(scope="session", autouse=True)
def _dvcs_own_files(tmp_path_factory) -> None:
    """Go where pytest's do, and not below /var/tmp, where nothing would remove them."""
    os.environ["DVC_SITE_CACHE_DIR"] = str(tmp_path_factory.mktemp("site"))


def compose_to(path: Path, conf: Path, *overrides: str) -> None:
    """Write params.yaml as `dvc exp run` does."""
    from dvc.utils.hydra import compose_and_dump  # here, so that tests/test_cuda.py runs where DVC is not

    compose_and_dump(path, str(conf), None, "config", str(conf), list(overrides))


def committed(name: str) -> str:
    """A file as git has it: a `dvc exp run` has every right to leave another one in the working tree."""
    done = subprocess.run(["git", "show", f":./{name}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs a git checkout")
    return done.stdout


@pytest.fixture(scope="session")
def compose(tmp_path_factory) -> Callable[..., str]:
    """Compose conf/ with overrides, as `dvc exp run -S` does; returns the text of params.yaml."""

    def composed(*overrides: str) -> str:
        path = tmp_path_factory.mktemp("params") / "params.yaml"
        compose_to(path, ROOT / "conf", *overrides)
        return path.read_text()

    return composed


@pytest.fixture(scope="session")
def paper_study(compose) -> Study:
    return Study.model_validate(yaml.safe_load(compose("preset=paper")))


@pytest.fixture(scope="session")
def tiny_study() -> Study:
    """ResNet-8, six iterations of eight images, evaluated after the fourth and the last."""
    return Study.model_validate(
        {
            "preset": "tiny",
            "model": {"net": ["resnet"], "n": [1], "shortcut": "A"},
            "data": {"validation": 0, "normalize": "pixel_mean"},
            "train": {
                "seeds": [0],
                "iterations": 6,
                "batch_size": 8,
                "lr": 0.1,
                "milestones": [3, 5],
                "gamma": 0.1,
                "warmup": {"min_n": 18, "iterations": 0, "lr": 0.01},
                "momentum": 0.9,
                "weight_decay": 0.0001,
                "precision": "fp32",
                "eval_every": 4,
            },
            "cells": {"net": ["resnet"], "n": [1], "seed": [0]},
        }
    )


def as_dvc(stage: str, *command: str) -> list[str]:
    """The command line of a process that starts a stage's command as DVC does."""
    start = f"import os, subprocess, sys; subprocess.run(sys.argv[1:], env=os.environ | {{'DVC_STAGE': {stage!r}}})"
    return [sys.executable, "-c", start, *command]


def drain(turns: Generator[object, None, Returned]) -> Returned:
    """What a generator returns, all its turns taken at once."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


def advance(run: Run, iteration: int) -> Run:
    """Train to the first whole turn at ``iteration`` or after it."""
    turns = run.train()
    while run.iteration < iteration:
        while next(turns) is not Turn.WHOLE:
            pass
    return run


def changed(study: Study, **train: object) -> Study:
    """The same study with other values in its section ``train``."""
    values = study.model_dump()
    values["train"] |= train
    return Study.model_validate(values)


@pytest.fixture(scope="session")
def tiny_recipe(tiny_study) -> Recipe:
    return tiny_study.recipe(Cell("resnet", 1, 0))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The file of :func:`write_tiny_dataset`."""
    return write_tiny_dataset(tmp_path_factory.mktemp("dataset") / "cifar10.safetensors")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_data) -> Dataset:
    return dataset.load(tiny_data)


def write_tiny_dataset(path: Path, train: int = 60, test: int = 20, validation: int = 0) -> Path:
    """So many images of noise, as the preprocess stage leaves them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, count in (("train", train), ("test", test), ("validation", validation)):
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


def make_session(
    study: Study, data: Path, folder: Path, say: Callable[[str], None] = lambda _: None, **changes: object
) -> Session:
    """A session with the folders ``runs`` and ``scratch`` in ``folder``; ``changes`` are to the settings."""
    chosen = dataclasses.replace(settings.read(), **changes)
    return Session(study, data, folder / "runs", folder / "scratch", chosen, say)


@pytest.fixture
def session(tiny_study, tiny_data, tmp_path) -> Session:
    """Of the tiny study, in the test's own folder; on the CPU, by PyTorch's step."""
    return make_session(tiny_study, tiny_data, tmp_path)
