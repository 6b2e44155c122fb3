"""The preprocessed data set is read as it is, or refused in a sentence."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from resnet_cifar import dataset
from resnet_cifar.errors import InputError

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def altered(tiny_data, tmp_path) -> Callable[[Change], Path]:
    """Write the tiny data set with a change."""

    def write(change: Change) -> Path:
        tensors = load_file(tiny_data)
        change(tensors)
        save_file(tensors, tmp_path / "data.safetensors")
        return tmp_path / "data.safetensors"

    return write


def edit(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([torch.full_like(tensor[:1], value), tensor[1:]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("pixel_mean"), "pixel_mean is missing"),
        (lambda tensors: tensors.pop("test_labels"), "test_labels is missing"),
        (
            lambda tensors: tensors.update(validation_labels=tensors["test_labels"].clone()),
            "validation_images is missing",
        ),
        (
            lambda tensors: tensors.update(validation_images=tensors["test_images"].clone()),
            "validation_labels is missing",
        ),
        (lambda tensors: tensors.clear(), "channel_mean is missing"),
        (
            edit("train_labels", lambda x: x[:-1]),
            r"train_images is uint8 of shape \[60, 3, 32, 32\], not .*\[59, 3, 32, 32",
        ),
        (
            edit("test_labels", lambda x: x[:0]),
            r"test_images is uint8 of shape \[20, 3, 32, 32\], not .*\[0, 3, 32, 32\]",
        ),
        (
            lambda tensors: tensors.update({name: tensors[name][:0] for name in ("test_images", "test_labels")}),
            "test_images has no image",
        ),
        (edit("train_images", lambda x: x.float() / 255), "train_images is float32 of shape .*, not uint8"),
        (edit("test_images", lambda x: x.movedim(1, -1)), r"test_images is uint8 of shape \[20, 32, 32, 3\], not"),
        (edit("train_images", lambda x: x.flatten(1)), r"train_images is uint8 of shape \[60, 3072\], not"),
        (edit("train_labels", lambda x: x.float()), "train_labels is float32"),
        (edit("train_labels", lambda x: x[:, None]), r"train_labels is uint8 of shape \[60, 1\], not"),
        (edit("train_labels", lambda x: x[0]), r"train_labels is uint8 of shape \[\], not"),
        (edit("train_labels", filled(200)), "train_labels has the label 200; they are from 0 to 9"),
        (edit("test_labels", filled(10)), "test_labels has the label 10"),
        (edit("pixel_mean", lambda x: x.mean((1, 2))), r"pixel_mean is float32 of shape \[3\], not"),
        (edit("channel_std", lambda x: x.double()), "channel_std is float64 of shape"),
        (edit("channel_mean", filled(float("nan"))), "channel_mean has a value that is not finite"),
    ],
)
def test_what_the_preprocess_stage_does_not_write_is_refused(altered, change, sentence):
    path = altered(change)
    with pytest.raises(
        InputError,
        match=rf"^{re.escape(str(path))} is not a preprocessed data set \({sentence}.*`dvc repro -f -s prepro",
    ):
        dataset.load(path)


def test_a_missing_and_a_damaged_file_are_refused(tmp_path, tiny_data):
    with pytest.raises(InputError, match="does not exist: make it with `dvc repro preprocess`"):
        dataset.load(tmp_path / "data.safetensors")
    (tmp_path / "data.safetensors").write_bytes(tiny_data.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not a preprocessed data set"):
        dataset.load(tmp_path / "data.safetensors")
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/link cannot be read \(.+\)\.$"):
        dataset.load(tmp_path / "link")


def test_a_loaded_data_set_outlives_its_file(tiny_data, tmp_path):
    path = tmp_path / "data.safetensors"
    path.write_bytes(tiny_data.read_bytes())
    loaded = dataset.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded.train.images, dataset.load(tiny_data).train.images)
