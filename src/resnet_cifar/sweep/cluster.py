"""Training on a Ray cluster: packs of cells are tasks, and their files come back through Ray's object store.

A node needs this package and the driver's versions of Python, torch, numpy and safetensors; no checkout, no shared
folder and no DVC.
"""

import logging
import os
import platform
import queue
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from resnet_cifar import machine
from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.sweep.local import share
from resnet_cifar.sweep.tree import DATA
from resnet_cifar.training import provenance
from resnet_cifar.training.packing import Interrupted, StopSignal, pack_size, train_cells
from resnet_cifar.training.runs import Session

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and warn about a change of its defaults

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

PACK = 10  # cells of a task on a GPU, where RESNET_CIFAR_PACK does not say
TRIES = 3
LOOK_EVERY = 0.5
REACH = 10.0  # seconds
LAST_LINES = 20
FILES = ("weights", "history", "record")


@dataclass(frozen=True)
class Delivery:
    """What a task sends of one cell: the contents of its files, or why it failed."""

    cell: str
    files: dict[str, bytes]
    failure: str = ""


@dataclass(frozen=True)
class Refusal:
    """What a task sends instead of training on a node with other code or versions."""

    node: str
    sentence: str


def train(
    params: Params,
    cells: list[Cell],
    take: Callable[[Cell, RunFiles], str | None],
    say: Callable[[str], None],
    address: str | None,
) -> list[str]:
    """Train cells on a cluster and hand over each as soon as its files are here.

    A task that dies with its worker or its node is started again elsewhere, its cells then one by one, so that one
    that cannot be trained does not hold up the others. Of a cell whose task died three times the last lines are said.

    Parameters
    ----------
    params : Params
        The parameters of the study.
    cells : list of Cell
        What to train.
    take : callable
        Gets a cell and its files, in a folder that is removed afterwards; returns why it refuses them, or None.
    say : callable
        Gets lines of progress.
    address : str, optional
        The cluster; by default the one that RAY_ADDRESS names, or else Ray is started on this machine.

    Returns
    -------
    list of str
        Why cells failed, by name; empty if none did.

    Raises
    ------
    InputError
        If there is no such cluster, if a node has other code or versions, or if none has what a task needs.
    Interrupted
        After SIGINT or SIGTERM; the tasks are stopped then.
    """
    if not cells:
        return []
    with _connected(address), StopSignal() as stop:
        tasks = _Tasks(params)
        tasks.check_nodes()
        flow = _Flow(tasks, cells, take, say)
        while flow.running and not stop.received:
            flow.look()
        if stop.received:
            flow.cancel()
            raise Interrupted(stop.received)
        flow.report()
    return list(flow.failed.values())


class _Flow:
    """The tasks that run, and what they send."""

    def __init__(
        self,
        tasks: "_Tasks",
        cells: list[Cell],
        take: Callable[[Cell, RunFiles], str | None],
        say: Callable[[str], None],
    ) -> None:
        self.tasks, self.take, self.say = tasks, take, say
        self.running = {tasks.start(pack): pack for pack in tasks.packs(cells)}
        self.deaths: Counter[Cell] = Counter()
        self.lines: defaultdict[Cell, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))
        self.failed: dict[Cell, str] = {}

    def look(self) -> None:
        """Wait up to half a second for what the tasks send, and take it."""
        ready, _ = ray.wait(list(self.running), timeout=LOOK_EVERY, fetch_local=False)
        for stream in ready:
            try:
                sent = ray.get(next(stream))
            except StopIteration:
                del self.running[stream]
            except RayError as error:
                for cell in self.running.pop(stream):
                    self._died(cell, error)
            else:
                self._receive(sent, stream)

    def cancel(self) -> None:
        """Stop the tasks that run."""
        for stream in self.running:
            ray.cancel(stream, force=True)

    def report(self) -> None:
        """Say the last lines of the cells that died."""
        for cell in self.failed:
            if self.deaths[cell] == TRIES:
                self.say(f"{cell}: its last lines:")
                for line in self.lines[cell]:
                    self.say(f"    {line}")

    def _receive(self, sent: "str | Delivery | Refusal", stream: "ray.ObjectRefGenerator") -> None:
        """Say a line, hand over a cell, or start a pack again where it is not refused."""
        pack = self.running[stream]
        match sent:
            case str():
                self.say(sent)
                for cell in pack:
                    self.lines[cell].append(sent)
            case Delivery():
                cell = Cell.parse(sent.cell)
                pack.remove(cell)
                failure = sent.failure or _hand_over(cell, sent, self.take)
                if failure:
                    self.failed[cell] = f"{cell}: {failure}"
            case Refusal():
                if sent.node not in self.tasks.avoided:
                    self.say(sent.sentence)
                self.tasks.avoided.add(sent.node)
                del self.running[stream]
                self.running[self.tasks.start(pack)] = pack

    def _died(self, cell: Cell, error: RayError) -> None:
        self.deaths[cell] += 1
        self.lines[cell].extend(line for line in str(error).splitlines() if line.strip())
        if self.deaths[cell] < TRIES:
            self.say(f"{cell}: its task died ({_reason(error)}), started again")
            self.running[self.tasks.start([cell])] = [cell]
        else:
            self.failed[cell] = f"{cell}: its task died {TRIES} times, the last time so: {_reason(error)}"


