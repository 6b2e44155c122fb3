"""The sweep on a real Ray cluster of several nodes, all on this machine. `make test-ray` runs it."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from clone import Clone
from conftest import needs_native

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
from ray.cluster_utils import Cluster  # noqa: E402

from resnet_cifar import params, settings  # noqa: E402
from resnet_cifar.cells import Cell, RunFiles  # noqa: E402
from resnet_cifar.errors import InputError, Interrupted  # noqa: E402
from resnet_cifar.native import library, sets  # noqa: E402
from resnet_cifar.native.build import Unavailable  # noqa: E402
from resnet_cifar.sweep import cluster as sweep  # noqa: E402
from resnet_cifar.sweep import node as on_node  # noqa: E402
from resnet_cifar.training import record  # noqa: E402

pytestmark = pytest.mark.ray

SETS = [each.name for each in sets.runnable(sets.FAST)]
SEEDS = range(6)
CELLS = [f"resnet-1-{seed}" for seed in SEEDS]
# A node that is gone is missed within seconds; until then Ray may wait for it with a task.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2}
COMMAND = [sys.executable, "-m", "resnet_cifar.commands.cli", "sweep"]
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
    for name in ("runs", "scratch", ".dvc/cache/runs"):
        shutil.rmtree(clone.folder / name, ignore_errors=True)
    clone.run("git", "checkout", "--quiet", ".")
    return clone


@pytest.fixture(scope="module")
def cluster(clone, tmp_path_factory) -> Iterator[Cluster]:
    """Three nodes, of which the first trains nothing, with room for one cell on each of the others."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))  # a task that is killed leaves its folder there
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # of Ray's sockets, whose paths must be short
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def start(clone: Clone, cluster: Cluster) -> subprocess.Popen[str]:
    command = [*COMMAND, "--ray", "--address", cluster.address]
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
def other_code(fresh, tmp_path, monkeypatch) -> None:
    """Nodes that are added from here on have another version of this package."""
    shutil.copytree(fresh.folder / "src", tmp_path / "src")
    with (tmp_path / "src/resnet_cifar/numerics/models.py").open("a") as file:
        file.write("# another version\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))


@dataclass
class Outcome:
    """What came back to a driver: the cells, why others failed, the lines, and what was said of engines."""

    trained: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)


