"""On a GPU: the graph is the eager step, and neither company nor interruption changes a bit."""

import dataclasses

import pytest
import torch

from resnet_cifar.cells import Cell
from resnet_cifar.dataset import Dataset, Split
from resnet_cifar.training.engine import EagerEngine, GraphEngine
from resnet_cifar.training.loop import Trainer
from resnet_cifar.training.protocol import Recipe, recipe
from resnet_cifar.training.step import TrainState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

NETWORKS = [("resnet", 1, "A"), ("resnet", 2, "B"), ("plain", 1, "A")]


@pytest.fixture(scope="module")
def data(tiny_dataset) -> Dataset:
    """The tiny data set on the GPU."""
    moved = {name: Split(*(x.cuda() for x in vars(getattr(tiny_dataset, name)).values())) for name in ("train", "test")}
    return dataclasses.replace(tiny_dataset, **moved)


def recipe_of(params, network: tuple[str, int, str], precision: str) -> Recipe:
    net, n, shortcut = network
    made = recipe(params, Cell(net, n, 0), precision)
    return dataclasses.replace(made, shortcut=shortcut, iterations=120, milestones=(60,))


def finished(state: TrainState, stream: torch.cuda.Stream) -> dict[str, torch.Tensor]:
    trainer = Trainer(state, stream)
    while not trainer.finished:
        trainer.advance()
    trainer.settle()
    return {name: tensor.cpu() for name, tensor in state.tensors().items()}


def same(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, y[name]) for name, tensor in x.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_graph_is_the_eager_step_bit_by_bit(tiny_study, data, network, precision):
    made = recipe_of(tiny_study, network, precision)
    eager, graph = TrainState(made, data, 50), TrainState(made, data, 50)
    engines = EagerEngine(eager), GraphEngine(graph, torch.cuda.Stream())
    for engine in engines:
        engine.steps(10)
        engine.evaluate()
        engine.wait()
    torch.cuda.synchronize()
    assert int(eager.iteration) == 10
    assert same(eager.tensors(), graph.tensors())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_together_is_alone(tiny_study, data, precision):
    recipes = [recipe_of(tiny_study, network, precision) for network in NETWORKS]
    alone = [finished(TrainState(made, data, 50), torch.cuda.Stream()) for made in recipes]
    trainers = [Trainer(TrainState(made, data, 50), torch.cuda.Stream()) for made in recipes]
    while not all(trainer.finished for trainer in trainers):
        for trainer in trainers:
            if not trainer.finished:
                trainer.advance()
    for trainer, expected in zip(trainers, alone, strict=True):
        trainer.settle()
        assert same({name: tensor.cpu() for name, tensor in trainer.state.tensors().items()}, expected)


def test_resumed_is_uninterrupted(tiny_study, data):
    made = recipe_of(tiny_study, NETWORKS[0], "bf16")
    whole = finished(TrainState(made, data, 50), torch.cuda.Stream())
    first = Trainer(TrainState(made, data, 50), torch.cuda.Stream())
    first.advance()
    first.settle()
    again = TrainState(made, data, 50)
    again.restore({name: tensor.cpu() for name, tensor in first.state.tensors().items()})
    assert 0 < int(again.iteration) < 120
    assert same(finished(again, torch.cuda.Stream()), whole)


def test_a_run_that_was_saved_at_its_end_only_writes_its_files(tiny_study, data):
    """As the first network of a process: nothing is warm, and there is no step left to capture."""
    made = recipe_of(tiny_study, NETWORKS[0], "bf16")
    state = TrainState(made, data, 50)
    finished(state, torch.cuda.Stream())
    again = TrainState(made, data, 50)
    again.restore(state.tensors())
    trainer = Trainer(again, torch.cuda.Stream())
    assert trainer.finished
    assert isinstance(trainer.engine, EagerEngine)
    assert trainer.history() == Trainer(state).history()


def test_the_batches_are_the_cpus(tiny_study, data, tiny_dataset):
    made = recipe_of(tiny_study, NETWORKS[0], "fp32")
    on_gpu, on_cpu = TrainState(made, data, 50), TrainState(made, tiny_dataset, 50)
    for name in ("index", "top", "left", "flip"):
        assert torch.equal(getattr(on_gpu.stream, name).cpu(), getattr(on_cpu.stream, name))
    assert torch.equal(on_gpu.weights.cpu(), on_cpu.weights)


def test_the_first_step_is_the_cpus_to_rounding(tiny_study, data, tiny_dataset):
    made = recipe_of(tiny_study, NETWORKS[0], "fp32")
    on_gpu, on_cpu = TrainState(made, data, 50), TrainState(made, tiny_dataset, 50)
    EagerEngine(on_gpu).steps(1)
    EagerEngine(on_cpu).steps(1)
    assert on_gpu.losses[0].item() == pytest.approx(on_cpu.losses[0].item(), rel=1e-4)
    difference = (on_gpu.velocity.cpu() - on_cpu.velocity).norm() / on_cpu.velocity.norm()
    assert difference < 1e-2
