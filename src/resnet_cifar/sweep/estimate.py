"""How long cells would train on this machine: measured on made-up images, with the engine that trains."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from resnet_cifar.cells import Cell
from resnet_cifar.params import Params
from resnet_cifar.training.engine import EagerEngine, GraphEngine
from resnet_cifar.training.loop import Trainer
from resnet_cifar.training.packing import fit_at_once
from resnet_cifar.training.runs import Session
from resnet_cifar.training.step import TrainState

TEST_IMAGES = 10_000
PROBE_TEST_IMAGES = 1000
PROBE_ITERATIONS = 200


def estimate(params: Params, cells: list[Cell], devices: int) -> float:
    """Seconds that so many devices like the first take for cells, each depth as many at once as the device takes."""
    train = params.train
    images = TEST_IMAGES + params.data.validation
    evaluations = -(-train.iterations // train.eval_every) * images / PROBE_TEST_IMAGES
    with TemporaryDirectory() as folder:
        session = _probe_session(params, Path(folder))
        seconds = 0.0
        for n, count in Counter(cell.n for cell in cells).items():
            alike = [cell for cell in cells if cell.n == n]
            at_once = min(count, fit_at_once(session, alike))
            step, evaluation = _measure(session, alike[:at_once])
            seconds += (train.iterations * step + evaluations * evaluation) * count / at_once
    return seconds / min(devices, len(cells))


def _measure(session: Session, cells: list[Cell]) -> tuple[float, float]:
    """Seconds of one iteration, and of one evaluation, of all cells at once."""
    engines = []
    for cell in cells:
        stream = torch.cuda.Stream(session.device) if session.device.type == "cuda" else None
        state = TrainState(session.recipe(cell), session.dataset, session.params.train.eval_every)
        engines.append(Trainer(state, stream).engine)
    chunk = engines[0].chunk
    _time(engines, lambda engine: engine.steps(chunk))
    return _time(engines, lambda engine: engine.steps(chunk)) / chunk, _time(engines, lambda engine: engine.evaluate())


def _time(engines: list[EagerEngine | GraphEngine], work: Callable[[EagerEngine | GraphEngine], None]) -> float:
    began = time.perf_counter()
    for engine in engines:
        work(engine)
    for engine in engines:
        engine.wait()
    return time.perf_counter() - began


def _probe_session(params: Params, folder: Path) -> Session:
    tensors = {}
    for name, count in (("train", params.train.batch_size), ("test", PROBE_TEST_IMAGES)):
        tensors[f"{name}_images"] = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        tensors[f"{name}_labels"] = torch.randint(0, 10, (count,), dtype=torch.uint8)
    tensors |= {"pixel_mean": torch.zeros(3, 32, 32), "channel_mean": torch.zeros(3, 1, 1)}
    save_file(tensors | {"channel_std": torch.ones(3, 1, 1)}, folder / "data.safetensors")
    short = {"iterations": PROBE_ITERATIONS, "milestones": [], "eval_every": PROBE_ITERATIONS}
    params = params.model_copy(update={"train": params.train.model_copy(update=short)})
    return Session(params, folder / "data.safetensors", folder / "runs", folder / "scratch")
