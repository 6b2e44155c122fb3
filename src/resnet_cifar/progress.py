"""Progress of a long piece of work: a bar on a terminal, a line every ten seconds elsewhere.

No work ends because it cannot be told: where stderr is closed, its reader is gone or its disk is full, lines are lost.
"""

import os
import sys
import time
from collections.abc import Callable

LINE_EVERY = 10.0
BAR_EVERY = 0.2
BAR = 10  # characters

Say = Callable[[str], None]
"""What lines for the user go to."""


def clock(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Shows how much of ``total`` is done, with what else is known.

    Parameters
    ----------
    label : str
        What is in progress, the first words of each line.
    total : int
        The amount of work.
    start : int
        How much of it was done before.
    write_line : callable, optional
        Gets the lines; by default stderr does.
    """

    def __init__(self, label: str, total: int, start: int = 0, write_line: Say | None = None) -> None:
        self.label, self.total, self.start, self.write_line = label, total, start, write_line
        self.began = self.shown = time.monotonic()
        self.terminal = write_line is None and sys.stderr is not None and sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def update(self, done: int, detail: str = "") -> None:
        """Show ``done`` of the total, if something was not shown a moment ago."""
        now = time.monotonic()
        if now - self.shown < (BAR_EVERY if self.terminal else LINE_EVERY):
            return
        self.shown = now
        share = done / self.total if self.total else 1.0
        left = self.seconds / max(done - self.start, 1) * (self.total - done)
        text = f"{self.label} {share:4.0%}  {clock(left)} left  {detail}"
        if self.terminal:
            filled = round(BAR * share)
            bar = f"{'█' * filled}{'·' * (BAR - filled)} {text}"
            _write(f"\r{bar[: _columns() - 1]}\x1b[K")
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.write_line:
            self.write_line(text)
        else:
            self.clear()
            _write(text + "\n")

    def clear(self) -> None:
        """Remove the bar, if there is one, where something else is to be printed."""
        if self.terminal:
            _write("\r\x1b[K")


def say(text: str) -> None:
    """A line on stderr."""
    _write(text + "\n")


def _columns() -> int:
    """The width of the terminal, beyond which a bar would begin a new line each time."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or sys.maxsize
    except OSError:
        return sys.maxsize


def _write(text: str) -> None:
    if sys.stderr is None:  # it was closed when Python started
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Another one, without the text in its buffer: Python would fail to write it at its end, and exit with 120.
        sys.stderr = open(sys.stderr.fileno(), "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
