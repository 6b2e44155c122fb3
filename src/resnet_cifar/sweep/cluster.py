"""Training on a Ray cluster: packs of cells are tasks, and their files come back through Ray's object store."""

import logging
import os
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
from ray.exceptions import RayError

from resnet_cifar.cells import SCRATCH, Cell, RunFiles
from resnet_cifar.errors import InputError, Interrupted, in_one_line
from resnet_cifar.files import write_whole
from resnet_cifar.params import Study
from resnet_cifar.progress import Say, clock
from resnet_cifar.settings import Settings
from resnet_cifar.sweep.node import LOOK_EVERY, Delivery, Refusal, State
from resnet_cifar.sweep.tasks import Tasks, in_a_line
from resnet_cifar.training.record import Record
from resnet_cifar.training.states import StateFile
from resnet_cifar.training.stop import StopSignal

TRIES = 3
REACH = 10.0  # seconds
PATIENCE = 300.0  # seconds to wait for a node when none is left
LAST_LINES = 20

Take = Callable[[Cell, RunFiles], str | None]


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
        tasks = Tasks(study, cells, settings, say)
        check_engines(tasks.engine, tasks.wanted)
        tasks.ask_nodes()
        flow = _Flow(tasks, cells, take, say)
        while flow.running and not stop.received:
            flow.look()
        flow.cancel()
        flow.take_again()  # the only copy is here
        if stop.received:
            raise Interrupted(stop.received)
        flow.report()
    return list(flow.failed.values())


class _Flow:
    """The tasks that run, and what they send."""

    def __init__(self, tasks: Tasks, cells: list[Cell], take: Take, say: Say) -> None:
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
        """Stop the tasks that still run."""
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
            self.say(f"{cell}: its task died ({in_a_line(error)}), started again")
            self.running[self.tasks.start([cell])] = [cell]
        else:
            self.failed[cell] = f"{cell}: its task died {TRIES} times, the last time so: {in_a_line(error)}"

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
            f"the Ray cluster at {address} cannot be joined ({in_a_line(error)}): it must run and share its token."
        ) from None
    except RuntimeError as error:  # it names both versions of Ray and Python
        raise InputError(f"the Ray cluster at {address} cannot be joined: {in_one_line(error)}.") from None
    try:
        yield
    finally:
        ray.shutdown()
