"""Training on a Ray cluster: packs of cells are tasks, and their files come back through Ray's object store."""

import logging
import os
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from resnet_cifar.cells import Cell, RunFiles
from resnet_cifar.errors import InputError
from resnet_cifar.files import write_whole
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.params import Study
from resnet_cifar.progress import clock
from resnet_cifar.settings import Settings
from resnet_cifar.sweep.checkout import DATA, SCRATCH
from resnet_cifar.sweep.local import share
from resnet_cifar.sweep.node import (
    LOOK_EVERY,
    Delivery,
    Expected,
    Refusal,
    State,
    node_name,
    refusal,
    saved_states,
    train_pack,
    unfitness,
    versions,
)
from resnet_cifar.training.engines import Computer
from resnet_cifar.training.record import Record
from resnet_cifar.training.states import StateFile
from resnet_cifar.training.stop import Interrupted, StopSignal

PACK = 10  # cells of a task on a GPU, where RESNET_CIFAR_PACK does not say
RARER = 6  # times as rarely as on a disk of its own a state is saved, because it travels to the driver
TRIES = 3
REACH = 10.0  # seconds
PATIENCE = 300.0  # seconds to wait for a node when none is left
LAST_LINES = 20

Take = Callable[[Cell, RunFiles], str | None]
Say = Callable[[str], None]


def train(
    study: Study,
    cells: list[Cell],
    settings: Settings,
    take: Take,
    say: Say,
    check_engines: Callable[[Callable[[Cell], str], bool], None],
    address: str | None,
) -> list[str]:
    """Train cells on a cluster and hand over each as soon as its files are here.

    A task that dies with its worker or its node is started again elsewhere, its cells then one by one, so that one
    that cannot be trained does not hold up the others; each goes on from the last state that it sent here. Of a cell
    whose task died three times the last lines are said.

    Parameters
    ----------
    study : Study
        The parameters.
    cells : list of Cell
        What to train.
    settings : Settings
        What the driver's environment says; it holds on all nodes, as ``settings_here`` has it.
    take : callable
        Gets a cell and its files, in a folder that is removed afterwards; returns why it does not take them, or None.
    say : callable
        Gets lines of progress.
    check_engines : callable
        Gets, before anything is trained, the engine of each cell, and whether the environment wants that one.
    address : str, optional
        The cluster; by default the one that RAY_ADDRESS names, or else Ray is started on this machine.

    Returns
    -------
    list of str
        Why cells failed, by name; empty if none did.

    Raises
    ------
    InputError
        If there is no such cluster, or if no node of it can train.
    Interrupted
        After SIGINT or SIGTERM; the tasks are stopped then.
    """
    with _connected(address), StopSignal() as stop:
        _tell_who_may_use_it(say)
        tasks = _Tasks(study, cells, settings, say)
        check_engines(tasks.engine, tasks.wanted)
        tasks.ask_nodes()
        flow = _Flow(tasks, cells, take, say)
        while flow.running and not stop.received:
            flow.look()
        if stop.received:
            flow.cancel()
            raise Interrupted(stop.received)
        flow.take_again()
        flow.report()
    return list(flow.failed.values())


