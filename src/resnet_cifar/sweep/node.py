"""What a node of a Ray cluster does: trains a pack of cells, and sends what comes of it.

It needs this package with the driver's code; no checkout, no shared folder and no DVC. Where torch computes, it needs
the driver's versions of Python, torch, numpy and safetensors, too.
"""

import platform
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

from resnet_cifar import native, numerics
from resnet_cifar.cells import DATA, Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.files import sha256_of, write_whole
from resnet_cifar.native.library import Unavailable
from resnet_cifar.params import Study
from resnet_cifar.settings import Settings
from resnet_cifar.settings import read as read_settings
from resnet_cifar.sweep.checkout import FILES
from resnet_cifar.training.engines import load_native
from resnet_cifar.training.session import Session
from resnet_cifar.training.train import train_cells

LOOK_EVERY = 0.5  # seconds
SOURCES = {".py", ".h", ".cpp", ".map"}


@dataclass(frozen=True)
class Delivery:
    """What a task sends of one cell: the contents of its files, or why it failed."""

    cell: str
    files: dict[str, bytes]
    failure: str = ""


@dataclass(frozen=True)
class State:
    """The saved state of a cell in training, in either direction: the file of :class:`StateFile`, by its name."""

    cell: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Refusal:
    """What a task sends instead of training, where it must not or cannot."""

    node: str
    sentence: str


@dataclass(frozen=True)
class Expected:
    """What has to be on a node as it is on the driver.

    Attributes
    ----------
    versions : dict
        By name: the code's, and the libraries' where torch computes.
    native, torch : bool
        Whether the native engine computes cells, and whether torch does.
    """

    versions: dict[str, str]
    native: bool
    torch: bool


def unfitness(expected: Expected, simd: str | None) -> str | None:
    """Why this node cannot train what the driver trains, in words; None if it can.

    Parameters
    ----------
    expected : Expected
        The driver's.
    simd : str or None
        The native engine's instruction set, if the driver's environment names one.
    """
    here = versions(torch=True)
    for name, wanted in expected.versions.items():
        if here[name] != wanted:
            return f"its {name} is {here[name]}, the driver's is {wanted}; a cell needs the same everywhere"
    if expected.native:
        try:
            own = read_settings()
            load_native(replace(own, simd=simd or own.simd), lambda _: None)  # as settings_here has it
        except (Unavailable, InputError) as error:
            return f"its native engine cannot be used ({str(error).rstrip('.')}), the driver's can"
    return None


def settings_here(given: Settings, torch_too: bool) -> Settings:
    """The driver's settings as the native engine has them on this node.

    This node's environment names the instruction set where the driver's does not. Where torch does not compute, too, a
    cell takes no more threads than this node's environment or cores allow. No bit depends on either.
    """
    own = read_settings()
    threads = given.threads if torch_too else min(given.threads, own.threads)
    return replace(given, simd=given.simd or own.simd, threads=threads)


def train_pack(
    names: list[str],
    study: dict[str, Any],
    data: np.ndarray,
    states: list[State],
    expected: Expected,
    settings: dict[str, Any],
) -> Iterator[str | Delivery | State | Refusal]:
    """Train cells on this node; yield lines of progress, saved states, and each cell as soon as it is trained."""
    node = ray.get_runtime_context().get_node_id()
    here = node_name(ray.util.get_node_ip_address(), node)
    given = Settings(**settings)
    reason = unfitness(expected, given.simd)
    if reason:  # it joined when the others had been asked
        yield Refusal(node, refusal(here, reason))
        return
    yield f"{here}: training {', '.join(names)}"
    with TemporaryDirectory(prefix="resnet-cifar-") as name:
        chosen = settings_here(given, expected.torch) if expected.native else given
        task = _Task(Path(name), names, Study.model_validate(study), chosen)
        for sent in task.train(data, states):
            if isinstance(sent, OSError | InputError):
                yield Refusal(node, refusal(here, f"nothing can be trained there ({str(sent).rstrip('.')})"))
                return
            if isinstance(sent, Exception):
                raise sent
            yield f"{here}: {sent}" if isinstance(sent, str) else sent


