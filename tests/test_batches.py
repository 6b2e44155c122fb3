"""The batch stream and the augmentation: every protocol trap about data order, crops and flips."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch

from resnet_cifar.numerics.batches import BatchStream, Rows, augment
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.protocol import learning_rates
from resnet_cifar.numerics.randomness import epoch
from resnet_cifar.numerics.run import Run


def joined(parts: list[Rows]) -> list[list[object]]:
    return [np.concatenate(arrays).tolist() for arrays in zip(*parts, strict=True)]


def test_every_image_is_seen_equally_often_to_within_one():
    # 64,000 x 128 / 50,000 = 163.84 epochs in the paper; here 100 x 7 / 60 = 11.67.
    counts = np.bincount(BatchStream(seed=0, images=60, batch_size=7).rows(0, 100).index.reshape(-1), minlength=60)
    assert set(counts.tolist()) == {11, 12}
    assert counts.sum() == 700


def test_batches_are_the_epochs_one_after_another():
    """Each epoch a permutation; a batch goes over their border, and image, crop and flip stay together."""
    rows = BatchStream(seed=3, images=40, batch_size=16).rows(0, 5)
    first, second = epoch(3, 0, 40), epoch(3, 1, 40)
    for got, one, two in zip(rows, first, second, strict=True):
        assert got.shape == (5, 16)
        assert got.reshape(-1).tolist() == one.tolist() + two.tolist()
    assert sorted(rows.index.reshape(-1)[:40].tolist()) == list(range(40))


def test_an_image_is_cropped_and_mirrored_anew_in_each_epoch():
    rows = BatchStream(seed=1, images=500, batch_size=100).rows(0, 50)
    order = np.argsort(rows.index.reshape(10, 500), axis=1)
    for drawn, values in ((rows.top, 9), (rows.left, 9), (rows.flip, 2)):
        by_image = np.take_along_axis(drawn.reshape(10, 500), order, axis=1)
        equal = (by_image[0] == by_image[1]).mean()
        assert equal == pytest.approx(1 / values, abs=5 * (1 / values / 500) ** 0.5)  # by chance


@pytest.mark.parametrize("stretch", [1, 3, 7, 40])
def test_rows_do_not_depend_on_how_they_are_asked_for(stretch):
    """In stretches, and with a stream of its own for each as after an interruption; some go over two borders."""
    whole = BatchStream(seed=0, images=10, batch_size=8)
    expected = joined([whole.rows(0, 42)])
    starts = [(start, min(stretch, 42 - start)) for start in range(0, 42, stretch)]
    assert joined([whole.rows(*each) for each in starts]) == expected
    assert joined([BatchStream(0, 10, 8).rows(*each) for each in starts]) == expected


def test_a_batch_of_all_images_is_an_epoch():
    rows = BatchStream(seed=0, images=12, batch_size=12).rows(3, 1)
    assert rows.index[0].tolist() == epoch(0, 3, 12).index.tolist()


def test_an_endless_run_takes_no_memory_before_it_is_there(tiny_recipe, tiny_dataset):
    """`train.iterations` may be a trillion: what is far away is neither drawn nor listed."""
    endless = dataclasses.replace(tiny_recipe, iterations=10**12, eval_every=10**11, milestones=(10**11,))
    engine = EagerEngine(endless, tiny_dataset, "fp32")
    tracemalloc.start()
    try:
        run = Run(endless, tiny_dataset, engine)
        run.stream.rows(10**12 - 5, 5)
        assert learning_rates(endless, 10**12 - 5, 5) == pytest.approx([0.01] * 5)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_epochs_that_are_over_are_forgotten():
    """Thirty of 50,000 images: what is drawn for one takes 350 kB, and as much again four times while it is drawn."""
    stream = BatchStream(seed=0, images=50_000, batch_size=5000)
    tracemalloc.start()
    try:
        for start in range(0, 300, 50):
            stream.rows(start, 50)
        current, _ = tracemalloc.get_traced_memory()
        assert current < 3 * 350_000
    finally:
        tracemalloc.stop()


def test_augment_equals_padding_cropping_and_flipping_image_by_image():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((20, 3, 32, 32)).astype(np.float32)
    top, left = generator.integers(0, 9, (2, 20), dtype=np.uint8)
    flip = generator.integers(0, 2, 20, dtype=np.uint8)
    expected = np.empty_like(images)
    for i, image in enumerate(images):
        padded = np.zeros((3, 40, 40), np.float32)
        padded[:, 4:36, 4:36] = image
        crop = padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        expected[i] = crop[:, :, ::-1] if flip[i] else crop
    result = augment(*(torch.from_numpy(array) for array in (images, top, left, flip)))
    assert np.array_equal(result.numpy(), expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