class _Tasks:
    """How packs of cells become tasks of this cluster."""

    def __init__(self, params: Params) -> None:
        threads = machine.threads()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
        self.on_gpu = _on_gpu(gpus)
        self.needs = {"num_gpus": 1} if self.on_gpu else {"num_cpus": threads}
        resource, amount = ("GPU", 1) if self.on_gpu else ("CPU", threads)
        self.nodes = [node for node in nodes if node["Resources"].get(resource, 0) >= amount]
        if not self.nodes:
            raise InputError(
                f"no node of the cluster has {threads} CPUs for a cell: set RESNET_CIFAR_THREADS to what they have, "
                "which is part of what decides the bits."
            )
        self.pack_size = (pack_size() or PACK) if self.on_gpu else 1
        self.places = int(gpus) if self.on_gpu else 1
        self.avoided: set[str] = set()  # nodes on which no more tasks are started
        self.settings = {
            "RESNET_CIFAR_DEVICE": "cuda" if self.on_gpu else "cpu",
            "RESNET_CIFAR_THREADS": str(threads),  # Ray sets its own number of threads for a task; this one wins
            "RESNET_CIFAR_PACK": str(self.pack_size),
            "RESNET_CIFAR_SAVE_EVERY": "inf",  # a task that is started again finds nothing on another node
        }
        self.params, self.versions = params.model_dump(), versions()
        self.data = ray.put(np.fromfile(DATA, np.uint8))

    def packs(self, cells: list[Cell]) -> list[list[Cell]]:
        """Cells by task: about the same work in each, one a cell on CPUs."""
        return share(cells, max(self.places, -(-len(cells) // self.pack_size)))

    def start(self, pack: list[Cell]) -> "ray.ObjectRefGenerator":
        remote = ray.remote(num_returns="streaming", max_retries=0, **self.needs)(train_pack)
        if self.avoided:
            elsewhere = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self.avoided)})
            remote = remote.options(scheduling_strategy=elsewhere)
        return remote.remote([cell.name for cell in pack], self.params, self.data, self.versions, self.settings)

    def check_nodes(self) -> None:
        """Ask each node that can train for its versions."""
        remote = ray.remote(num_cpus=0, max_retries=0)(versions)
        answers = {}
        for node in self.nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']} (node {node['NodeID'][:8]})"
            answers[name] = remote.options(scheduling_strategy=place).remote()
        for name, answer in answers.items():
            try:
                difference = _difference(ray.get(answer), self.versions)
            except RayError as error:
                raise InputError(
                    f"{name} cannot run this package ({_reason(error)}): install the driver's version of it there."
                ) from None
            if difference:
                raise InputError(f"{name} is refused: {difference}; a cell needs the same everywhere.")


# ---- On the nodes ----------------------------------------------------------------------------------------------


