"""On a GPU: the graph is the eager step, and neither company nor interruption changes a bit.

    RESNET_CIFAR_DEVICE=cuda PYTHONPATH=src python -m pytest --numprocesses 0 tests/test_cuda.py

Without the variable these tests skip where torch sees no GPU; with it they fail there.
"""

import dataclasses
import faulthandler
import gc
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import ASKED_DEVICE, advance, changed, drain, make_session, write_tiny_dataset

from resnet_cifar import dataset, machine, settings
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import Interrupted
from resnet_cifar.files import sha256
from resnet_cifar.numerics import determinism
from resnet_cifar.numerics.batches import BatchStream, Rows
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Engine, Turn
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.numerics.logits import BATCH
from resnet_cifar.numerics.network import TorchNetwork, count_errors, step
from resnet_cifar.numerics.protocol import Recipe, learning_rates
from resnet_cifar.numerics.run import Run
from resnet_cifar.numerics.weights import digest
from resnet_cifar.results import Evaluator
from resnet_cifar.training import memory, record
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.train import train_cells

pytestmark = pytest.mark.skipif(
    not (ASKED_DEVICE.startswith("cuda") or (torch.cuda.is_available() and ASKED_DEVICE != "cpu")),
    reason="needs a CUDA GPU",
)

SECONDS = 180  # of one test, after which the process ends with every thread's stack
NETWORKS = [("resnet", 1, "A"), ("resnet", 2, "B"), ("plain", 1, "A")]
TRAIN, TEST = 300, 2100  # images: more than two batches of 128, and an evaluation of two whole batches and a part


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A GPU that hangs ends the tests instead of the loan."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The GPU that was asked for, or the first one. Fails where it cannot be used."""
    chosen = machine.choose_device(ASKED_DEVICE or "cuda")
    determinism.configure(chosen, 1)
    return chosen


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "cifar10.safetensors", TRAIN, TEST)


@pytest.fixture(scope="module")
def data(path, device) -> Dataset:
    return dataset.load(path).to(device)


@pytest.fixture(scope="module")
def base(tiny_recipe) -> Recipe:
    """120 iterations of 8 images, evaluated after every 50."""
    return dataclasses.replace(tiny_recipe, iterations=120, milestones=(60,), eval_every=50, lr=0.01)


def of(base: Recipe, network: tuple[str, int, str], **changes: object) -> Recipe:
    net, n, shortcut = network
    return dataclasses.replace(base, net=net, n=n, shortcut=shortcut, **changes)


def graph(recipe: Recipe, data: Dataset, stream: torch.cuda.Stream | None = None) -> Run:
    """A network on a stream, by default one of its own."""
    stream = stream or torch.cuda.Stream(data.train.images.device)
    return Run(recipe, data, GraphEngine(recipe, data, recipe.precision, stream))


def result(run: Run) -> tuple[str, str]:
    """Exact weights, statistics and velocities, and the curve."""
    velocities = {f"velocity.{name}": tensor for name, tensor in run.engine.velocities().items()}
    return digest(run.engine.state_dict() | velocities), run.history()


def alone(recipe: Recipe, data: Dataset) -> tuple[str, str]:
    run = graph(recipe, data)
    drain(run.train())
    return result(run)


def side_by_side(runs: list[Run]) -> list[tuple[str, str]]:
    """Train several, each as far as it gets in its turn, until all are done."""
    active = {run: run.train() for run in runs}
    together = 0
    while active:
        for run, turns in list(active.items()):
            if next(turns, None) is None:
                del active[run]
        together = max(together, sum(0 < run.iteration < run.recipe.iterations for run in active))
    assert together == len(runs)  # every one was under way at the same time
    return [result(run) for run in runs]


def test_the_gpu_can_be_used(device):
    assert device.type == "cuda"
    assert torch.zeros(1, device=device).add(1).item() == 1
    print(torch.__version__, torch.backends.cudnn.version(), torch.cuda.get_device_name(device))


# ---- The graph is the eager step


@pytest.mark.parametrize("batch_size", [8, 128])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_graph_is_the_eager_step_bit_by_bit(base, data, device, network, precision, batch_size):
    """Losses, errors, logits and all that a step changes. Batches of 128 and evaluations of 1,000 have own kernels."""
    made = of(base, network, precision=precision, batch_size=batch_size)
    rows = BatchStream(made.seed, TRAIN, batch_size).rows(0, 10)
    rates = learning_rates(made, 0, 10)
    engines: list[Engine] = [
        EagerEngine(made, data, precision),
        GraphEngine(made, data, precision, torch.cuda.Stream(device)),
    ]
    found = []
    for engine in engines:
        outcomes = []
        for start in range(0, 10, engine.stretch):
            stretch = slice(start, start + engine.stretch)
            outcomes.append(drain(engine.steps(Rows(*(array[stretch] for array in rows)), rates[stretch])))
        logits = drain(engine.evaluate())["test"]
        assert logits.shape == (TEST, 10)
        assert np.isfinite(logits).all()
        found.append([np.concatenate(each) for each in zip(*outcomes, strict=True)] + [logits])
    assert BATCH["cuda"] < TEST
    assert all(map(np.array_equal, *found))
    tensors = [{name: tensor.cpu() for name, tensor in engine.tensors().items()} for engine in engines]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    assert digest(engines[0].state_dict()) == digest(engines[1].state_dict())


