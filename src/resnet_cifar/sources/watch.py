"""When a source is left for the next one: it is watched from outside, whatever it does."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from resnet_cifar.progress import Progress
from resnet_cifar.sources.check import SourceError

POLL = 0.1


@dataclass(frozen=True)
class Limits:
    """When a source is left for the next one.

    Parameters
    ----------
    reach : float
        Seconds until its first byte.
    rate : float
        Bytes a second that it must deliver.
    window : float
        Seconds over which the rate is taken.
    """

    reach: float = 10.0
    rate: float = 200e3
    window: float = 15.0


def watch(
    label: str,
    total: int,
    size: Callable[[], int],
    work: Callable[[], object],
    stop: Callable[[], None],
    limits: Limits,
) -> None:
    """Do the work in a thread, show its progress, and leave it when it does not keep to the limits.

    From outside, because neither a name look-up nor a server that sends a byte now and then minds a timeout.

    Parameters
    ----------
    label : str
        What is in progress.
    total : int
        The bytes there are to come. When they are here, the limits no longer apply.
    size : callable
        Returns the bytes that are here.
    work : callable
        What to do.
    stop : callable
        Ends the work; called in any case.
    limits : Limits
        When to leave it.

    Raises
    ------
    SourceError
        If the limits are not kept.
    Exception
        Whatever the work raised.
    """
    failure: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failure.append(error)

    here = first = size()
    came = 0
    progress = Progress(label, total, first)
    began = time.monotonic()
    samples = deque([(began, came)])
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL)
            now, before, here = time.monotonic(), here, size()
            came += max(here - before, 0)  # it falls where a server does not resume, or a file moves
            if came:
                progress.update(min(here, total), f"{here / 1e6:.0f} of {total / 1e6:.0f} MB")
            samples.append((now, came))
            if here >= total or not thread.is_alive():
                continue
            if not came and now - began > limits.reach:
                raise SourceError(f"nothing came in {limits.reach:g} s")
            while now - samples[0][0] > limits.window:
                if came - samples.popleft()[1] < limits.rate * limits.window:
                    raise SourceError(f"less than {limits.rate / 1e3:g} kB/s for {limits.window:g} s")
    finally:
        stop()
        progress.clear()
    if failure:
        raise failure[0]