class _Flow:
    """The tasks that run, and what they send."""

    def __init__(self, tasks: "_Tasks", cells: list[Cell], take: Take, say: Say) -> None:
        self.tasks, self.take, self.say = tasks, take, say
        self.running = {tasks.start(pack): pack for pack in tasks.packs(cells)}
        self.deaths: Counter[Cell] = Counter()
        self.lines: defaultdict[Cell, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))
        self.failed: dict[Cell, str] = {}
        self.not_taken: list[Delivery] = []
        self.alone: float | None = None  # since when no node can train
        self.states_lost = False

    def look(self) -> None:
        """Wait up to half a second for what the tasks send, and take it."""
        ready, _ = ray.wait(list(self.running), timeout=LOOK_EVERY, fetch_local=False)
        if not ready:
            self._look_for_nodes()
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

    def take_again(self) -> None:
        """Hand over once more what was not taken: what was in the way may be gone."""
        for delivery in self.not_taken:
            cell = Cell.parse(delivery.cell)
            failure = self._hand_over(cell, delivery)
            if failure:
                self.failed[cell] = f"{cell}: {failure}"
            else:
                del self.failed[cell]

    def report(self) -> None:
        """Say the last lines of the cells that died."""
        for cell in self.failed:
            if self.deaths[cell] == TRIES:
                self.say(f"{cell}: its last lines:")
                for line in self.lines[cell]:
                    self.say(f"    {line}")

    def _receive(self, sent: str | Delivery | State | Refusal, stream: "ray.ObjectRefGenerator") -> None:
        """Say a line, hand over a cell, keep a state, or start a pack again where it is not refused."""
        pack = self.running[stream]
        match sent:
            case str():
                self.say(sent)
                for cell in pack:
                    self.lines[cell].append(sent)
            case State():
                self._keep(sent)
            case Delivery():
                cell = Cell.parse(sent.cell)
                pack.remove(cell)
                failure = sent.failure or self._hand_over(cell, sent)
                if failure:
                    self.say(f"{cell}: {failure}")
                    self.failed[cell] = f"{cell}: {failure}"
                    if sent.files:
                        self.not_taken.append(sent)
            case Refusal():
                self.tasks.avoid(sent)
                del self.running[stream]
                self.running[self.tasks.start(pack)] = pack

    def _hand_over(self, cell: Cell, delivery: Delivery) -> str | None:
        try:
            with TemporaryDirectory(prefix="resnet-cifar-") as folder:
                files = RunFiles(Path(folder))
                for name, content in delivery.files.items():
                    getattr(files, name).write_bytes(content)
                failure = self.take(cell, files)
        except OSError as error:
            return f"trained but not kept ({error.filename or 'a file'}: {error.strerror})"
        if not failure:
            record = Record.model_validate_json(delivery.files["record"])
            StateFile(SCRATCH, record.question, record.arithmetic).remove()
        return failure

    def _keep(self, state: State) -> None:
        path = SCRATCH / state.cell / state.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, state.content, shared=True)
        except OSError as error:
            if not self.states_lost:
                self.say(f"{state.cell}: its state cannot be kept here ({error.filename}: {error.strerror})")
            self.states_lost = True

    def _died(self, cell: Cell, error: RayError) -> None:
        self.deaths[cell] += 1
        self.lines[cell].extend(line for line in str(error).splitlines() if line.strip())
        if self.deaths[cell] < TRIES:
            self.say(f"{cell}: its task died ({_reason(error)}), started again")
            self.running[self.tasks.start([cell])] = [cell]
        else:
            self.failed[cell] = f"{cell}: its task died {TRIES} times, the last time so: {_reason(error)}"

    def _look_for_nodes(self) -> None:
        """Give up if there is no node for what is left, and none comes."""
        if self.tasks.nodes():
            self.alone = None
        elif self.alone is None:
            self.alone = time.monotonic()
            self.say(f"no node can train now ({self.tasks.missing}): waiting {clock(PATIENCE)} for one")
        elif time.monotonic() - self.alone > PATIENCE:
            self.cancel()
            for cell in [cell for pack in self.running.values() for cell in pack]:
                self.failed[cell] = f"{cell}: no node is left for it ({self.tasks.missing})"
            self.running = {}


