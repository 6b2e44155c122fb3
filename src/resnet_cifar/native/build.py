"""Compile the native engine: one shared object an instruction set, found by the digest of what it is made from.

The digest is part of the file's name and is compiled in, so that no checkout, whatever was pulled or edited, runs
another's engine. Objects are shipped in ``lib/`` (an installed wheel), or compiled at first use and kept in the user's
cache. This module needs the standard library alone: setup.py calls it where nothing else is installed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from resnet_cifar.files import locked, whole
from resnet_cifar.native.sets import COMMON, EXACT, GCC, LINK, Set
from resnet_cifar.progress import Say

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "cpp"
SHIPPED = HERE / "lib"
KEPT = 4
DAY = 86_400.0


class Unavailable(Exception):  # noqa: N818
    """The native engine cannot be used here; the message is the reason, half a sentence."""


@dataclass(frozen=True)
class Object:
    """A set's shared object, as its sources are at one moment: what is named, compiled and compared is the same.

    Attributes
    ----------
    set : Set
        For which instructions.
    sources : dict of bytes
        The files of cpp/ by name.
    """

    set: Set
    sources: dict[str, bytes]

    @classmethod
    def of(cls, each: Set) -> "Object":
        """The object of the sources as they are now."""
        paths = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".h", ".cpp", ".map"})
        return cls(each, {path.relative_to(SOURCES).as_posix(): path.read_bytes() for path in paths})

    @cached_property
    def digest(self) -> str:
        """16 digits of a SHA-256 over what decides the object: sources, flags and the kind of machine."""
        flags = (platform.machine(), *COMMON, *GCC, *self.set.flags, self.set.define, *EXACT, *LINK)
        found = hashlib.sha256(f"{' '.join(flags)}\n".encode())
        for name, content in self.sources.items():
            found.update(f"{name} {len(content)}\n".encode() + content)
        return found.hexdigest()[:16]

    @property
    def name(self) -> str:
        """What the file is called, wherever it lies."""
        return f"{self.set.name}-{self.digest}.so"


def shipped(wanted: Object) -> Path | None:
    """The object in an installed wheel, if it is there."""
    path = SHIPPED / wanted.name
    return path if path.exists() else None


def cached(wanted: Object, say: Say) -> Path:
    """The object in the user's cache, or in a folder of this process if the cache cannot be written.

    Parameters
    ----------
    wanted : Object
        Of one of :func:`resnet_cifar.native.sets.compilable`.
    say : callable
        Gets a line before it is compiled, which takes some 20 seconds.

    Raises
    ------
    Unavailable
        If it has to be compiled and that fails.
    """
    try:
        folder = _cache()
        path = folder / wanted.name
        if not path.exists():
            waiting = "waiting for another process to compile the native engine"
            with locked(folder / "lock", lambda: say(waiting)):
                if not path.exists():  # the other process has made it
                    make(wanted, folder, say)
                    _prune(folder, wanted.set)
        with suppress(OSError):  # a cache that is only read
            os.utime(path)
        return path
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        reason = str(error).rstrip(".")
    try:
        path = Path(_own_folder().name) / wanted.name
        if not path.exists():
            say(f"the native engine cannot be kept ({reason}); with XDG_CACHE_HOME in a folder of yours it can")
            make(wanted, path.parent, say)
        return path
    except OSError as error:
        raise Unavailable(f"there is no folder to compile it in ({error})") from None


def make(wanted: Object, folder: Path, say: Say) -> None:
    """Compile an object into ``folder``, so that it is there whole or not at all.

    Raises
    ------
    Unavailable
        If there is no compiler or if it reports an error.
    OSError
        If the folder cannot be written.
    """
    compiler = _compiler()
    with whole(folder / wanted.name) as unfinished, tempfile.TemporaryDirectory() as name:
        unfinished.touch()  # whether the folder can be written, before the work
        say(f"compiling the native engine for {wanted.set.name} with {shlex.join(compiler)}: some 20 seconds, once")
        compile_into(Path(name), wanted, compiler)
        run([*compiler, *LINK, "engine.o", "cpu.o", "-o", "engine.so"], Path(name))
        shutil.copyfile(Path(name) / "engine.so", unfinished)


def compile_into(folder: Path, wanted: Object, compiler: list[str]) -> None:
    """Write the sources into a folder, and engine.o and cpu.o beside them.

    Raises
    ------
    Unavailable
        If the compiler reports an error.
    """
    for name, content in wanted.sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    common = (*COMMON, *(() if _is_clang(compiler) else GCC))
    defines = (wanted.set.define, f'-DRC_SOURCES="{wanted.digest}"')
    run([*compiler, *common, *wanted.set.flags, *defines, *EXACT, "-c", "engine.cpp"], folder)
    run([*compiler, *common, *defines, *EXACT, "-c", "cpu.cpp"], folder)


def run(command: list[str], folder: Path) -> None:
    """Run a compiler in a folder.

    Raises
    ------
    Unavailable
        If it cannot be started, or fails, with the first line that it calls an error.
    """
    done = _call(command, folder)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise Unavailable(f"{command[0]} could not compile it ({first.strip()})")


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    english = os.environ | {"LC_ALL": "C"}
    try:
        return subprocess.run(command, cwd=folder, env=english, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be started ({error.strerror})") from None


def _compiler() -> list[str]:
    """The command of ``$CXX``, or the first C++ compiler there is."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise Unavailable(f"CXX is no command ({error})") from None
    if given and not shutil.which(given[0]):
        raise Unavailable(f"CXX is {given[0]}, which is not there")
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if not given and not found:
        raise Unavailable("there is no C++ compiler (c++, g++ or clang++)")
    return given or [str(found)]


def _is_clang(compiler: list[str]) -> bool:
    return "clang" in _call([*compiler, "--version"], Path()).stdout


def _cache() -> Path:
    """The user's cache, made if it is missing; one for each C library, as machines may share a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = given if given.is_absolute() else Path.home() / ".cache"
    folder = home / "resnet-cifar" / f"native-{''.join(platform.libc_ver())}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="resnet-cifar-")


def _prune(folder: Path, each: Set) -> None:
    """Remove the set's objects that were not used for a day, but for the last few; and what a killed build left."""
    paths = [*folder.glob(f"{each.name}-*.so"), *folder.glob(f".{each.name}-*.part")]
    used = {path: path.stat().st_mtime for path in paths}
    for path in sorted(used, key=used.__getitem__)[:-KEPT]:
        if used[path] < time.time() - DAY:
            with suppress(OSError):
                path.unlink()
