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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from resnet_cifar import machine
from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.sweep.local import share
from resnet_cifar.sweep.tree import DATA
from resnet_cifar.training import provenance
from resnet_cifar.training.packing import Interrupted, StopSignal, train_cells
from resnet_cifar.training.runs import Session

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and warn about a change of its defaults

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PACK = 10  # cells of a task on a GPU, where RESNET_CIFAR_PACK does not say
TRIES = 3
LOOK_EVERY = 0.5
REACH = 10.0  # seconds
FILES = ("weights", "history", "record")


@dataclass(frozen=True)
class Delivery:
    """What a task sends of one cell: the contents of its files, or why it failed."""

    cell: str
    node: str
    files: dict[str, bytes]
    failure: str = ""


def train(
    params: Params,
    cells: list[Cell],
    take: Callable[[Cell, RunFiles], str | None],
    say: Callable[[str], None],
    address: str | None,
) -> list[str]:
    """Train cells on a cluster and hand over each as soon as its files are here.

    A task that dies with its worker or its node is started again elsewhere, its cells then one by one, so that one
    that cannot be trained does not hold up the others.

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
        task = _Task(params)
        task.check_nodes()
        running = {task.start(pack): pack for pack in task.packs(cells)}
        tries: Counter[Cell] = Counter()
        failed: list[str] = []
        while running and not stop.received:
            ready, _ = ray.wait(list(running), timeout=LOOK_EVERY, fetch_local=False)
            for stream in ready:
                try:
                    delivery = ray.get(next(stream))
                except StopIteration:
                    del running[stream]
                    continue
                except RayError as error:
                    for cell in running.pop(stream):
                        tries[cell] += 1
                        if tries[cell] < TRIES:
                            say(f"{cell}: its task died ({_reason(error)}), started again")
                            running[task.start([cell])] = [cell]
                        else:
                            failed.append(f"{cell}: its task died {TRIES} times, the last time so: {_reason(error)}")
                    continue
                cell = Cell.parse(delivery.cell)
                running[stream].remove(cell)
                failure = delivery.failure or _hand_over(cell, delivery, take, say)
                if failure:
                    failed.append(f"{cell}: {failure}")
        for stream in running:
            ray.cancel(stream, force=True)
        if stop.received:
            raise Interrupted(stop.received)
    return failed


class _Task:
    """How a pack of cells becomes a task of this cluster."""

    def __init__(self, params: Params) -> None:
        machine.configure()
        threads = torch.get_num_threads()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
        self.on_gpu = gpus >= 1 and os.environ.get("RESNET_CIFAR_DEVICE", "cuda") != "cpu"
        self.needs = {"num_gpus": 1} if self.on_gpu else {"num_cpus": threads}
        resource, amount = ("GPU", 1) if self.on_gpu else ("CPU", threads)
        self.nodes = [node for node in nodes if node["Resources"].get(resource, 0) >= amount]
        if not self.nodes:
            raise InputError(
                f"no node of the cluster has {threads} CPUs for a cell: set RESNET_CIFAR_THREADS to what they have, "
                "which is part of what decides the bits."
            )
        self.places = int(gpus) if self.on_gpu else 1
        self.settings = {
            "RESNET_CIFAR_DEVICE": "cuda" if self.on_gpu else "cpu",
            "RESNET_CIFAR_THREADS": str(threads),  # Ray sets its own number of threads for a task; this one wins
            "RESNET_CIFAR_PACK": os.environ.get("RESNET_CIFAR_PACK", ""),
        }
        self.params, self.versions = params.model_dump(), versions()
        self.data = ray.put(np.fromfile(DATA, np.uint8))

    def packs(self, cells: list[Cell]) -> list[list[Cell]]:
        """Cells by task: about the same work in each, one a cell on CPUs."""
        size = int(self.settings["RESNET_CIFAR_PACK"] or PACK) if self.on_gpu else 1
        return share(cells, max(self.places, -(-len(cells) // size)))

    def start(self, pack: list[Cell]) -> "ray.ObjectRefGenerator":
        remote = ray.remote(num_returns="streaming", max_retries=0, **self.needs)(train_pack)
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
) -> Iterator[Delivery]:
    """Train cells on this node; yield each as soon as it is trained."""
    difference = _difference(versions(), expected)
    if difference:  # a node that joined later
        raise InputError(difference)
    os.environ.update(settings)
    cells = [Cell.parse(name) for name in names]
    with TemporaryDirectory(prefix="resnet-cifar-") as name:
        folder = Path(name)
        data.tofile(folder / DATA.name)
        session = Session(Params.model_validate(params), folder / DATA.name, folder / "runs", folder / "scratch")
        deliveries: queue.Queue[Delivery | Exception | None] = queue.Queue()
        threading.Thread(target=_train_into, args=(deliveries, session, cells), daemon=True).start()
        while (delivery := deliveries.get()) is not None:
            if isinstance(delivery, Exception):
                raise delivery
            yield delivery


def _train_into(deliveries: "queue.Queue[Delivery | Exception | None]", session: Session, cells: list[Cell]) -> None:
    """Train in this thread, while the other one sends what is ready."""
    here = f"{ray.util.get_node_ip_address()} (node {ray.get_runtime_context().get_node_id()[:8]})"

    def send(cell: Cell) -> None:
        files = run_files(session.runs, cell)
        deliveries.put(Delivery(cell.name, here, {name: getattr(files, name).read_bytes() for name in FILES}))

    try:
        for cell, reason in train_cells(session, cells, on_trained=send).items():
            deliveries.put(Delivery(cell.name, here, {}, reason))
        deliveries.put(None)
    except Exception as error:
        deliveries.put(error)


def versions() -> dict[str, str]:
    """What has to be the same on all nodes, by name."""
    return {
        "code": provenance.code_digest()[:12],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "safetensors")},
    }


# ---- On the driver ---------------------------------------------------------------------------------------------


def _difference(theirs: dict[str, str], ours: dict[str, str]) -> str | None:
    for name, wanted in ours.items():
        if theirs.get(name) != wanted:
            return f"its {name} is {theirs.get(name)}, the driver's is {wanted}"
    return None


def _hand_over(
    cell: Cell, delivery: Delivery, take: Callable[[Cell, RunFiles], str | None], say: Callable[[str], None]
) -> str | None:
    say(f"{cell}: trained on {delivery.node}")
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
    try:
        yield
    finally:
        ray.shutdown()