def train_here(
    address: str,
    *cells: str,
    take: Callable[[Cell, RunFiles], str | None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
    **environment: str,
) -> Outcome:
    """Train cells, by default the six, with this process as the driver."""
    outcome = Outcome()
    study = params.load()

    def take_cell(cell: Cell, files: RunFiles) -> str | None:
        failure = take(cell, files)
        if not failure:
            outcome.trained.append(str(cell))
        return failure

    def note(line: str) -> None:
        outcome.lines.append(line)
        say(line)

    def check_engines(engine: Callable[[Cell], str], _: bool) -> None:
        outcome.engines = sorted({engine(cell) for cell in study.list_cells()})

    names = [Cell.parse(name) for name in cells or CELLS]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        found = settings.read()
    outcome.failed = sweep.train(study, names, found, take_cell, note, check_engines, address)
    return outcome


@pytest.mark.usefixtures("other_code")
def test_a_node_with_other_code_is_refused_and_the_others_train(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    node = cluster.add_node(num_cpus=1)
    try:
        outcome = train_here(cluster.address)
    finally:
        cluster.remove_node(node)
    (refusal,) = [line for line in outcome.lines if " is refused: " in line]
    assert re.search(r"is refused: its code is \w{12}, the driver's is \w{12}; a cell needs the same", refusal)
    assert node_of(refusal) == node.node_id[:8]
    assert sorted(outcome.trained) == CELLS
    assert outcome.engines == ["eager"]


@pytest.mark.usefixtures("other_code")
def test_a_node_with_other_code_that_joins_later_gets_no_second_task(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    added = []

    def add_node(line: str) -> None:
        if ": training " in line and not added:
            added.append(cluster.add_node(num_cpus=1))

    try:
        outcome = train_here(cluster.address, say=add_node)
    finally:
        cluster.remove_node(added[0])
    assert outcome.failed == []
    assert sorted(outcome.trained) == CELLS
    (refusal,) = [line for line in outcome.lines if "is refused: its code is " in line]
    assert node_of(refusal) not in {node_of(line) for line in outcome.lines if ": training " in line}
    assert not any("died" in line for line in outcome.lines)


@pytest.mark.usefixtures("other_code")
def test_it_ends_when_the_good_nodes_are_gone_and_the_others_are_refused(fresh, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    monkeypatch.setattr(sweep, "PATIENCE", 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", fresh.environment["PYTHONPATH"])
        own = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})
        good = own.add_node(num_cpus=1)
    other = own.add_node(num_cpus=1)

    def lose_node(line: str) -> None:
        if ": training " in line:
            own.remove_node(good, allow_graceful=False)

    try:
        outcome = train_here(own.address, CELLS[0], say=lose_node)
    finally:
        own.shutdown()
    assert any(node_of(line) == other.node_id[:8] for line in outcome.lines if " is refused: " in line)
    assert "no node can train now (1 refused, as said above): waiting 2 s for one" in outcome.lines
    assert outcome.failed == ["resnet-1-0: no node is left for it (1 refused, as said above)"]


def test_a_gpu_is_waited_for_where_it_is_insisted_on(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    monkeypatch.setattr(sweep, "PATIENCE", 1.0)
    outcome = train_here(cluster.address, CELLS[0], RESNET_CIFAR_DEVICE="cuda")
    assert outcome.lines[-1] == "no node can train now (none has a GPU): waiting 1 s for one"
    assert not any("training on" in line for line in outcome.lines)
    assert outcome.failed == ["resnet-1-0: no node is left for it (none has a GPU)"]
    assert outcome.engines == ["cuda graph"]


def test_what_cannot_be_taken_is_taken_again_and_stops_no_other(fresh, cluster, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    asked = []

    def full_at_first(cell: Cell, _: RunFiles) -> str | None:
        asked.append(str(cell))
        if str(cell) == CELLS[1] and asked.count(CELLS[1]) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "runs")
        return "refused" if str(cell) == CELLS[0] else None

    outcome = train_here(cluster.address, *CELLS[:3], take=full_at_first, RESNET_CIFAR_DEVICE="")
    assert sorted(asked) == sorted([*CELLS[:3], CELLS[0], CELLS[1]])
    assert sorted(outcome.trained) == CELLS[1:3]
    assert outcome.failed == ["resnet-1-0: refused"]
    assert "resnet-1-1: trained but not kept (runs: No space left on device)" in outcome.lines
    assert "training on CPUs, 1 a cell: no node has a GPU; RESNET_CIFAR_DEVICE=cuda waits for one" in outcome.lines


def test_interrupted_it_takes_again_what_could_not_be_taken(fresh, cluster, monkeypatch):
    """No node has a copy of it any more."""
    monkeypatch.chdir(fresh.folder)
    asked = []

    def full_at_first(cell: Cell, _: RunFiles) -> str | None:
        asked.append(str(cell))
        return "trained but not kept" if len(asked) == 1 else None

    def interrupt(line: str) -> None:
        if "trained but not kept" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train_here(cluster.address, *CELLS[:2], take=full_at_first, say=interrupt)
    assert asked.count(asked[0]) == 2


@pytest.mark.parametrize(
    ("address", "mode", "warned"),
    [("10.0.0.1", "", True), ("10.0.0.1", "disabled", True), ("10.0.0.1", "token", False), ("127.0.0.1", "", False)],
)
def test_a_cluster_that_everybody_can_use_is_said_to_be(monkeypatch, address, mode, warned):
    nodes = [{"Alive": True, "NodeManagerAddress": at} for at in ("127.0.0.1", address)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    lines: list[str] = []
    sweep._tell_who_may_use_it(lines.append)
    assert [line.partition(";")[0] for line in lines] == [
        "the cluster has no token: whoever reaches 10.0.0.1 can run programs on it"
    ] * warned


def test_a_node_without_the_native_engine_is_refused_where_the_driver_has_it(monkeypatch):
    def missing(*_: object) -> None:
        raise Unavailable("there is no C++ compiler")

    assert on_node.unfitness(on_node.Expected({}, native=True, torch=False), None) == (
        "its native engine cannot be used (RESNET_CIFAR_SIMD is 'none'), the driver's can"
    )
    monkeypatch.setattr(library, "load", missing)
    monkeypatch.delenv("RESNET_CIFAR_SIMD")
    assert on_node.unfitness(on_node.Expected({}, native=True, torch=False), None) == (
        "its native engine cannot be used (there is no C++ compiler), the driver's can"
    )
    assert on_node.unfitness(on_node.Expected({}, native=False, torch=True), None) is None


def test_what_changes_no_bit_may_be_each_nodes_own(monkeypatch):
    given = settings.read()
    monkeypatch.setenv("RESNET_CIFAR_SIMD", "avx2")
    monkeypatch.setenv("RESNET_CIFAR_THREADS", "3")
    for simd, threads, torch_too, expected in (
        (None, 4, False, ("avx2", 3)),
        (None, 2, False, ("avx2", 2)),
        (None, 4, True, ("avx2", 4)),  # some of the cells are torch's, whose bits depend on it
        ("avx512", 4, False, ("avx512", 3)),
    ):
        found = on_node.settings_here(dataclasses.replace(given, simd=simd, threads=threads), torch_too)
        assert found == dataclasses.replace(given, simd=expected[0], threads=expected[1])


@needs_native
def test_nodes_with_other_instruction_sets_and_threads_make_one_table(fresh, monkeypatch):
    """One node dies, one without the engine is refused; the bytes are those of one machine alone."""
    configure(fresh, "train.iterations=100")
    monkeypatch.setenv("RESNET_CIFAR_SIMD", SETS[0])
    fresh.run("python", "stages/train.py", "--runs", "expected-native", "--scratch", "other")
    monkeypatch.chdir(fresh.folder)
    monkeypatch.setenv("PYTHONPATH", fresh.environment["PYTHONPATH"])
    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})

    def add_node(simd: str, threads: int) -> object:
        monkeypatch.setenv("RESNET_CIFAR_SIMD", simd)
        monkeypatch.setenv("RESNET_CIFAR_THREADS", str(threads))
        return own.add_node(num_cpus=2)

    first, without = add_node(SETS[0], 2), add_node("none", 2)
    made: dict[str, dict[str, bytes]] = {}
    machines: set[tuple[str | None, int]] = set()
    joined: list[object] = []
    lost: list[object] = []

    def take(cell: Cell, files: RunFiles) -> None:
        found = record.read(files)
        machines.add((found.circumstances.simd, found.circumstances.threads))
        made[cell.name] = {name: (files.folder / name).read_bytes() for name in FILES}

    def lose_first(line: str) -> None:
        if ": training " not in line or node_of(line) != first.node_id[:8]:
            return
        if not joined:
            joined.append(add_node(SETS[-1], 1))
        elif (SETS[0], 2) in machines and not lost:
            lost.append(first)
            own.remove_node(first, allow_graceful=False)

    try:
        outcome = train_here(
            own.address,
            take=take,
            say=lose_first,
            RESNET_CIFAR_SIMD="",
            RESNET_CIFAR_THREADS="2",
            RESNET_CIFAR_DEVICE="",
        )
    finally:
        own.shutdown()
    assert lost
    assert any("its task died" in line for line in outcome.lines)
    (refusal,) = [line for line in outcome.lines if " is refused: " in line]
    assert node_of(refusal) == without.node_id[:8]
    assert "its native engine cannot be used (RESNET_CIFAR_SIMD is 'none'), the driver's can" in refusal
    assert (outcome.failed, outcome.engines) == ([], ["native"])
    assert machines == {(SETS[0], 2), (SETS[-1], 1)}
    for cell in CELLS:
        expected = {name: (fresh.folder / "expected-native" / cell / name).read_bytes() for name in FILES}
        assert made[cell] == expected


def test_without_a_cluster_it_starts_one_here_and_a_cell_that_diverges_stops_no_other(fresh):
    configure(fresh, "model.n=[1,2]", "train.seeds=[0]", "train.warmup.lr=1e30")
    done = fresh.run(*COMMAND, "--ray", check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 cells recorded; resnet-2-0: the loss is not finite at iteration ")
    assert "its task died" not in done.stderr
    record = json.loads((fresh.folder / "runs/resnet-1-0/run.json").read_text())
    assert record["circumstances"]["threads"] == 1
    assert_recorded(fresh, ["resnet-1-0"])


def test_what_is_not_there_is_one_sentence(fresh, monkeypatch):
    monkeypatch.chdir(fresh.folder)
    with pytest.raises(InputError, match=r"the Ray cluster at 127\.0\.0\.1:9 cannot be joined \(.*Connection refused"):
        train_here("127.0.0.1:9")
    done = fresh.run(*COMMAND, "--address", "127.0.0.1:9", check=False)
    assert done.stderr == "error: --address names a Ray cluster; it goes with --ray.\n"


def test_a_cell_goes_on_from_its_last_state_after_its_worker_and_after_its_driver(fresh, cluster, monkeypatch):
    monkeypatch.setenv("RESNET_CIFAR_SAVE_EVERY", "0.1")
    configure(fresh, "train.seeds=[0]", "train.iterations=150")
    fresh.run("python", "stages/train.py", "--runs", "expected-150", "--scratch", "other")
    states = fresh.folder / "scratch/resnet-1-0"

    process = start(fresh, cluster)
    first = await_state(states)
    await_training(cluster, 1)[0].kill()
    lines = wait_for(process, "goes on from iteration ")
    assert "its task died" in lines
    await_state(states, later_than=first)
    process.kill()
    process.communicate()
    await_training(cluster, 0)

    done = start(fresh, cluster)
    _, lines = done.communicate()
    assert done.returncode == 0, lines
    assert "resnet-1-0: goes on from iteration " in lines
    assert len(json.loads((fresh.folder / "runs/resnet-1-0/run.json").read_text())["resumed_at"]) == 2
    assert not states.exists()
    for name in FILES:
        made = (fresh.folder / "runs/resnet-1-0" / name).read_bytes()
        assert made == (fresh.folder / "expected-150/resnet-1-0" / name).read_bytes()


def await_state(folder: Path, later_than: int = 0) -> int:
    """When the saved state in a folder was written, as soon as there is a new one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in folder.glob("*.safetensors"):
            if (written := path.stat().st_mtime_ns) > later_than:
                return written
        time.sleep(0.05)
    raise AssertionError(f"no new state in {folder}")


def test_a_state_that_is_being_written_is_not_sent_back(tiny_study, tmp_path, monkeypatch):
    """Half of one would take the place of the driver's whole one."""
    write, seen = Path.write_bytes, []

    def slowly(path: Path, content: bytes) -> int:
        write(path, content[:1])
        seen.append(list(on_node.saved_states(tmp_path / "scratch", "resnet-1-0")))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    monkeypatch.setattr(on_node, "Session", lambda *_: None)
    state = on_node.State("resnet-1-0", "a.safetensors", b"all of it")
    task = on_node._Task(tmp_path, ["resnet-1-0"], tiny_study, settings.read())
    task._session(np.zeros(1, np.uint8), [state])
    assert seen == [[]]
    assert list(on_node.saved_states(tmp_path / "scratch", "resnet-1-0")) == [state]
    assert list(on_node.saved_states(tmp_path / "scratch", "resnet-1-0", task.sent)) == []


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
