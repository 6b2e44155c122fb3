"""The one exception a user is meant to see, and how a command shows it."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that says what was wrong and what would be right."""


def exit_with(main: Callable[[], None]) -> None:
    """Run a command's ``main``; turn :class:`InputError` into one line on stderr and exit code 1, Ctrl-C into 130."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
