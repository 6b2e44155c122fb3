"""Preprocessing: the arrays, the split, the statistics, and what it says of bad files."""

import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import FILES, write_tiny_cifar10

from resnet_cifar import dataset
from resnet_cifar.cifar10 import hold_out, preprocess, statistics
from resnet_cifar.errors import InputError
from resnet_cifar.files import sha256


@pytest.fixture
def raw(tmp_path) -> Path:
    write_tiny_cifar10(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "data" / "cifar10.safetensors"


def overwrite(path: Path, offset: int, value: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] = value
    path.write_bytes(data)


def test_training_reads_the_images_and_labels_in_the_order_of_the_files(raw, out):
    preprocess(raw, out, 0)
    loaded = dataset.load(out)
    assert loaded.validation is None
    assert loaded.train.images.shape == (500, 3, 32, 32)
    assert loaded.test.images.shape == (100, 3, 32, 32)
    record = (raw / "data_batch_3.bin").read_bytes()[7 * 3073 : 8 * 3073]
    assert loaded.train.labels[207] == record[0]
    assert loaded.train.images[207].numpy().tobytes() == record[1:]
    # The planes are red, green, blue, each row by row.
    assert loaded.train.images[207, 1, 2, 3] == record[1 + 1024 + 2 * 32 + 3]
    assert loaded.pixel_mean.shape == (3, 32, 32)
    assert loaded.channel_mean.shape == loaded.channel_std.shape == (3, 1, 1)


@pytest.mark.parametrize("validation", [0, 100])
def test_statistics_are_those_of_the_training_images_in_double_precision(raw, out, validation):
    preprocess(raw, out, validation)
    tensors = load_file(out)
    scaled = tensors["train_images"].astype(np.float64) / 255
    np.testing.assert_allclose(tensors["pixel_mean"], scaled.mean(0), rtol=1e-7)
    np.testing.assert_allclose(tensors["channel_mean"].ravel(), scaled.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(tensors["channel_std"].ravel(), scaled.std((0, 2, 3)), rtol=1e-6)


def test_statistics_do_not_overflow_with_white_images_and_take_any_number():
    white = np.full((1_001, 3, 32, 32), 255, np.uint8)
    values = statistics(white)
    assert (values["pixel_mean"] == 1).all()
    assert (values["channel_mean"] == 1).all()
    assert (values["channel_std"] == 0).all()


def test_neither_test_nor_validation_images_change_the_statistics(raw, out):
    def outcome() -> bytes:
        preprocess(raw, out, 50)
        tensors = load_file(out)
        return b"".join(tensors[key].tobytes() for key in ("pixel_mean", "channel_mean", "channel_std"))

    before = outcome()
    labels = np.concatenate([np.fromfile(raw / name, np.uint8)[::3073] for name in FILES[:5]])
    held_out = int(np.flatnonzero(hold_out(labels, 50))[0])
    trained_on = int(np.flatnonzero(~hold_out(labels, 50))[0])
    assert held_out < 100
    assert trained_on < 100
    overwrite(raw / "test_batch.bin", 5, 255)
    overwrite(raw / FILES[0], held_out * 3073 + 5, 255)
    assert outcome() == before
    overwrite(raw / FILES[0], trained_on * 3073 + 5, 255)
    assert outcome() != before


def test_the_split_takes_the_same_of_each_class_and_parts_the_training_images(raw, out):
    preprocess(raw, out, 0)
    everything = load_file(out)
    preprocess(raw, out, 57)
    tensors = load_file(out)
    counts = np.bincount(tensors["validation_labels"], minlength=10)
    assert counts.sum() == 57
    assert counts.max() - counts.min() == 1
    assert len(tensors["train_labels"]) == 443
    parts = [*tensors["train_images"], *tensors["validation_images"]]
    assert sorted(part.tobytes() for part in parts) == sorted(part.tobytes() for part in everything["train_images"])


def test_the_split_is_the_one_it_has_always_been():
    """Frozen: with another split the same parameter would name another data set."""
    labels = np.arange(40, dtype=np.uint8) % 10
    assert np.flatnonzero(hold_out(labels, 10)).tolist() == [1, 5, 7, 12, 13, 16, 28, 30, 34, 39]


def test_the_split_of_unequal_classes_takes_the_same_share_of_each():
    labels = np.repeat(np.arange(3, dtype=np.uint8), [600, 300, 100])
    held_out = hold_out(labels, 100)
    assert np.abs(np.bincount(labels[held_out]) - [60, 30, 10]).max() <= 1
    assert held_out.sum() == 100


def test_all_but_one_may_be_held_out(raw, out):
    preprocess(raw, out, 499)
    assert len(load_file(out)["train_labels"]) == 1


def test_the_same_input_gives_the_same_bytes_over_an_older_file(raw, out):
    preprocess(raw, out, 20)
    first = out.read_bytes()
    out.write_bytes(b"older")
    preprocess(raw, out, 20)
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("validation", [500, 5000])
def test_a_split_that_leaves_nothing_names_the_parameter(raw, out, validation):
    with pytest.raises(InputError, match=rf"^data\.validation: {validation} leaves none of the 500 .* below 500\.$"):
        preprocess(raw, out, validation)
    assert not out.exists()


def test_bad_files_are_named_and_leave_the_last_result_alone(raw, out):
    preprocess(raw, out, 0)
    before = out.read_bytes()
    path = raw / "data_batch_2.bin"
    good = path.read_bytes()

    for data, sentence in [
        (good[:-1], r"data_batch_2\.bin has 307299 bytes; .* records of 3073"),
        (b"", r"data_batch_2\.bin has 0 bytes"),
        (good[: 3073 * 4] + b"\x0a" + good[3073 * 4 + 1 :], r"data_batch_2\.bin has the label 10 in record 4"),
    ]:
        path.write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            preprocess(raw, out, 0)
    path.unlink()
    with pytest.raises(InputError, match=r"data_batch_2\.bin cannot be read \(No such file"):
        preprocess(raw, out, 0)
    assert out.read_bytes() == before


def test_an_output_that_cannot_be_written_is_named(raw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        preprocess(raw, tmp_path / "file" / "cifar10.safetensors", 0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        preprocess(raw, tmp_path / "folder", 0)
    assert not list((tmp_path / "folder").iterdir())


def test_a_full_disk_is_named_and_leaves_the_last_result_alone(raw, out):
    preprocess(raw, out, 0)
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # as on a full disk, the error names no file
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            preprocess(raw, out, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(out) in caught.value.filename
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("validation", "digest"),
    [
        (0, "cf1365c33894201a88c16ed8646515a39d19b63ba0a81878755ac2c56f6a291f"),
        (7, "9adaf9ce7f4b7af469bcf2465f35566aa3ded19f73d3c5fcfef9648abf4d96d5"),
    ],
)
def test_the_file_has_the_bytes_it_has_always_had(tmp_path, out, validation, digest):
    """Frozen: with other bytes every network would have to be trained again."""
    for number, name in enumerate(FILES, start=1):
        records = (
            (np.arange(12 * 3073, dtype=np.uint32) * (1009 + number) // 7 % 256).astype(np.uint8).reshape(12, 3073)
        )
        records[:, 0] = np.arange(12) * number % 10
        (tmp_path / name).write_bytes(records.tobytes())
    preprocess(tmp_path, out, validation)
    assert sha256(out) == digest
