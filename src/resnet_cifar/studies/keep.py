"""A finished study as a folder of its own: reports/studies/NAME, with its networks in DVC's remote.

A study is made in a clone of the checkout below scratch/, which has the checkout's DVC cache: neither params.yaml nor
what is trained, evaluated and reported in the checkout changes. The remote gets its networks and their run-cache
entries, by which `dvc exp run --pull -S preset=NAME` finds them again.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.hydra import compose_and_dump
from dvc.utils.serialize import dump_yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from resnet_cifar import params
from resnet_cifar.errors import InputError
from resnet_cifar.params import Study
from resnet_cifar.studies import index
from resnet_cifar.studies.remote import STAGES, check_remote, configure, push
from resnet_cifar.sweep.checkout import SCRATCH, check_checkout
from resnet_cifar.sweep.ledger import subprocess_environment

PRESETS = Path("conf/preset")
STUDIES = Path("reports/studies")
REPORT = ("metrics.md", "metrics.json", "results.csv", "curves.csv", "figures")
LOCK, PARAMS, INDEX = "dvc.lock", "params.yaml", "README.md"
DVC, SWEEP = "dvc", "resnet-cifar sweep"
MODULES = {DVC: ["dvc"], SWEEP: ["resnet_cifar.commands.cli", "sweep"]}
"""How Python runs a command."""

Say = Callable[[str], None]


def keep(name: str, source: Path | None, say: Say) -> None:
    """Make the study of a preset and keep it; what DVC or the remote has of it is restored, the rest is trained.

    Parameters
    ----------
    name : str
        Of the preset, and of the folder.
    source : Path or None
        A folder of runs that were trained elsewhere, which are recorded first.
    say : callable
        Gets lines of progress.

    Raises
    ------
    InputError
        If there is no such preset, the checkout has changes that are not committed, or a step fails. The checkout is
        then as it was; what is trained stays in the clone, and the same call goes on from there.
    """
    check_checkout()
    _check_name(name)
    _check_clean()
    check_remote()
    source = source.resolve() if source else None
    with _alone(name) as folder:
        clone = _bring_up_to_date(folder)
        study = _compose(name, clone)
        _run(clone, DVC, "checkout", "--quiet", "--allow-missing", "download", "preprocess")
        kept = STUDIES / name / LOCK
        if kept.exists():  # its networks, under whatever code they were recorded
            dump_yaml(clone / LOCK, _merged(clone / LOCK, kept))
            _run(clone, DVC, "pull", "--quiet", "--allow-missing", "train")
        if source:
            _run(clone, SWEEP, "--from", str(source))
        _run(clone, SWEEP)
        _run(clone, DVC, "repro", "--quiet", "--pull")
        say(f"{name}: its networks go to the remote")
        push(clone)
        _copy(clone, study, STUDIES / name)
        (STUDIES / INDEX).write_text(index.render(STUDIES), encoding="utf-8")
        shutil.rmtree(clone)
    say(f"{name} is kept in {STUDIES / name}: commit it, with the remote's files if they lie in the repository")


def _check_name(name: str) -> None:
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in presets:
        raise InputError(f"{name!r} is not a preset; {PRESETS} has {', '.join(presets)}.")
    if name == params.load().preset:
        raise InputError(f"{name} is the study that reports/metrics.md shows: another one can be kept beside it.")


def _check_clean() -> None:
    changed = _git(Path(), "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"the checkout has changes that are not committed ({changed[0][3:]}{more}): commit or stash them, because "
            "a study is made from what is committed. After an experiment, `git checkout . && git clean -fd reports && "
            "dvc checkout` returns."
        )


@contextmanager
def _alone(name: str) -> Iterator[Path]:
    """Hold the folder of a study's clone against another process; give it."""
    folder = SCRATCH / "studies" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is making the study {name} in this checkout: wait for its end."
            ) from None
        yield folder


def _bring_up_to_date(folder: Path) -> Path:
    """A clone in which everything committed is as in this checkout; what an interrupted call trained in it stays."""
    here = str(Path.cwd())
    if not folder.exists():
        arriving = folder.with_suffix(".part")
        shutil.rmtree(arriving, ignore_errors=True)
        _git(Path(), "clone", "--quiet", "--no-checkout", here, str(arriving))
        arriving.rename(folder)
    _git(folder, "fetch", "--quiet", here, "HEAD")
    _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    configure(folder)
    return folder


def _compose(name: str, clone: Path) -> Study:
    """Write the clone's params.yaml as `dvc exp run -S preset=NAME` does."""
    conf = str((clone / "conf").resolve())
    try:
        compose_and_dump(clone / PARAMS, conf, None, "config", conf, [f"preset={name}"])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{PRESETS / name}.yaml cannot be composed: {' '.join(str(error).split())}") from None
    return params.load(clone / PARAMS)


def _copy(clone: Path, study: Study, folder: Path) -> None:
    """Put the report, the parameters and the study's part of the lock file in place of what ``folder`` was."""
    STUDIES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STUDIES, prefix=".new-") as made:
        new = Path(made) / folder.name
        new.mkdir()
        for name in REPORT:
            path = clone / "reports" / name
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, new / name)
        shutil.copyfile(clone / PARAMS, new / PARAMS)
        lock = _read(clone / LOCK)
        own = {f"{stage}@{cell}" for stage in STAGES for cell in study.list_cells()}
        dump_yaml(new / LOCK, lock | {"stages": {key: lock["stages"][key] for key in lock["stages"] if key in own}})
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _merged(lock: Path, other: Path) -> dict[str, Any]:
    """A lock file with another one's stages in place of its own."""
    one = _read(lock)
    return one | {"stages": one["stages"] | _read(other)["stages"]}


def _read(lock: Path) -> dict[str, Any]:
    return yaml.safe_load(lock.read_text(encoding="utf-8"))


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise InputError(f"`git {' '.join(arguments)}` failed ({said}): a study is made in a git checkout.")
    return done.stdout


def _run(clone: Path, command: str, *arguments: str) -> None:
    """Run one of the commands with the clone's code; when this process is interrupted, wait until it has saved."""
    environment = subprocess_environment()
    path = [str((clone / "src").resolve()), *filter(None, [environment.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-m", *MODULES[command], *arguments],
        cwd=clone,
        env=environment | {"PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
    ) as child:
        try:
            code = child.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            child.wait()
            raise
    if code:
        raise InputError(
            f"`{' '.join([command, *arguments])}` in {clone} failed, as the lines above say: mend it "
            "and give the same command again, which goes on from there."
        )
