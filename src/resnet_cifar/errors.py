"""The exceptions whose message a user is meant to see, and how a command shows them."""

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ReportedError(Exception):
    """What a command ends with: one sentence that says what happened and what would be right."""


class InputError(ReportedError, ValueError):
    """Something the user gave cannot be used."""


class TrainingError(ReportedError):
    """Cells could not be trained to their end, or another process trains one."""


class Interrupted(Exception):  # noqa: N818
    """The process was asked to stop by ``signum``; what had to be saved is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of what comes with an extra: say how to install it if a package is missing.

    Raises
    ------
    InputError
        If a package that is neither Python's own nor this project's cannot be imported.

    >>> with needs_extra("pipeline"):
    ...     import missing_package
    Traceback (most recent call last):
    resnet_cifar.errors.InputError: missing_package is not installed: in a clone, `pip install '.[pipeline]'` brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == "resnet_cifar" or package in sys.stdlib_module_names:
            raise
        raise InputError(f"{package} is not installed: in a clone, `pip install '.[{extra}]'` brings it.") from None


def in_one_line(error: Exception) -> str:
    """An error's message without line breaks and full stop, a system's with the file's name.

    >>> in_one_line(ValueError("it is\\n  wide."))
    'it is wide'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def exit_with(main: Callable[[], None]) -> None:
    """Run a command's ``main``; what a user can mend becomes one line on stderr and exit code 1.

    That is a :class:`ReportedError`, and an ``OSError`` such as a full disk. Ctrl-C gives 130 and SIGTERM 143, both
    after everything that was begun is cleaned up, or saved (:class:`Interrupted`).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except ReportedError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signum)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        gc.freeze()  # nothing is to be freed now; at its end Python would search all of torch for garbage, for 0.4 s
