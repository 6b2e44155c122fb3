"""How a command is executed: this project's variables of the environment, read here alone, when a command starts.

What is trained is never decided here but by the parameters, and how it is trained never by a parameter.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.errors import InputError

AT_ONCE = 10  # more are not faster: benchmarks/throughput.csv
MOST_AT_ONCE = 32  # torch's streams repeat after 32, and two networks must not share one
MOST_THREADS = 64
SETS = ("avx512", "avx2", "neon", "plain", "none")

HELP = {
    "RESNET_CIFAR_DEVICE": "cpu, cuda or cuda:K (default: the GPU if there is one)",
    "RESNET_CIFAR_PACK": "cells that train at once on a GPU (default: what its memory takes up to 10; at most 32)",
    "RESNET_CIFAR_SAVE_EVERY": "seconds between two saved states, from which an interrupted run goes on (default: 30)",
    "RESNET_CIFAR_SIMD": "instruction set of the native engine, or none for PyTorch's (default: the best there is)",
    "RESNET_CIFAR_THREADS": "CPU threads (default: all cores, at most 64); any number gives the native engine's bits",
    "CIFAR10_SOURCE": "cifar-10-python.tar.gz, cifar-10-binary.tar.gz or an unpacked folder of either, used instead",
}
"""What each variable means, by name."""

TRAINING = tuple(name for name in HELP if name.startswith("RESNET_CIFAR_"))
"""Those that say how cells are trained."""


@dataclass(frozen=True)
class Settings:
    """What the environment says; a field is None where it says nothing.

    Parameters
    ----------
    device : str or None
        cpu, cuda or cuda:K.
    threads : int
        CPU threads; by default as many as there are cores for this process, and at most 64.
    pack : int or None
        Networks that a GPU trains at once.
    save_every : float
        Seconds between two saved states.
    simd : str or None
        The native engine's instruction set, or ``none`` for the eager engine.
    source : Path or None
        Where CIFAR-10 lies already.
    """

    device: str | None
    threads: int
    pack: int | None
    save_every: float
    simd: str | None
    source: Path | None


def read() -> Settings:
    """Read the variables.

    Raises
    ------
    InputError
        If a value is not what it should be.
    """
    source = os.environ.get("CIFAR10_SOURCE")
    return Settings(
        device=os.environ.get("RESNET_CIFAR_DEVICE") or None,
        threads=_number("RESNET_CIFAR_THREADS", MOST_THREADS) or min(_cores(), MOST_THREADS),
        pack=_number("RESNET_CIFAR_PACK", MOST_AT_ONCE),
        save_every=_seconds("RESNET_CIFAR_SAVE_EVERY", 30.0),
        simd=_simd(),
        source=Path(source) if source else None,
    )


def dvc_stage() -> str:
    """The name of the stage that DVC runs this command as, or nothing."""
    return os.environ.get("DVC_STAGE", "")


def explain(*names: str) -> str:
    """The named variables for a command's help text, a line each."""
    width = max(map(len, names))
    return "environment:\n" + "\n".join(f"  {name:{width}}  {HELP[name]}" for name in names) + "\n"


def _number(name: str, most: int) -> int | None:
    given = os.environ.get(name, "")
    if not given:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= most):
        raise InputError(f"{name} is {given!r}; it should be a whole number from 1 to {most}.")
    return int(given)


def _seconds(name: str, default: float) -> float:
    given = os.environ.get(name, "")
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = -1.0
    if not seconds >= 0 or "_" in given or not given.isascii():  # Python reads more than people write
        raise InputError(f"{name} is {given!r}; it should be a number of seconds from 0.")
    return seconds


def _simd() -> str | None:
    given = os.environ.get("RESNET_CIFAR_SIMD", "")
    if given and given not in SETS:
        raise InputError(f"RESNET_CIFAR_SIMD is {given!r}; it should be {', '.join(SETS[:-1])} or {SETS[-1]}.")
    return given or None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
