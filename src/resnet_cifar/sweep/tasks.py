"""How packs of cells become tasks of a Ray cluster: on which nodes, with which resources and settings."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from resnet_cifar.cells import DATA, SCRATCH, Cell
from resnet_cifar.errors import InputError
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.params import Study
from resnet_cifar.progress import Say
from resnet_cifar.settings import AT_ONCE, Settings
from resnet_cifar.sweep.local import share
from resnet_cifar.sweep.node import Expected, Refusal, node_name, refusal, saved_states, train_pack, unfitness, versions
from resnet_cifar.training.engines import Computer

RARER = 6  # times as rarely as on a disk of its own a state is saved, because it travels to the driver


class Tasks:
    """The tasks of the cluster that this process has joined.

    Parameters
    ----------
    study : Study
        The parameters.
    cells : list of Cell
        What they train.
    settings : Settings
        What the driver's environment says.
    say : callable
        Gets lines for the user.

    Attributes
    ----------
    wanted : bool
        Whether the environment wants the engine that trains.

    Raises
    ------
    InputError
        If no node has what a task needs.
    """

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
        self.pack_size = (settings.pack or AT_ONCE) if self.on_gpu else 1
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
                reason = f"it cannot run this package ({in_a_line(error)}); install the driver's version there"
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


def in_a_line(error: Exception) -> str:
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
