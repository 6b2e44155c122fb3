"""A copy of the working tree as a repository of its own, with a tiny data set in the real format."""

import copy
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, compose_to
from tiny import write_tiny_cifar10


class Clone:
    """The working tree copied to an empty folder; its download is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("reports/", "scratch/", "store/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        preset = folder / "conf/preset/quick.yaml"
        values = yaml.safe_load(preset.read_text())
        values["train"] |= {"seeds": [0], "iterations": 4, "batch_size": 16, "milestones": [2, 3], "eval_every": 2}
        values["train"]["warmup"]["iterations"] = 1
        preset.write_text("# @package _global_\n" + yaml.safe_dump(values))
        config = folder / "conf/config.yaml"
        config.write_text(config.read_text().replace("preset: paper", "preset: quick"))
        pipeline = folder / "dvc.yaml"
        pipeline.write_text(pipeline.read_text().replace("  download:\n", "  download:\n    frozen: true\n"))
        self.compose("model.n=1")
        self.run("git", "init", "--quiet")
        self.run("git", "config", "user.email", "test@localhost")
        self.run("git", "config", "user.name", "test")
        self.run("git", "config", "commit.gpgsign", "false")
        self.run("git", "config", "core.hooksPath", "/dev/null")
        write_tiny_cifar10(folder / "data/raw", test=20)
        self.dvc("commit", "--force", "download")
        self.save()

    @classmethod
    def reproduced(cls, factory: pytest.TempPathFactory) -> "Clone":
        """After a first `dvc repro`, made once for all workers, of which each gets a copy: all want the same engine."""
        base = factory.getbasetemp()
        origin = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reproduced"
        with origin.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not origin.exists():
                made = cls(factory.mktemp("first") / "clone")
                output = made.dvc("repro")
                assert ran(output) == ["preprocess", "train@resnet-1-0", "evaluate@resnet-1-0", "report"]
                made.save()
                made.folder.rename(origin)
        made = cls.__new__(cls)
        made.folder = origin
        return made.copy(factory.mktemp("reproduced") / "clone")

    def copy(self, folder: Path) -> "Clone":
        """Another one in the same state, for what narrows it or cannot be undone."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = copy.copy(self)
        other.folder = folder
        return other

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Make it this process's working directory and checkout."""
        patch.chdir(self.folder)
        patch.setattr("resnet_cifar.sweep.checkout.PACKAGE", self.folder.resolve() / "src/resnet_cifar")
        for name in ("PATH", "PYTHONPATH"):
            patch.setenv(name, self.environment[name])

    def compose(self, *overrides: str) -> None:
        compose_to(self.folder / "params.yaml", self.folder / "conf", *overrides)

    def save(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments).stdout

    def would_run(self) -> list[str]:
        """The stages that `dvc repro` would run first; those behind them follow if what they leave is another."""
        return ran(self.dvc("repro", "--dry"))

    def changed(self, *stages: str) -> dict[str, set[str]]:
        """The dependencies of each stage that are not what they were when it ran."""
        found = json.loads(self.dvc("status", "--json", *stages))
        return {
            stage: {path for change in found.get(stage, []) for path in change.get("changed deps", {})}
            for stage in stages
        }

    @contextmanager
    def edited(self, names: Iterable[str], text: str = "\n# an edit\n") -> Iterator[None]:
        """Meanwhile, the files have ``text`` at their end."""
        before = {self.folder / name: (self.folder / name).read_text() for name in names}
        try:
            for path, content in before.items():
                path.write_text(content + text)
            yield
        finally:
            for path, content in before.items():
                path.write_text(content)


def ran(output: str) -> list[str]:
    """The stages that DVC says it runs."""
    return re.findall(r"Running stage '([^']+)'", output)