def test_warm_up_and_capture_leave_the_network_as_it_was(base, data, device):
    for precision in ("fp32", "bf16"):
        made = of(base, NETWORKS[0], precision=precision)
        captured = GraphEngine(made, data, precision, torch.cuda.Stream(device))
        fresh = TorchNetwork(made, data, precision, 1)
        assert digest(captured.state_dict()) == digest(fresh.state_dict())
        assert not captured.network.velocity.any()
        assert torch.equal(captured.network.working, fresh.working)


# ---- Company


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_together_is_alone(base, data, precision):
    """Eight networks, of other depths and seeds, on a stream each, with batches of 128."""
    networks = [*NETWORKS, ("resnet", 3, "A"), *[NETWORKS[0]] * 4]
    longer = dataclasses.replace(base, precision=precision, batch_size=128, iterations=400)
    recipes = [of(longer, each, seed=seed) for seed, each in enumerate(networks)]
    expected = [alone(made, data) for made in recipes]
    assert len(set(expected)) == len(recipes)
    assert side_by_side([graph(made, data) for made in recipes]) == expected


def test_a_capture_beside_replays_changes_neither(base, data):
    """A network is made while two others have work in flight, as when a place becomes free."""
    recipes = [of(base, NETWORKS[0], batch_size=128, seed=seed) for seed in range(3)]
    expected = [alone(made, data) for made in recipes]
    runs = [graph(made, data) for made in recipes[:2]]
    turns = [run.train() for run in runs]
    for each in turns:
        while next(each) is not Turn.WAITING:
            pass
    assert all(run.iteration == 0 for run in runs)  # the first stretch is in flight
    runs.append(graph(recipes[2], data))
    for each in (*turns, runs[2].train()):
        drain(each)
    assert [result(run) for run in runs] == expected


def test_a_stream_is_used_again_while_another_ones_graphs_live(base, data, device):
    """The graphs of a network that is done are destroyed first: their end may clear what the stream shares."""
    recipes = [of(base, network, precision="bf16") for network in NETWORKS]
    expected = [alone(made, data) for made in recipes]
    stream = torch.cuda.Stream(device)
    lasting = graph(recipes[2], data)
    turns = lasting.train()
    for _ in range(5):
        next(turns)
    for made, right in zip(recipes[:2], expected[:2], strict=True):
        run = graph(made, data, stream)
        drain(run.train())
        assert result(run) == right
        del run
        gc.collect()
        next(turns)
    drain(turns)
    assert result(lasting) == expected[2]


