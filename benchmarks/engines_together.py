"""Train one network by the native engine and by PyTorch's step, from the same weights on the same batches.

Rounding makes the two drift apart within tens of iterations, as any two orders of summation do. How far that may take
the mean loss and error of many iterations, the native engine shows on itself: it also trains from weights moved by a
rounding error. PyTorch's means should lie about where those lie. Printed is a Markdown table, a row for so many
iterations, and at the end the test errors. PyTorch's step takes half a second for a ResNet-56 on two cores.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch

from resnet_cifar import dataset, params, settings
from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError, exit_with
from resnet_cifar.numerics import metrics
from resnet_cifar.numerics.batches import BatchStream
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Engine, Turn
from resnet_cifar.numerics.protocol import Recipe, learning_rates
from resnet_cifar.progress import Progress, say
from resnet_cifar.training.engines import Computer

HEAD = """\
| Iterations | loss, native | moved | eager | training error %, native | moved | eager |
|:--|--:|--:|--:|--:|--:|--:|"""
ROUNDING = 1e-7  # of a float, about


def finish(turns: Iterator[Turn]) -> object:
    """What a generator of turns returns."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


def move(engine: Engine, seed: int) -> None:
    """Multiply each weight by 1 and about a rounding error, drawn from a seed."""
    tensors = engine.tensors()
    noise = torch.randn(tensors["weights"].shape, generator=torch.Generator().manual_seed(seed))
    engine.restore(tensors | {"weights": tensors["weights"] * (1 + ROUNDING * noise)})


def curve(engine: Engine, recipe: Recipe, data: Dataset, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss, in nats, and share of wrong predictions of each iteration's batch, two arrays of shape (iterations,)."""
    stream = BatchStream(recipe.seed, len(data.train), recipe.batch_size)
    progress = Progress(engine.name, iterations)
    losses, errors = [], []
    for at in range(0, iterations, engine.stretch):
        count = min(engine.stretch, iterations - at)
        outcome = finish(engine.steps(stream.rows(at, count), learning_rates(recipe, at, count)))
        losses.append(outcome.losses)
        errors.append(outcome.errors / recipe.batch_size)
        progress.update(at + count)
    return np.concatenate(losses), np.concatenate(errors)


def test_error(engine: Engine, data: Dataset) -> float:
    """In percent."""
    return metrics.error(finish(engine.evaluate())["test"], data.test.labels.numpy())


def columns(values: np.ndarray, digits: int) -> str:
    """The native engine's value, the least and the greatest that it has from moved weights, and eager's."""
    native, *moved, eager = values
    return f"{native:.{digits}f} | {min(moved):.{digits}f} to {max(moved):.{digits}f} | {eager:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="data/cifar10.safetensors", help="the preprocessed data set")
    parser.add_argument("--cell", default="resnet-9-0", help="net, n and seed (default: resnet-9-0)")
    parser.add_argument("--iterations", type=int, default=2000, help="to train (default: 2000)")
    parser.add_argument("--moved", type=int, default=4, help="native runs from moved weights, 1 or more (default: 4)")
    parser.add_argument("--every", type=int, default=250, help="iterations of a row (default: 250)")
    args = parser.parse_args()

    if min(args.iterations, args.moved, args.every) < 1:
        raise InputError("--iterations, --moved and --every are numbers from 1 on.")
    study, computer = params.load(), Computer(settings.read(), say)
    recipe, data = study.recipe(Cell.parse(args.cell)), dataset.load(args.data)
    native = computer.engine(recipe, data)
    if native.name != "native":
        raise InputError(f"{args.cell} is trained by the {native.name} engine here: there is nothing to compare.")
    others = [computer.engine(recipe, data) for _ in range(args.moved)]
    for seed, engine in enumerate(others):
        move(engine, seed)
    engines = [native, *others, EagerEngine(recipe, data, "fp32")]
    curves = [curve(engine, recipe, data, args.iterations) for engine in engines]
    print(HEAD)
    for first, end in pairwise([*range(0, args.iterations, args.every), args.iterations]):
        losses, errors = (np.array([np.mean(each[what][first:end]) for each in curves]) for what in (0, 1))
        print(f"| {first + 1:,} to {end:,} | {columns(losses, 4)} | {columns(100 * errors, 2)} |")
    found = np.array([test_error(engine, data) for engine in engines])
    print(f"Test error, %: native, moved, eager: {columns(found, 2)}")


if __name__ == "__main__":
    exit_with(main)
