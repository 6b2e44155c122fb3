"""The official archive over HTTP."""

import functools
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import requests
import urllib3

from resnet_cifar.sources.check import SourceError
from resnet_cifar.sources.given import read_given
from resnet_cifar.sources.published import md5
from resnet_cifar.sources.watch import Limits, watch

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
CHUNK = 1 << 14


def fetch_official(partial: Path, limits: Limits) -> dict[str, bytes]:
    """The six files from the official archive, going on with what ``partial`` has of it.

    Raises
    ------
    SourceError
        If it cannot be reached, is too slow, or is not what was published.
    OSError
        If what comes cannot be written.
    """
    path = partial / Path(URL).name
    resumed = _size(path) > 0
    stop = threading.Event()
    if _size(path) != ARCHIVE_BYTES:  # else it is all there, and needs no connection
        watch(
            "download: the official archive",
            ARCHIVE_BYTES,
            functools.partial(_size, path),
            functools.partial(_fetch, path, limits.reach, stop),
            stop.set,
            limits,
        )
    if md5(path.read_bytes()) == ARCHIVE_MD5:
        return read_given(path)
    path.unlink()
    if resumed:  # what lay there may have been the damaged part
        return fetch_official(partial, limits)
    raise SourceError("what it sends does not have the published MD5")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(path: Path, timeout: float, stop: threading.Event) -> None:
    """Append to the file what is missing of it, again after a lost connection as long as something comes."""
    while True:
        have = _size(path)
        try:
            _write(path, _receive(have, timeout), stop)
            return
        except SourceError:
            if stop.is_set():
                return
            if _size(path) <= have:
                raise


def _write(path: Path, chunks: Iterator[tuple[int, bytes]], stop: threading.Event) -> None:
    try:
        with path.open("ab") as file:
            for start, chunk in chunks:
                if stop.is_set():
                    return
                file.truncate(start)  # shorter than it was where a server does not resume
                file.write(chunk)
                file.flush()  # its size is what is watched
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise


def _receive(start: int, timeout: float) -> Iterator[tuple[int, bytes]]:
    """What the server sends of the archive from ``start`` on, each piece with its place in the archive."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(URL, stream=True, timeout=timeout, headers=headers) as response:
            if start and response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                start = 0
            # Not iter_content: a server may label the .gz itself as an encoding, which that would undo.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                yield start, chunk
                start += len(chunk)
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:  # an OSError too: a wrong path in a variable
        raise SourceError(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """The first cause of an error, which is the part of it that a person can use."""
    while error.__context__:
        error = error.__context__
    reason = getattr(error, "strerror", None) or str(error)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # in requests' order
        if path := os.environ.get(variable):
            blamed = isinstance(error, ssl.SSLError) or path in reason
            return f"{reason} ({variable} is {path})" if blamed else reason
    return reason