def test_destroyed_graphs_give_their_memory_back(base, data, device):
    made = of(base, NETWORKS[0], batch_size=128)
    used = []
    for _ in range(3):
        run = graph(made, data)
        drain(run.train())
        del run
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved(device))
    assert used[2] <= used[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_second_gpu_of_the_same_kind_gives_the_same_bits(base, data, path):
    names = {torch.cuda.get_device_name(index) for index in range(2)}
    if len(names) > 1:
        pytest.skip(f"needs two GPUs of one kind, these are {names}")
    made = of(base, NETWORKS[0], batch_size=128)
    before = torch.cuda.memory_allocated(0)
    other = dataset.load(path).to(torch.device("cuda", 1))
    with torch.cuda.device(1):
        expected = alone(made, other)
    assert torch.cuda.memory_allocated(0) == before
    assert alone(made, data) == expected


# ---- Interruption


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_uninterrupted(base, data, precision):
    made = of(base, NETWORKS[0], precision=precision)
    expected = alone(made, data)
    for iteration in (1, 60, 120):  # whole after 50, 100 and 120
        first = advance(graph(made, data), iteration)
        tensors, rest = first.saved()
        again = graph(made, data)
        again.restore({name: tensor.cpu() for name, tensor in tensors.items()}, rest)
        assert again.iteration in (50, 100, 120)
        drain(again.train())
        assert result(again) == expected


# ---- Cells and their files


CELLS = [Cell("resnet", 1, 0), Cell("resnet", 2, 0), Cell("plain", 1, 0), Cell("resnet", 1, 1), Cell("resnet", 3, 0)]


@pytest.fixture
def study(tiny_study):
    values = {"iterations": 1500, "milestones": [700], "eval_every": 250, "lr": 0.01}
    return changed(tiny_study, batch_size=128, precision="bf16", **values)


def files_of(session, cell: Cell) -> tuple[bytes, bytes]:
    files = run_files(session.runs, cell)
    return files.weights.read_bytes(), files.history.read_bytes()


def test_cells_alone_at_once_and_resumed_leave_the_same_files(study, path, device, tmp_path, monkeypatch):
    """Five cells one at a time; then three at once, stopped when all three are under way, and again to the end."""
    lines: list[str] = []
    one = make_session(study, path, tmp_path / "one", device=str(device), pack=1)
    assert train_cells(one, CELLS, lines.append) == {}
    three = make_session(study, path, tmp_path / "three", device=str(device), pack=3, save_every=0.0)
    turn = CellRun.turn
    reached: dict[Cell, int] = {}

    def counted(self: CellRun) -> Turn:
        said = turn(self)
        reached[self.cell] = self.run.iteration
        if sum(iteration >= 250 for iteration in reached.values()) == 3 and not list(three.runs.iterdir()):
            os.kill(os.getpid(), signal.SIGTERM)
        return said

    monkeypatch.setattr(CellRun, "turn", counted)
    with pytest.raises(Interrupted):
        train_cells(three, CELLS, lines.append)
    monkeypatch.undo()
    states = {state.parent.name for state in three.scratch.rglob("*.safetensors")}
    assert len(states) == 3
    assert train_cells(three, CELLS, lines.append) == {}
    resumed = {}
    for cell in CELLS:
        assert files_of(three, cell) == files_of(one, cell)
        found = record.read(run_files(three.runs, cell))
        resumed[cell.name] = found.resumed_at
        assert found.arithmetic == record.read(run_files(one.runs, cell)).arithmetic
        assert (found.arithmetic.engine, found.arithmetic.precision) == ("cuda graph", "bf16")
        assert found.arithmetic.cudnn == torch.backends.cudnn.version()
    assert {name for name, iterations in resumed.items() if iterations} == states
    assert three.is_trained(CELLS[0])


def test_as_many_as_the_memory_takes(study, path, device, tmp_path):
    session = make_session(study, path, tmp_path, device=str(device))
    lines: list[str] = []
    assert memory.fit_at_once(session.computer, [study.recipe(cell) for cell in CELLS[:2]], None) > 1
    assert train_cells(session, CELLS[:2], lines.append) == {}
    assert not [line for line in lines if "no memory" in line]


def test_the_curves_last_point_is_the_evaluation(study, path, device, tmp_path):
    """In fp32, on the same GPU: the checkpoint gives the same logits as the network in training."""
    session = make_session(changed(study, precision="fp32", iterations=750), path, tmp_path, device=str(device))
    assert train_cells(session, CELLS[:1], lambda _: None) == {}
    chosen = dataclasses.replace(settings.read(), device=str(device))
    evaluator = Evaluator(dataset.load(path), sha256(path), chosen, lambda _: None)
    measured = evaluator.evaluate(CELLS[0], session.runs, tmp_path / "results").test
    *_, loss, error, _ = run_files(session.runs, CELLS[0]).history.read_text().splitlines()[-1].split(",")
    assert (float(loss), float(error)) == (measured.loss, pytest.approx(measured.error, abs=5e-5))


# ---- Beside the CPU


def test_the_beginning_is_the_cpus(base, data, path):
    made = of(base, NETWORKS[0])
    cpu = dataset.load(path)
    on_gpu, on_cpu = (TorchNetwork(made, each, "fp32", 1) for each in (data, cpu))
    assert digest(on_gpu.state_dict()) == digest(on_cpu.state_dict())
    assert torch.equal(on_gpu.pixel_values.cpu(), on_cpu.pixel_values)
    rows = BatchStream(made.seed, TRAIN, made.batch_size).rows(0, 1)
    for network in (on_gpu, on_cpu):
        network.load(rows, torch.tensor([0.01]))
        step(network)
    assert on_gpu.losses[0].item() == pytest.approx(on_cpu.losses[0].item(), rel=1e-4)
    difference = (on_gpu.velocity.cpu() - on_cpu.velocity).norm() / on_cpu.velocity.norm()
    assert difference < 1e-2


def test_of_equal_logits_the_first_counts(device):
    drawn = np.random.default_rng(0).integers(0, 4, (1000, 10)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 10, 1000)
    expected = np.count_nonzero(drawn.argmax(1) != labels)
    assert count_errors(*(torch.from_numpy(array).to(device) for array in (drawn, labels))) == expected
