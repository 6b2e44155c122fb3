"""The batch stream and the augmentation: every protocol trap about data order, crops and flips."""

import numpy as np
import torch

from resnet_cifar.batches import augment, draw


def test_every_image_is_seen_equally_often_to_within_one():
    # 64,000 x 128 / 50,000 = 163.84 epochs in the paper; here 100 x 7 / 60 = 11.67.
    counts = torch.bincount(draw(seed=0, images=60, iterations=100, batch_size=7).index.flatten(), minlength=60)
    assert set(counts.tolist()) == {11, 12}
    assert counts.sum() == 700


def test_an_epoch_is_a_permutation_and_the_next_another_one():
    order = draw(seed=3, images=40, iterations=10, batch_size=8).index.flatten()
    assert sorted(order[:40].tolist()) == list(range(40))
    assert sorted(order[40:].tolist()) == list(range(40))
    assert order[:40].tolist() != order[40:].tolist()
    assert order[:40].tolist() != list(range(40))


def test_crops_and_flips_are_uniform_and_drawn_per_image():
    stream = draw(seed=1, images=1000, iterations=500, batch_size=128)
    draws = stream.top.numel()
    for offsets in (stream.top, stream.left):
        counts = torch.bincount(offsets.flatten().int(), minlength=9)
        assert len(counts) == 9
        # Each ninth of the draws, to five standard deviations of the binomial distribution.
        assert ((counts - draws / 9).abs() < 5 * (draws * 1 / 9 * 8 / 9) ** 0.5).all()
    assert abs(int(stream.flip.sum()) - draws / 2) < 5 * (draws / 4) ** 0.5
    for tensor in (stream.top, stream.left, stream.flip):
        assert all(len(row.unique()) > 1 for row in tensor)
    pairs = torch.stack([stream.top.float(), stream.left.float(), stream.flip.float()]).flatten(1)
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 0.02


def test_the_seed_alone_decides_the_stream():
    first, again, other = (draw(seed, 50, 20, 8) for seed in (5, 5, 6))
    for name in ("index", "top", "left", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_a_longer_run_begins_with_the_same_order():
    assert torch.equal(draw(0, 50, 20, 8).index, draw(0, 50, 40, 8).index[:20])


def test_augment_equals_padding_cropping_and_flipping_image_by_image():
    generator = np.random.default_rng(0)
    images = generator.standard_normal((20, 3, 32, 32)).astype(np.float32)
    top, left = generator.integers(0, 9, (2, 20), dtype=np.uint8)
    flip = generator.integers(0, 2, 20).astype(bool)
    expected = np.empty_like(images)
    for i, image in enumerate(images):
        padded = np.zeros((3, 40, 40), np.float32)
        padded[:, 4:36, 4:36] = image
        crop = padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        expected[i] = crop[:, :, ::-1] if flip[i] else crop
    result = augment(*(torch.from_numpy(array) for array in (images, top, left, flip)))
    assert np.array_equal(result.numpy(), expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_border_is_the_mean_after_normalisation():
    """Padding comes after the mean is subtracted: a corner crop of the mean image is zero everywhere."""
    mean_image = torch.full((1, 3, 32, 32), 0.4)
    zero = torch.zeros(1, dtype=torch.uint8)
    result = augment(mean_image - 0.4, zero, zero, zero.bool())
    assert torch.equal(result, torch.zeros_like(result))