def train_pack(
    names: list[str], params: dict[str, Any], data: np.ndarray, expected: dict[str, str], settings: dict[str, str]
) -> Iterator[str | Delivery | Refusal]:
    """Train cells on this node; yield lines of progress, and each cell as soon as it is trained."""
    node = ray.get_runtime_context().get_node_id()
    here = f"{ray.util.get_node_ip_address()} (node {node[:8]})"
    difference = _difference(versions(), expected)
    if difference:  # it joined when the others had been asked
        yield Refusal(node, f"{here} is refused: {difference}; a cell needs the same everywhere.")
        return
    os.environ.update(settings)
    cells = [Cell.parse(name) for name in names]
    yield f"{here}: training {', '.join(names)}"
    with TemporaryDirectory(prefix="resnet-cifar-") as name:
        folder = Path(name)
        data.tofile(folder / DATA.name)
        session = Session(Params.model_validate(params), folder / DATA.name, folder / "runs", folder / "scratch")
        (folder / DATA.name).unlink()  # now, since a task that is killed leaves its folder behind
        outbox: queue.Queue[str | Delivery | Exception | None] = queue.Queue()
        threading.Thread(target=_train_into, args=(outbox, session, cells), daemon=True).start()
        while (sent := outbox.get()) is not None:
            if isinstance(sent, Exception):
                raise sent
            yield f"{here}: {sent}" if isinstance(sent, str) else sent


def _train_into(outbox: "queue.Queue[str | Delivery | Exception | None]", session: Session, cells: list[Cell]) -> None:
    """Train in this thread, while the other one sends what is ready."""

    def send(cell: Cell) -> None:
        files = run_files(session.runs, cell)
        outbox.put(Delivery(cell.name, {name: getattr(files, name).read_bytes() for name in FILES}))

    try:
        for cell, reason in train_cells(session, cells, say=outbox.put, on_trained=send).items():
            outbox.put(Delivery(cell.name, {}, reason))
        outbox.put(None)
    except Exception as error:
        outbox.put(error)


def versions() -> dict[str, str]:
    """What has to be the same on all nodes, by name."""
    return {
        "code": provenance.code_digest()[:12],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "safetensors")},
    }


# ---- On the driver ---------------------------------------------------------------------------------------------


def _on_gpu(gpus: float) -> bool:
    """Whether a cluster with so many GPUs trains on them."""
    given = os.environ.get("RESNET_CIFAR_DEVICE", "")
    if given not in ("", "cpu", "cuda"):
        raise InputError(
            f"RESNET_CIFAR_DEVICE is {given!r}; with --ray it should be cpu or cuda, since Ray picks the GPU."
        )
    if given == "cuda" and gpus < 1:
        raise InputError("RESNET_CIFAR_DEVICE is 'cuda'; no node of the cluster has a GPU.")
    return gpus >= 1 and given != "cpu"


def _difference(theirs: dict[str, str], ours: dict[str, str]) -> str | None:
    for name, wanted in ours.items():
        if theirs.get(name) != wanted:
            return f"its {name} is {theirs.get(name)}, the driver's is {wanted}"
    return None


def _hand_over(cell: Cell, delivery: Delivery, take: Callable[[Cell, RunFiles], str | None]) -> str | None:
    with TemporaryDirectory(prefix="resnet-cifar-") as folder:
        files = RunFiles(Path(folder))
        for name, content in delivery.files.items():
            getattr(files, name).write_bytes(content)
        return take(cell, files)


def _reason(error: Exception) -> str:
    """Of an error with pages of traceback, the line that a person can use."""
    text = str(error.cause) if isinstance(error, RayTaskError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), REACH).close()
        ray.init(address, logging_level=logging.WARNING, **options)
    except (OSError, RayError, ValueError) as error:
        raise InputError(
            f"the Ray cluster at {address} cannot be joined ({_reason(error)}): it must run and share its token."
        ) from None
    except RuntimeError as error:  # it names both versions of Ray and Python
        raise InputError(f"the Ray cluster at {address} cannot be joined: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        ray.shutdown()
