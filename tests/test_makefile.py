"""make, in folders of its own: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MAKE = shutil.which("make")


@pytest.mark.skipif(not MAKE, reason="needs make")
@pytest.mark.parametrize("interpreter", ["/bin/true", "/where/it/was/.venv/bin/python"])
def test_an_environment_whose_commands_do_not_run_is_said_to_be_so(tmp_path, interpreter):
    """As after a move of the folder, since they name their interpreter by its whole path."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv/bin").mkdir(parents=True)
    pip = folder / ".venv/bin/pip"
    pip.write_text(f"#!{interpreter}\n")
    pip.chmod(0o755)
    for name in ("installed", "installed-test"):
        (folder / ".venv" / name).touch()
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = [str(MAKE), "--dry-run", "lint"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=outer)
    if Path(interpreter).exists():
        assert (done.stdout.splitlines()[0], done.returncode) == ("ruff check .", 0)
    else:
        assert done.returncode != 0
        assert "`rm -r .venv`, and make sets it up anew" in done.stderr
