"""The instruction sets for which the native engine is compiled, one shared object each, and the compiler's flags."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

COMMON = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra")
GCC = ("-fno-gnu-unique",)  # a unique symbol would be one for all sets that a process loads
EXACT = ("-ffp-contract=off",)  # comes last: a*b + c is one FMA only where the source says so
LINK = ("-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,-z,defs", "-Wl,-Bsymbolic", "-Wl,--version-script=exports.map")


@dataclass(frozen=True)
class Set:
    """One instruction set.

    Attributes
    ----------
    name : str
        As the library gives it, and as a user asks for it.
    machine : str
        x86_64, aarch64 or any, in the words of ``uname -m``.
    flags : tuple of str
        The compiler's, for engine.cpp alone; cpu.cpp, which asks whether the set is there, must run without it.
    needs : frozenset of str
        What /proc/cpuinfo lists if processor and operating system have it.
    """

    name: str
    machine: str
    flags: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()

    @property
    def define(self) -> str:
        return f"-DRC_SET_{self.name.upper()}"


SETS = (
    Set("avx512", "x86_64", ("-mavx512f", "-mprefer-vector-width=512"), frozenset({"avx512f", "avx2", "fma"})),
    Set("avx2", "x86_64", ("-mavx2", "-mfma"), frozenset({"avx2", "fma"})),
    Set("neon", "aarch64"),
    Set("plain", "any", ("-O2",)),
)
"""Fastest first. All give the same bits. ``plain`` is a check of that, and slower than torch: never the default."""

FAST = tuple(each for each in SETS if each.name != "plain")


def compilable(among: tuple[Set, ...] = SETS) -> tuple[Set, ...]:
    """Those that a compiler of this machine makes; none but on Linux."""
    if platform.system() != "Linux":
        return ()
    return tuple(each for each in among if each.machine in (platform.machine(), "any"))


def runnable(among: tuple[Set, ...] = SETS) -> tuple[Set, ...]:
    """Those of :func:`compilable` that this processor seems to have, so that none is compiled in vain."""
    has = _processor()
    return tuple(each for each in compilable(among) if has is None or each.needs <= has)


def _processor() -> set[str] | None:
    """The features that Linux lists, or None if it lists none."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return set(found[1].split()) if found else None
