"""How long cells would train on this machine: measured on made-up images, with the engines that train."""

import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from resnet_cifar.cells import Cell
from resnet_cifar.numerics.batches import BatchStream
from resnet_cifar.numerics.data import Dataset, Split
from resnet_cifar.numerics.engine import Engine, Turn
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.params import Study
from resnet_cifar.training import memory
from resnet_cifar.training.engines import Computer

TEST_IMAGES = 10_000
PROBE_IMAGES = 1000
MEASURED = 0.5  # seconds at least

Turns = Generator[Turn, None, Any]


def estimate(
    computer: Computer, study: Study, cells: list[Cell], iterations: int, pack: int | None = None, devices: int = 1
) -> float:
    """Seconds that so many devices like this one take for cells, each with as many of a depth at once as it takes.

    Parameters
    ----------
    computer : Computer
        One of the devices.
    study : Study
        The parameters.
    cells : list of Cell
        At least one.
    iterations : int
        How many of each.
    pack : int, optional
        How many the environment wants to train at once.
    devices : int
        How many devices there are.
    """
    train = study.train
    evaluations = -(-iterations // train.eval_every) * (TEST_IMAGES + study.data.validation) / PROBE_IMAGES
    data = _made_up(train.batch_size).to(computer.device)
    seconds = 0.0
    for net, n in sorted({(cell.net, cell.n) for cell in cells}):
        recipes = [study.recipe(cell) for cell in cells if (cell.net, cell.n) == (net, n)]
        at_once = min(-(-len(recipes) // devices), memory.fit_at_once(computer, recipes, pack))
        step, evaluation = _measure(computer, recipes[:at_once], data)
        seconds += (iterations * step + evaluations * evaluation) * len(recipes) / at_once
    return seconds / min(devices, len(cells))


def _measure(computer: Computer, recipes: list[Recipe], data: Dataset) -> tuple[float, float]:
    """Seconds of one iteration, and of one evaluation, of all networks at once."""
    on_gpu = computer.device.type == "cuda"
    engines = [
        computer.engine(recipe, data, torch.cuda.Stream(computer.device) if on_gpu else None) for recipe in recipes
    ]
    count = engines[0].stretch
    rows = BatchStream(recipes[0].seed, len(data.train), recipes[0].batch_size).rows(0, count)
    rates = np.zeros(count, np.float32)  # the same work as with others, and nothing diverges

    def steps(engine: Engine) -> Turns:
        return engine.steps(rows, rates)

    _drive(engines, steps)  # the first time is slower
    return _time(engines, steps) / count, _time(engines, lambda engine: engine.evaluate())


def _time(engines: list[Engine], work: Callable[[Engine], Turns]) -> float:
    """Seconds of some work of all engines, the mean of as many times as it takes to measure them."""
    began, times = time.perf_counter(), 0
    while not times or time.perf_counter() - began < MEASURED:
        _drive(engines, work)
        times += 1
    return (time.perf_counter() - began) / times


def _drive(engines: list[Engine], work: Callable[[Engine], Turns]) -> None:
    """Have all engines do some work side by side."""
    turns = [work(engine) for engine in engines]
    while turns:
        turns = [turn for turn in turns if next(turn, None)]


def _made_up(batch_size: int) -> Dataset:
    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,)))

    return Dataset(
        train=split(batch_size),
        validation=None,
        test=split(PROBE_IMAGES),
        pixel_mean=torch.zeros(3, 32, 32),
        channel_mean=torch.zeros(3, 1, 1),
        channel_std=torch.ones(3, 1, 1),
    )
