"""The cells as DVC knows them: which are stale, which it had before, and how one is recorded.

Some of this is DVC's inside, which may change with any version of it; a test names what is used.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dvc.config import NoRemoteError
from dvc.data_cloud import Remote
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage
from dvc.stage.cache import RunCacheNotSupported
from dvc.stage.loader import StageLoader

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError, in_one_line
from resnet_cifar.files import whole


@dataclass
class Plan:
    """What is to be done with the cells that are not up to date.

    ``finished`` only have to be recorded; ``restored`` are in the cache or the remote, for what they depend on now;
    ``stale`` have to be trained.
    """

    finished: list[Cell] = field(default_factory=list)
    restored: list[Cell] = field(default_factory=list)
    stale: list[Cell] = field(default_factory=list)


def make_data() -> None:
    """Bring the data set up to date, with DVC's own output if there is something to do."""
    repo = Repo(_wait_for_lock=True)
    with lock_repo(repo):
        if not any(stage.changed() for stage in repo.stage.collect("preprocess", with_deps=True)):
            return
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "preprocess"]
    done = subprocess.run(command, env=subprocess_environment())
    if done.returncode:
        raise InputError("the data set could not be brought up to date; the lines above say why.")


def subprocess_environment() -> dict[str, str]:
    """This process's environment, for DVC in another one: the `python` of its stages is the one that runs here."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


@contextmanager
def dvc_in_a_sentence() -> Iterator[None]:
    """Make what DVC cannot do an :class:`InputError`."""
    try:
        yield
    except DvcException as error:
        raise InputError(f"DVC could not go on: {in_one_line(error)}.") from None


def default_remote(repo: Repo) -> Remote | None:
    """A repository's default remote, if it has one.

    Raises
    ------
    InputError
        If it has one that cannot be used: the name or the address is wrong, or a plugin of DVC is missing.
    """
    try:
        return repo.cloud.get_remote()
    except NoRemoteError:
        return None
    except (DvcException, ImportError) as error:
        raise InputError(f"DVC's default remote cannot be used: {in_one_line(error)}.") from None


class Ledger:
    """DVC's record of the train stage in the working directory's repository."""

    def __init__(self) -> None:
        logging.getLogger("dvc").setLevel(logging.WARNING)  # else it says for each cell that it updates the lock file
        self.repo = Repo(_wait_for_lock=True)
        self.remote = default_remote(self.repo) is not None

    def plan(self, has_run: Callable[[Cell], bool]) -> Plan:
        """What would have to be done; nothing is changed.

        Parameters
        ----------
        has_run : callable
            Whether a cell's finished run lies in the working tree, recorded or not.
        """
        plan = Plan()
        with lock_repo(self.repo):
            (preprocess,) = self.repo.stage.collect("preprocess")
            known = not preprocess.changed(allow_missing=True)
            for cell, stage in self._stages():
                if not stage.changed():
                    continue
                if known and has_run(cell):
                    plan.finished.append(cell)
                elif known and _recall(stage) and (stage.outs_cached() or self._remote_has(stage)):
                    plan.restored.append(cell)
                else:
                    plan.stale.append(cell)
        return plan

    def restore(self, cells: list[Cell]) -> list[Cell]:
        """Bring back cells of a plan, from the remote if need be, and return those that could be."""
        restored: dict[Cell, Stage] = {}
        with lock_repo(self.repo):
            try:
                for cell, stage in self._stages():
                    if cell not in cells or not _recall(stage):
                        continue
                    if not stage.outs_cached():
                        for objects in stage.get_used_objs().values():
                            self.repo.cloud.pull(objects)
                    if stage.outs_cached():
                        stage.remove_outs(force=True)
                        stage.checkout()
                        restored[cell] = stage
            finally:
                self._write_lock(list(restored.values()))
        return list(restored)

    def pull_run_cache(self) -> None:
        """Fetch what the remote knows of runs whose results the lock file does not name."""
        if self.remote:
            try:
                self.repo.stage_cache.pull(None)
            except RunCacheNotSupported:
                return  # an HTTP remote: it has no more than the lock file names

    def record(self, cells: list[Cell]) -> dict[Cell, Exception]:
        """Record the cells' files as what their stages give today, as ``dvc commit --force`` does for one.

        Returns
        -------
        dict
            What went wrong with some; the others are recorded.
        """
        saved: dict[Cell, Stage] = {}
        failed: dict[Cell, Exception] = {}
        with lock_repo(self.repo):
            for cell, stage in self._stages():
                if cell in cells:
                    try:
                        stage.save()
                        stage.commit()
                        saved[cell] = stage
                    except Exception as error:  # DVC's, a full disk's, or its libraries' for a full disk
                        failed[cell] = error
            try:
                self._write_lock(list(saved.values()))
            except Exception as error:
                failed |= dict.fromkeys(saved, error)
        return failed

    def _write_lock(self, stages: list[Stage]) -> None:
        """Write what these stages gave to the lock file: at once, since with hundreds of cells a writing takes seconds.

        DVC writes it in place, where a signal would leave the first half of it.
        """
        if not stages:
            return
        path = Path(stages[0].dvcfile.path).with_name(LOCK_FILE)
        with whole(path) as new:
            if path.exists():
                shutil.copyfile(path, new)
            Lockfile(self.repo, str(new)).dump_stages(stages)

    def _stages(self) -> list[tuple[Cell, Stage]]:
        return [(Cell.parse(stage.name.partition("@")[2]), stage) for stage in self.repo.stage.collect("train")]

    def _remote_has(self, stage: Stage) -> bool:
        return self.remote and all(
            self.repo.cloud.get_remote_odb(command="sweep").exists(out.hash_info.value) for out in stage.outs
        )


def _recall(stage: Stage) -> bool:
    """Fill in what the stage gave for the dependencies of today: by the lock file, else by the run-cache.

    Data that are not there count as the lock file says, since the stages that make them give the same bytes.
    """
    if stage.changed_stage() or stage.changed_deps(allow_missing=True):
        stage.save_deps(allow_missing=True)
        entry = stage.repo.stage_cache._load(stage) if all(dep.hash_info for dep in stage.deps) else None
        StageLoader.fill_from_lock(stage, entry)
        return entry is not None
    return all(out.hash_info for out in stage.outs)
