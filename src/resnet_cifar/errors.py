"""The one exception a user is meant to see, and how a command shows it."""

import signal
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that says what was wrong and what would be right."""


def exit_with(main: Callable[[], None]) -> None:
    """Run a command's ``main``; what a user can mend becomes one line on stderr and exit code 1.

    That is an :class:`InputError`, and an ``OSError`` such as a full disk. Ctrl-C gives 130 and SIGTERM 143, both after
    everything that was begun is cleaned up.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
