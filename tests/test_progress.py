"""Progress: what cannot be told stops no work."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnet_cifar.progress import Progress, clock

WORK = """
import sys
from resnet_cifar.progress import Progress, say
for _ in range(3):
    say("a line")
progress = Progress("work", 10)
progress.say("another")
progress.shown -= 60
progress.update(5, "detail")
progress.clear()
print("done")
"""


BAR = """
from resnet_cifar.progress import Progress
progress = Progress("work", 10)
progress.shown -= 60
progress.update(5, "much to be said")
progress.clear()
"""


def work(stderr: int, close: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WORK]
    if close:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


def test_lines_go_to_stderr():
    done = work(subprocess.PIPE)
    assert done.stderr.startswith("a line\na line\na line\nanother\nwork  50%  0 s left  detail\n")
    assert (done.stdout, done.returncode) == ("done\n", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_under_stderr_stops_no_work():
    with Path("/dev/full").open("w") as full:
        done = work(full.fileno())
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_a_reader_that_is_gone_stops_no_work():
    """A pipe to `tee` that was stopped, or a terminal that was closed."""
    reader, writer = os.pipe()
    os.close(reader)
    done = work(writer)
    os.close(writer)
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_no_stderr_at_all_stops_no_work():
    done = work(subprocess.DEVNULL, close=True)
    assert (done.stdout, done.returncode) == ("done\n", 0)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (0, "much to be said"),  # not known
        (80, "much to be said"),
        (47, "much to be sai"),  # in the last column a terminal may begin a new line
    ],
)
def test_a_bar_fits_the_terminal_and_is_removed_where_something_else_is_to_be_printed(columns, shown):
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    subprocess.run([sys.executable, "-X", "utf8", "-c", BAR], stderr=its, check=True)
    os.close(its)
    before, bar, after = os.read(ours, 1000).decode().split("\r")
    os.close(ours)
    assert (before, after) == ("", "\x1b[K")
    assert bar.startswith("█████····· work  50%  0 s left  ")
    assert bar.endswith(f"left  {shown}\x1b[K")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_seconds_as_a_person_says_them(seconds, text):
    assert clock(seconds) == text


def test_the_time_left_is_that_of_what_this_process_did(monkeypatch):
    """Begun at 40 of 100: 20 more took 10 s, so the last 40 take 20 s."""
    now = [0.0]
    monkeypatch.setattr("resnet_cifar.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = []
    progress = Progress("work", 100, start=40, write_line=lines.append)
    now[0] = 10.0
    progress.update(60, "detail")
    assert lines == ["work  60%  20 s left  detail"]
