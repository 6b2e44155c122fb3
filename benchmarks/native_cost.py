"""How long a step of the native engine takes: by depth, batch size, threads and instruction set; a Markdown table.

The step is whole, from the data set's bytes to the new weights, on made-up images. Each case is measured alone, for so
many seconds, on a machine that should do nothing else.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import numpy as np
import torch
from native_runs import MOMENTUM, WEIGHT_DECAY, make_state

from resnet_cifar import settings
from resnet_cifar.errors import InputError, exit_with
from resnet_cifar.machine import device_name
from resnet_cifar.native.library import Unavailable, load
from resnet_cifar.native.network import Batches, Images, NativeNetwork
from resnet_cifar.native.sets import FAST, runnable
from resnet_cifar.progress import say

IMAGES = 10_000
STEPS = 50  # batches that take turns
WARM_UP = 2
RATE = 0.001  # small, so that no loss stops being finite; the work is the same
HEAD = "| Network | Batch | Threads | Set | ms a step, fastest | median | images/s |\n|:--|--:|--:|:--|--:|--:|--:|"


def cases(cores: int) -> Iterator[tuple[int, int, int, str]]:
    """n, batch size, threads and instruction set: one after another is varied, from ResNet-20 on all cores."""
    names = [each.name for each in runnable(FAST)]
    if not names:
        raise InputError("the native engine needs AVX2, AVX-512 or NEON, none of which this processor has.")
    for n in (3, 5, 7, 9, 18):
        yield n, 128, cores, names[0]
    for batch in (16, 32, 64, 256, 512):
        yield 3, batch, cores, names[0]
    for name in names:
        for threads in sorted({1, cores}):
            for n in (3, 9):
                if (threads, name) != (cores, names[0]):
                    yield n, 128, threads, name


def make_images(random: np.random.Generator) -> Images:
    """Noise, with CIFAR-10's mean and deviation about."""
    pixels, labels = random.integers(0, 256, (IMAGES, 3, 32, 32), np.uint8), random.integers(0, 10, IMAGES, np.uint8)
    return Images(pixels, labels, np.full((3, 32, 32), 0.47, np.float32), np.full(3, 0.25, np.float32))


def make_batches(random: np.random.Generator, batch: int) -> list[Batches]:
    """One step each."""
    shape = (1, batch)
    return [
        Batches(
            random.integers(0, IMAGES, shape, np.int32),
            *(random.integers(0, end, shape, np.uint8) for end in (9, 9, 2)),  # top, left, flip
        )
        for _ in range(STEPS)
    ]


def times(n: int, batch: int, threads: int, name: str, seconds: float) -> list[float]:
    """Seconds of each step, at least three."""
    random = np.random.default_rng(0)
    try:
        library = load(name, say)
    except Unavailable as error:
        raise InputError(f"the native engine cannot be used here: {error}.") from None
    network = NativeNetwork(library, "resnet", n, batch, threads)
    images, state, batches = make_images(random), make_state(n), itertools.cycle(make_batches(random, batch))
    found: list[float] = []
    while len(found) < WARM_UP + 3 or sum(found) < seconds:
        now = next(batches)
        began = time.perf_counter()
        network.train(images, state, now, [RATE], MOMENTUM, WEIGHT_DECAY)
        found.append(time.perf_counter() - began)
    network.close()
    return found[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case (default: 5)")
    args = parser.parse_args()
    print(f"{device_name(torch.device('cpu'))}\n\n{HEAD}", flush=True)
    for n, batch, threads, name in cases(settings.read().threads):
        found = times(n, batch, threads, name, args.seconds)
        fastest, median = min(found), statistics.median(found)
        print(
            f"| ResNet-{6 * n + 2} | {batch} | {threads} | {name} | {1000 * fastest:.1f} | {1000 * median:.1f} "
            f"| {batch / median:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    exit_with(main)
