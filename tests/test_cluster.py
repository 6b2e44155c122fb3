"""The sweep on a real Ray cluster of several nodes, all on this machine. `make test-ray` runs it."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from clone import Clone

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
from ray.cluster_utils import Cluster  # noqa: E402

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
    study = ["model.n=1", f"train.seeds={[*SEEDS]}", "train.iterations=40", "train.eval_every=20"]
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
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
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


def training() -> list[psutil.Process]:
    """The worker processes that train."""
    return [process for process in psutil.process_iter() if "ray::train_pack" in " ".join(command_line(process))]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def await_training(count: int = 1) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(found := training()) >= count:
            return found
        time.sleep(0.2)
    raise AssertionError("no worker trains")


def assert_recorded(clone: Clone, cells: list[str] = CELLS) -> None:
    """The cells are up to date for DVC, with the bytes of plain training."""
    for cell in cells:
        for name in FILES:
            assert (clone.folder / "runs" / cell / name).read_bytes() == (
                clone.folder / "expected" / cell / name
            ).read_bytes()
    assert "up to date" in clone.dvc("status", *(f"train@{cell}" for cell in cells))


def test_six_cells_on_three_nodes_by_a_driver_that_is_stopped_twice(fresh, cluster):
    """By Ctrl-C and by kill -9: what is recorded stays, the rest is trained, and the bytes are those of plain repro."""
    for signum, returncode in ((signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(fresh, cluster)
        wait_for(process, ": recorded, 2 of ")
        process.send_signal(signum)
        process.communicate()
        assert process.returncode == returncode
        deadline = time.monotonic() + 30
        while training() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not training()
    process = start(fresh, cluster)
    _, lines = process.communicate()
    assert process.returncode == 0, lines
    assert "every cell is up to date" in lines
    nodes = [line.partition("(node ")[2] for line in lines.splitlines() if ": trained on " in line]
    assert len(nodes) <= 2
    assert len(set(nodes)) == len(nodes)
    assert_recorded(fresh)
    fresh.dvc("repro", "--force", "--single-item", "train@resnet-1-3")
    assert_recorded(fresh)


def test_a_cell_that_dies_three_times_is_reported(fresh, cluster):
    configure(fresh, "train.seeds=[0]")
    process = start(fresh, cluster)
    for _ in range(3):
        (worker, *_) = await_training()
        worker.kill()
        worker.wait()
    _, lines = process.communicate()
    assert process.returncode == 1
    assert "resnet-1-0: its task died 3 times, the last time so: " in lines.splitlines()[-1]
    assert not (fresh.folder / "runs/resnet-1-0").exists()


def test_a_node_with_other_code_is_refused_with_both_versions(fresh, cluster, tmp_path, monkeypatch):
    shutil.copytree(fresh.folder / "src", tmp_path / "src")
    with (tmp_path / "src/resnet_cifar/models.py").open("a") as file:
        file.write("# another version\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    node = cluster.add_node(num_cpus=1)
    process = start(fresh, cluster)
    _, lines = process.communicate()
    cluster.remove_node(node)
    assert process.returncode == 1
    assert "is refused: its code is " in lines.splitlines()[-1]
    assert ", the driver's is " in lines.splitlines()[-1]
    assert not (fresh.folder / "runs").exists()


def test_without_a_cluster_it_starts_one_here_and_a_cell_that_diverges_stops_no_other(fresh):
    configure(fresh, "model.n=[1,2]", "train.seeds=[0]", "train.warmup.lr=1e30")
    done = fresh.run("resnet-cifar", "sweep", "--ray", check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 cells recorded; resnet-2-0: the loss is nan at iteration ")
    assert "its task died" not in done.stderr
    assert json.loads((fresh.folder / "runs/resnet-1-0/run.json").read_text())["threads"] == 1
    assert_recorded(fresh, ["resnet-1-0"])


def test_what_is_not_there_is_one_sentence(fresh):
    done = fresh.run("resnet-cifar", "sweep", "--ray", "--address", "127.0.0.1:9", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the Ray cluster at 127.0.0.1:9 cannot be joined")
    done = fresh.run("resnet-cifar", "sweep", "--address", "127.0.0.1:9", check=False)
    assert done.stderr == "error: --address names a Ray cluster; it goes with --ray.\n"


def test_a_node_that_goes_away_and_a_worker_that_is_killed_cost_time_alone(fresh, cluster):
    configure(fresh, "train.seeds=[0,1,2,3]")
    process = start(fresh, cluster)
    wait_for(process, "recorded, 1 of 4")
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    seen = wait_for(process, "its task died")
    await_training()[0].kill()
    seen += wait_for(process, "its task died")
    _, rest = process.communicate()
    assert process.returncode == 0, seen + rest
    assert_recorded(fresh, CELLS[:4])
