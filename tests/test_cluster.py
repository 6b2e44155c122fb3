"""The sweep on a real Ray cluster of several nodes, all on this machine. `make test-ray` runs it."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clone import Clone

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
from ray.cluster_utils import Cluster  # noqa: E402

from resnet_cifar import params  # noqa: E402
from resnet_cifar.cells import Cell  # noqa: E402
from resnet_cifar.errors import InputError  # noqa: E402
from resnet_cifar.sweep import cluster as sweep  # noqa: E402

pytestmark = pytest.mark.ray

SEEDS = range(6)
CELLS = [f"resnet-1-{seed}" for seed in SEEDS]
FILES = ("weights.safetensors", "history.csv")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    """A clone with its data set, and in `expected` the runs that plain training gives."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    (made.folder / "results").mkdir()
    configure(made)
    made.dvc("repro", "preprocess")
    made.run("python", "stages/train.py", "--runs", "expected", "--scratch", "other")
    made.save()
    return made


def configure(clone: Clone, *overrides: str) -> None:
    """Six cells of some seconds each."""
    study = ["model.n=1", f"train.seeds={[*SEEDS]}", "train.iterations=20", "train.eval_every=10"]
    study += ["train.warmup.min_n=2"]
    clone.compose(*(text.replace(" ", "") for text in study), *overrides)


@pytest.fixture
def fresh(clone) -> Clone:
    """The clone before any training."""
    for name in ("runs", ".dvc/cache/runs"):
        shutil.rmtree(clone.folder / name, ignore_errors=True)
    clone.run("git", "checkout", "--quiet", ".")
    return clone


@pytest.fixture(scope="module")
def cluster(clone) -> Iterator[Cluster]:
    """Three nodes, of which the first trains nothing, with room for one cell on each of the others."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        # A node that is gone is missed within seconds; until then Ray may wait for it with a task.
        health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": health})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def start(clone: Clone, cluster: Cluster) -> subprocess.Popen[str]:
    command = ["resnet-cifar", "sweep", "--ray", "--address", cluster.address]
    return subprocess.Popen(
        command, cwd=clone.folder, env=clone.environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """The lines until one has the words."""
    lines = ""
    for line in process.stderr:
        lines += line
        if words in line:
            return lines
    raise AssertionError(f"the sweep ended without saying {words!r}:\n{lines}")


def training(cluster: Cluster) -> list[psutil.Process]:
    """The cluster's worker processes that train."""
    nodes = [node.node_id for node in cluster.list_all_nodes()]
    return [
        process
        for process in psutil.process_iter()
        if "ray::train_pack" in " ".join(command_line(process))
        and any(node in command_line_of_raylet(process) for node in nodes)
    ]


def node_of(line: str) -> str:
    """The node that a line of progress names, by the first digits of its id."""
    return line.partition("(node ")[2][:8]