class _Tasks:
    """How packs of cells become tasks of this cluster."""

    def __init__(self, study: Study, cells: list[Cell], settings: Settings, say: Say) -> None:
        self.say = say
        self.avoided: dict[str, str] = {}  # why no more tasks are started on a node
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(resources.get("GPU", 0) for resources in alive)
        cpus = [int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1]
        self.on_gpu = _on_gpu(settings.device, gpus)
        device, simd, threads = "cuda" if self.on_gpu else "cpu", settings.simd, settings.threads
        if self.on_gpu:
            self.engines, self.wanted = dict.fromkeys(study.list_cells(), GraphEngine.name), True
        else:
            computer = Computer(replace(settings, device=device), say)
            self.engines = {cell: computer.arithmetic(study.recipe(cell)).engine for cell in study.list_cells()}
            self.wanted = not computer.fallback
            simd = simd if computer.native else "none"
        engines = {self.engines[cell] for cell in cells}
        torch = engines != {"native"}
        self.expected = Expected(versions(torch), native="native" in engines, torch=torch)
        if not torch and cpus:
            threads = min(threads, *cpus)  # any number gives the same bytes, so no node need be left out
        self.resource, self.amount = ("GPU", 1) if self.on_gpu else ("CPU", threads)
        if not self.nodes() and not self.on_gpu:
            raise InputError(
                f"no node of the cluster has {threads} CPUs for a cell: set RESNET_CIFAR_THREADS to what they have"
                + (", which is part of what decides the bits." if "eager" in engines else ".")
            )
        self.pack_size = (settings.pack or PACK) if self.on_gpu else 1
        self.settings = replace(
            settings,
            device=device,
            threads=threads,
            pack=self.pack_size,
            save_every=RARER * settings.save_every,
            simd=simd,
            source=None,
        )
        self.study = study.model_dump()
        self.data = ray.put(np.fromfile(DATA, np.uint8))
        self._tell_device(gpus)

    @property
    def missing(self) -> str:
        """Why there is no node, in words."""
        refused = f"{len(self.avoided)} refused, as said above" if self.avoided else ""
        return refused or f"none has {'a GPU' if self.on_gpu else f'{self.amount} CPUs'}"

    def engine(self, cell: Cell) -> str:
        """What trains a cell of the study here."""
        return self.engines[cell]

    def nodes(self) -> list[dict[str, Any]]:
        """Those that are there, have what a task needs, and are not refused."""
        return [
            node
            for node in ray.nodes()
            if node["Alive"]
            and node["Resources"].get(self.resource, 0) >= self.amount
            and node["NodeID"] not in self.avoided
        ]

    def avoid(self, refusal: Refusal) -> None:
        """Start no more tasks on a node, and say why."""
        if refusal.node not in self.avoided:
            self.say(refusal.sentence)
        self.avoided[refusal.node] = refusal.sentence

    def ask_nodes(self) -> None:
        """Ask each node whether it can train, and avoid those that cannot.

        Raises
        ------
        InputError
            If none is left.
        """
        remote = ray.remote(num_cpus=0, max_retries=0)(unfitness)
        answers = {}
        nodes = self.nodes()
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = remote.options(scheduling_strategy=place)
            answers[node["NodeID"]] = asked.remote(self.expected, self.settings.simd)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        for node, answer in answers.items():
            try:
                reason = ray.get(answer)
            except RayError as error:
                reason = f"it cannot run this package ({_reason(error)}); install the driver's version there"
            if reason:
                self.avoid(Refusal(node, refusal(node_name(addresses[node], node), reason)))
        if self.avoided and not self.nodes():
            raise InputError(f"no node of the cluster can train: {'; '.join(self.avoided.values())}.")

    def packs(self, cells: list[Cell]) -> list[list[Cell]]:
        """Cells by task: about the same work in each, one a cell on CPUs."""
        places = int(sum(node["Resources"][self.resource] for node in self.nodes())) if self.on_gpu else 1
        return share(cells, max(places, -(-len(cells) // self.pack_size)))

    def start(self, pack: list[Cell]) -> "ray.ObjectRefGenerator":
        """Start a task, with the states of its cells that are here."""
        needs = {"num_gpus": 1} if self.on_gpu else {"num_cpus": self.amount}
        remote = ray.remote(num_returns="streaming", max_retries=0, **needs)(train_pack)
        if self.avoided:
            elsewhere = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self.avoided)})
            remote = remote.options(scheduling_strategy=elsewhere)
        names = [cell.name for cell in pack]
        states = [state for name in names for state in saved_states(SCRATCH, name)]
        return remote.remote(names, self.study, self.data, states, self.expected, asdict(self.settings))

    def _tell_device(self, gpus: float) -> None:
        if not self.on_gpu:
            why = "RESNET_CIFAR_DEVICE is 'cpu'" if gpus else "no node has a GPU"
            insist = "" if gpus else "; RESNET_CIFAR_DEVICE=cuda waits for one"
            self.say(f"training on CPUs, {self.amount} a cell: {why}{insist}")
        elif gpus:
            self.say(f"training on {gpus:g} GPU{'s' * (gpus != 1)}, up to {self.pack_size} cells at once on each")


def _reason(error: Exception) -> str:
    """Of an error with pages of traceback, the line that a person can use."""
    text = str(error.cause) if isinstance(error, RayTaskError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _on_gpu(device: str | None, gpus: float) -> bool:
    """Whether a cluster with so many GPUs trains on them."""
    if device not in (None, "cpu", "cuda"):
        raise InputError(
            f"RESNET_CIFAR_DEVICE is {device!r}; with --ray it should be cpu or cuda, since Ray picks the GPU."
        )
    return device == "cuda" or (gpus >= 1 and device is None)


def _tell_who_may_use_it(say: Say) -> None:
    """Warn of a cluster without a token on a machine that others reach: Ray does so only where it is started."""
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    reached = [
        address for address in addresses if not address.startswith("127.") and address not in ("::1", "localhost")
    ]
    if reached and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # which Ray sets where it finds a token
        say(
            f"the cluster has no token: whoever reaches {reached[0]} can run programs on it; docs/cluster.md says how "
            "to give it one"
        )


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
