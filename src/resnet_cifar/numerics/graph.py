"""The CUDA graph engine: the eager engine's step, captured once and replayed."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from resnet_cifar.numerics.batches import Rows
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.engine import Outcome, Turn, check_finite
from resnet_cifar.numerics.network import TorchNetwork, evaluate, step
from resnet_cifar.numerics.protocol import Recipe

WARM_UP = 3
REPLAYS = 2  # of one network in a row: more fill a stream's queue, where Python then waits while others run dry
IN_FLIGHT = 8


class GraphEngine:
    """Captures the step and the evaluation once and replays them on a stream of the network's own.

    Each network has its own stream and memory pool: what runs beside it cannot change its bits. Its graphs must be gone
    before another one uses the stream, because a graph that ends may clear a workspace that the stream shares.

    Parameters
    ----------
    recipe, data, precision
        As for :class:`TorchNetwork`; the data on a CUDA device.
    stream : torch.cuda.Stream
        Used by no other network that trains at the same time.
    """

    name = "cuda graph"
    stretch = 250

    def __init__(self, recipe: Recipe, data: Dataset, precision: str, stream: torch.cuda.Stream) -> None:
        device = data.train.images.device
        self.stream = stream
        self.events: list[torch.cuda.Event] = []
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(stream):
            self.network = TorchNetwork(recipe, data, precision, self.stretch)
            # Kernels load and workspaces are made on first use, which a capture does not allow.
            with _undone(self.network):
                for _ in range(WARM_UP):
                    step(self.network)
                evaluate(self.network)
            stream.synchronize()
            pool = torch.cuda.graph_pool_handle()
            self.step_graph, self.evaluate_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            for graph, captured in ((self.step_graph, step), (self.evaluate_graph, evaluate)):
                # Others may use CUDA in this moment; only what this thread does is captured.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    captured(self.network)
            stream.synchronize()

    def steps(self, rows: Rows, rates: np.ndarray) -> Generator[Turn, None, Outcome]:
        with torch.cuda.stream(self.stream):
            self.network.load(rows, torch.from_numpy(rates))
        for start in range(0, len(rates), REPLAYS):
            while self._in_flight() >= IN_FLIGHT:
                yield Turn.WAITING
            self._replay(self.step_graph, min(REPLAYS, len(rates) - start))
            yield Turn.WORKING
        yield from self._finish()
        with torch.cuda.stream(self.stream):
            losses, errors = (
                tensor[: len(rates)].cpu().numpy() for tensor in (self.network.losses, self.network.errors)
            )
        check_finite(losses)
        return Outcome(losses, errors)

    def evaluate(self) -> Generator[Turn, None, dict[str, np.ndarray]]:
        self._replay(self.evaluate_graph, 1)
        yield from self._finish()
        with torch.cuda.stream(self.stream):
            return {name: logits.cpu().numpy() for name, logits in self.network.logits.items()}

    def _replay(self, graph: torch.cuda.CUDAGraph, times: int) -> None:
        with torch.cuda.stream(self.stream):
            for _ in range(times):
                graph.replay()
            event = torch.cuda.Event()
            event.record(self.stream)
        self.events.append(event)

    def _in_flight(self) -> int:
        self.events = [event for event in self.events if not event.query()]
        return len(self.events) * REPLAYS

    def _finish(self) -> Iterator[Turn]:
        while self._in_flight():
            yield Turn.WAITING

    def tensors(self) -> dict[str, Tensor]:
        return self.network.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.cuda.stream(self.stream):
            self.network.restore(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def velocities(self) -> dict[str, Tensor]:
        return self.network.velocities()


@contextmanager
def _undone(network: TorchNetwork) -> Iterator[None]:
    """Leave the network as it was, whatever is run meanwhile."""
    before = {name: tensor.clone() for name, tensor in network.tensors().items()}
    yield
    network.restore(before)
    network.row.zero_()
