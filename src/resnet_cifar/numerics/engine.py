"""Two ways to drive the one step: eagerly, and as a CUDA graph that is replayed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_cifar.training.step import TrainState, evaluate, step

WARM_UP = 3


class EagerEngine:
    """Runs the step as it is; on the CPU, and as the reference on a GPU."""

    chunk = 1

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def steps(self, count: int) -> None:
        """Run ``count`` iterations."""
        for _ in range(count):
            step(self.state)

    def evaluate(self) -> None:
        """Evaluate the present weights."""
        evaluate(self.state)

    def queued(self) -> int:
        """How many pieces of work are not done yet."""
        return 0

    def wait(self) -> None:
        """Return when all queued work is done."""
        if self.state.iteration.is_cuda:
            torch.cuda.synchronize(self.state.iteration.device)

    def seconds_per_step(self) -> float:
        """The time of one iteration, measured on this network, which is left as it was."""
        with _undone(self.state):
            step(self.state)
            began = time.perf_counter()
            step(self.state)
            return time.perf_counter() - began


class GraphEngine:
    """Captures the step and the evaluation once and replays them on a stream of the network's own.

    Each network has its own stream and memory pool: what runs beside it cannot change its bits.

    Parameters
    ----------
    state : TrainState
        The network, on a CUDA device.
    stream : torch.cuda.Stream
        Used by no other network that trains at the same time.
    """

    chunk = 50

    def __init__(self, state: TrainState, stream: torch.cuda.Stream) -> None:
        self.state, self.stream = state, stream
        self.events: list[torch.cuda.Event] = []
        device = state.iteration.device
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(stream):
            # Kernels load and workspaces are made on first use, which a capture does not allow.
            with _undone(state):
                for _ in range(min(WARM_UP, state.recipe.iterations - int(state.iteration))):
                    step(state)
                evaluate(state)
            stream.synchronize()
            self.step_graph, self.evaluate_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(self.step_graph, pool=pool, stream=stream):
                step(state)
            with torch.cuda.graph(self.evaluate_graph, pool=pool, stream=stream):
                evaluate(state)
            stream.synchronize()

    def steps(self, count: int) -> None:
        """Queue ``count`` iterations."""
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                self.step_graph.replay()
            self._mark()

    def evaluate(self) -> None:
        """Queue an evaluation of the weights as they will be then."""
        with torch.cuda.stream(self.stream):
            self.evaluate_graph.replay()
            self._mark()

    def _mark(self) -> None:
        event = torch.cuda.Event()
        event.record(self.stream)
        self.events.append(event)

    def queued(self) -> int:
        """How many pieces of work are not done yet."""
        self.events = [event for event in self.events if not event.query()]
        return len(self.events)

    def wait(self) -> None:
        """Return when all queued work is done."""
        self.stream.synchronize()
        self.events.clear()


@contextmanager
def _undone(state: TrainState) -> Iterator[None]:
    """Leave the network as it was, whatever is run meanwhile."""
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    yield
    state.restore(before)
