"""Files that are whole or not there, and digests of what is in them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resnet_cifar.errors import InputError


@contextmanager
def whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; at the end it takes the place of ``path``.

    Whatever happens, a power cut included, ``path`` is then what it was or all of what was written.

    The temporary path is always the same, so that the next one writes over what a killed process left. Of a ``shared``
    file, which several processes may write at once, each has a temporary path of its own, and the last one stays.

    Raises
    ------
    OSError
        If it cannot be written, or is a folder; it carries the name of ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.filename is None or Path(error.filename) == temporary:  # a full disk names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, shared: bool = False) -> None:
    """Write a file in one piece, as :func:`whole` does.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "a", b"all of it")
    ...     (Path(folder) / "a").read_bytes()
    b'all of it'
    """
    with whole(path, shared) as temporary:
        temporary.write_bytes(content)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold a lock file against other processes; give its descriptor, which a child process may inherit.

    The lock is free when every process that has the descriptor has left the block or ended, whatever ended it.

    Parameters
    ----------
    path : Path
        The file, made if it is missing.
    on_wait : callable
        Called once if another process holds it, which is then waited for; or raises.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    import fcntl  # not on every system, and nothing is locked where it is missing

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def check_readable(path: Path) -> None:
    """Open a file for reading, and close it: of one that it cannot open, safetensors says that it is missing.

    Raises
    ------
    OSError
        What is really wrong: a missing file is a ``FileNotFoundError`` alone.
    """
    path.open("rb").close()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: list[Path], root: Path) -> str:
    """SHA-256 over several files: the name of each below ``root``, its length and its content, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def check_no_link(path: Path) -> None:
    """Refuse an output that DVC would refuse, but only after the work: one whose folder leads out of the repository.

    That is so where a folder above ``path`` is a symbolic link to another disk. ``path`` itself may be such a link, and
    a link within the repository does no harm.

    Raises
    ------
    InputError
        If the path is given within the git repository of the working directory, and its folder lies outside.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 -- Path.resolve would follow the links
    if root and folder.is_relative_to(root) and not folder.resolve().is_relative_to(root):
        link = next(above for above in reversed((folder, *folder.parents)) if above.is_symlink())
        raise InputError(
            f"{link} is a symbolic link that leads out of the repository, and DVC takes no output behind one: make it "
            "a folder and put DVC's cache on the other disk, with `dvc cache dir FOLDER` and "
            "`dvc config cache.type symlink`."
        )


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