class _Task:
    """Cells that one thread trains, while the other one sends what is ready."""

    def __init__(self, folder: Path, names: list[str], study: Study, settings: Settings) -> None:
        self.folder, self.study, self.settings = folder, study, settings
        self.cells = [Cell.parse(name) for name in names]
        self.outbox: queue.Queue[str | Delivery | Exception | None] = queue.Queue()
        self.sent: dict[str, int] = {}

    def train(self, data: np.ndarray, states: list[State]) -> Iterator[str | Delivery | State | Exception]:
        """Train; an exception is the last that is given, an ``OSError`` or ``InputError`` only before it begins."""
        threading.Thread(target=self._train, args=(data, states), daemon=True).start()
        while True:
            sent = None
            with suppress(queue.Empty):
                sent = self.outbox.get(timeout=LOOK_EVERY)
                if sent is None:
                    return
            for cell in self.cells:  # before the cell itself, whose state is gone then
                yield from saved_states(self.folder / "scratch", cell.name, self.sent)
            if sent is not None:
                yield sent

    def _train(self, data: np.ndarray, states: list[State]) -> None:
        try:
            session = self._session(data, states)
        except Exception as error:
            self.outbox.put(error)
            return

        def send(cell: Cell) -> None:
            files = run_files(session.runs, cell)
            self.outbox.put(Delivery(cell.name, {name: getattr(files, name).read_bytes() for name in FILES}))

        try:
            for cell, reason in train_cells(session, self.cells, say=self.outbox.put, on_trained=send).items():
                self.outbox.put(Delivery(cell.name, {}, reason))
            self.outbox.put(None)
        except Exception as error:
            self.outbox.put(RuntimeError(f"{type(error).__name__}: {error}"))

    def _session(self, data: np.ndarray, states: list[State]) -> Session:
        scratch, images = self.folder / "scratch", self.folder / DATA.name
        for state in states:
            path = scratch / state.cell / state.name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, state.content)  # the other thread may send it back at once
            self.sent[f"{state.cell}/{state.name}"] = path.stat().st_mtime_ns
        data.tofile(images)
        session = Session(self.study, images, self.folder / "runs", scratch, self.settings, self.outbox.put)
        images.unlink()  # now, since a task that is killed leaves its folder behind
        return session


def versions(torch: bool) -> dict[str, str]:
    """What has to be the same on all nodes, by name: the code, and, where torch computes, the libraries."""
    packages = Path(numerics.__file__).parent, Path(native.__file__).parent
    files = [path for package in packages for path in sorted(package.rglob("*")) if path.suffix in SOURCES]
    found = {"code": sha256_of(files, packages[0].parent)[:12]}
    if torch:
        found |= {"python": platform.python_version()}
        found |= {name: version(name) for name in ("torch", "numpy", "safetensors")}
    return found


def saved_states(scratch: Path, cell: str, sent: dict[str, int] | None = None) -> Iterator[State]:
    """The saved states of a cell; with ``sent``, those that are new since it was noted there."""
    for path in sorted((scratch / cell).glob("*.safetensors")):
        with suppress(FileNotFoundError):  # the cell is trained meanwhile
            written, key = path.stat().st_mtime_ns, f"{cell}/{path.name}"
            if sent is None or sent.get(key) != written:
                yield State(cell, path.name, path.read_bytes())
            if sent is not None:
                sent[key] = written


def node_name(address: str, node: str) -> str:
    """What a node is called in lines for the user."""
    return f"{address} (node {node[:8]})"


def refusal(node: str, reason: str) -> str:
    """Why a node trains nothing, as a sentence."""
    return f"{node} is refused: {reason}"