def command_line_of_raylet(worker: psutil.Process) -> str:
    """What started the worker's node, with the node's id."""
    try:
        return " ".join(psutil.Process(worker.ppid()).cmdline())
    except psutil.Error:
        return ""


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def await_training(cluster: Cluster, count: int) -> list[psutil.Process]:
    """The worker processes that train, as soon as there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(found := training(cluster)) == count:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{len(found)} workers train, not {count}")


def assert_same_bytes(clone: Clone, cells: list[str]) -> None:
    """The cells have the bytes of plain training."""
    for path in (Path(cell, name) for cell in cells for name in FILES):
        assert (clone.folder / "runs" / path).read_bytes() == (clone.folder / "expected" / path).read_bytes()


def assert_recorded(clone: Clone, cells: list[str] = CELLS) -> None:
    """They are also up to date for DVC."""
    assert_same_bytes(clone, cells)
    assert "up to date" in clone.dvc("status", *(f"train@{cell}" for cell in cells))


def test_a_cell_that_dies_three_times_is_reported_with_its_last_lines_and_stops_no_other(fresh, cluster):
    configure(fresh, "train.seeds=[0,1]")
    process = start(fresh, cluster)
    for _ in range(3):
        *_, line = wait_for(process, ": training resnet-1-0").splitlines()
        (worker,) = [worker for worker in training(cluster) if node_of(line) in command_line_of_raylet(worker)]
        worker.kill()
    _, lines = process.communicate()
    assert process.returncode == 1
    report, _, last = lines.partition("resnet-1-0: its last lines:\n")[2].rstrip().rpartition("\n")
    assert last.startswith("error: 1 of 2 cells recorded; resnet-1-0: its task died 3 times, the last time so: ")
    reason = last.partition(" the last time so: ")[2]
    assert [line.partition("): ")[2] or line.strip() for line in report.splitlines()] == [
        "training resnet-1-0",
        reason,
    ] * 3
    assert not (fresh.folder / "runs/resnet-1-0").exists()
    assert_recorded(fresh, ["resnet-1-1"])


@pytest.fixture
def other_code(fresh, cluster, tmp_path, monkeypatch) -> Iterator[None]:
    """One more node, with another version of this package."""
    shutil.copytree(fresh.folder / "src", tmp_path / "src")
    with (tmp_path / "src/resnet_cifar/models.py").open("a") as file:
        file.write("# another version\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    node = cluster.add_node(num_cpus=1)
    yield
    cluster.remove_node(node)


def train_here(address: str) -> tuple[list[str], list[str], list[str]]:
    """Train the six cells with this process as the driver; returns what came back, why others failed, and the lines."""
    trained: list[str] = []
    lines: list[str] = []
    cells = [Cell.parse(name) for name in CELLS]
    failed = sweep.train(params.load(), cells, lambda cell, _: trained.append(str(cell)), lines.append, address)
    return sorted(trained), failed, lines


@pytest.mark.usefixtures("other_code")
def test_a_node_with_other_code_is_refused_with_both_versions(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    with pytest.raises(InputError, match=r"is refused: its code is \w{12}, the driver's is \w{12}; a cell needs"):
        train_here(cluster.address)


@pytest.mark.usefixtures("other_code")
def test_a_node_with_other_code_that_joins_later_gets_no_second_task(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    monkeypatch.setattr(sweep._Tasks, "check_nodes", lambda _: None)  # as if it had not been there to be asked
    trained, failed, lines = train_here(cluster.address)
    assert failed == []
    assert trained == CELLS
    refusals = [line for line in lines if "is refused: its code is " in line]
    assert len(refusals) == 1
    assert node_of(refusals[0]) not in {node_of(line) for line in lines if ": training " in line}
    assert not any("died" in line for line in lines)


def test_without_a_cluster_it_starts_one_here_and_a_cell_that_diverges_stops_no_other(fresh):
    configure(fresh, "model.n=[1,2]", "train.seeds=[0]", "train.warmup.lr=1e30")
    done = fresh.run("resnet-cifar", "sweep", "--ray", check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 cells recorded; resnet-2-0: the loss is nan at iteration ")
    assert "its task died" not in done.stderr
    assert json.loads((fresh.folder / "runs/resnet-1-0/run.json").read_text())["threads"] == 1
    assert_recorded(fresh, ["resnet-1-0"])


def test_what_is_not_there_is_one_sentence(fresh, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    with pytest.raises(InputError, match=r"the Ray cluster at 127\.0\.0\.1:9 cannot be joined \(.*Connection refused"):
        train_here("127.0.0.1:9")
    done = fresh.run("resnet-cifar", "sweep", "--address", "127.0.0.1:9", check=False)
    assert done.stderr == "error: --address names a Ray cluster; it goes with --ray.\n"


def test_six_cells_on_three_nodes_whatever_dies(fresh, cluster):
    """The driver by Ctrl-C and by kill -9, a node and a worker: that costs time alone, the bytes are plain repro's."""
    for signum, returncode in ((signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(fresh, cluster)
        lines = wait_for(process, ": recorded, 1 of ")
        assert len({node_of(line) for line in lines.splitlines() if ": training resnet-" in line}) == 2
        process.send_signal(signum)
        process.communicate()
        assert process.returncode == returncode
        await_training(cluster, 0)

    process = start(fresh, cluster)
    wait_for(process, ": training resnet-")
    wait_for(process, ": training resnet-")
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    lines = wait_for(process, "its task died")
    await_training(cluster, 1)[0].kill()
    lines += wait_for(process, "its task died")
    _, rest = process.communicate()
    assert process.returncode == 0, lines + rest
    assert "every cell is up to date" in rest
    assert_same_bytes(fresh, CELLS)
    fresh.dvc("repro", "--force", "--single-item", "train@resnet-1-3")
    assert_recorded(fresh)
