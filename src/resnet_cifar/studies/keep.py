"""A finished study as a folder of its own: reports/studies/NAME, with its networks in DVC's remote.

A study is made in a clone of the checkout below scratch/, which has the checkout's DVC cache: neither params.yaml nor
what is trained, evaluated and reported in the checkout changes. The remote gets its networks and their run-cache
entries, by which `dvc exp run --pull -S preset=NAME` finds them again.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.hydra import compose_and_dump
from dvc.utils.serialize import dump_yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from resnet_cifar import params, settings
from resnet_cifar.cells import SCRATCH
from resnet_cifar.errors import InputError, in_one_line
from resnet_cifar.files import locked
from resnet_cifar.params import Study
from resnet_cifar.progress import Say
from resnet_cifar.studies import index
from resnet_cifar.studies.remote import STAGES, configure, find_remote, push
from resnet_cifar.sweep.checkout import check_checkout
from resnet_cifar.sweep.ledger import dvc_in_a_sentence, subprocess_environment
from resnet_cifar.training.stop import end_with_parent

PRESETS = Path("conf/preset")
STUDIES = Path("reports/studies")
REPORT = ("metrics.md", "metrics.json", "results.csv", "curves.csv", "figures")
LOCK, PARAMS, INDEX = "dvc.lock", "params.yaml", "README.md"
DVC, SWEEP = "dvc", "resnet-cifar sweep"
MODULES = {DVC: ["dvc"], SWEEP: ["resnet_cifar.commands.cli", "sweep"]}
"""How Python runs a command."""


@dvc_in_a_sentence()
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
        If there is no such preset, the checkout has changes that are not committed, or a step fails. Nothing is then
        kept; what is trained stays in the clone and what is pushed in the remote, also where that lies in the
        checkout, and the same call goes on from there.
    """
    check_checkout()
    _check_name(name)
    remote = find_remote()
    source = source.resolve() if source else None
    clone = SCRATCH / "studies" / name
    with _alone(clone) as lock:
        _check_clean(remote, goes_on=clone.exists())
        _bring_up_to_date(clone)
        study = _compose(name, clone)
        run = partial(_run, clone, lock)
        # what is in the way, as from a call that was killed before DVC knew of it, can be made again
        run(DVC, "checkout", "--force", "--allow-missing", "download", "preprocess")
        kept = STUDIES / name / LOCK
        if kept.exists():  # its networks, under whatever code they were recorded
            dump_yaml(clone / LOCK, _merged(clone / LOCK, kept))
            run(DVC, "pull", "--allow-missing", "train")
        if source:
            run(SWEEP, "--from", str(source))
        run(SWEEP)
        run(DVC, "repro", "--pull")
        new = _lay_out(clone, study, name)
        index.render(STUDIES, new)  # nothing is kept that the page would not take
        say(f"{name}: its networks go to the remote")
        push(clone)
        shutil.rmtree(STUDIES / name, ignore_errors=True)
        STUDIES.mkdir(parents=True, exist_ok=True)
        shutil.move(new, STUDIES / name)
        (STUDIES / INDEX).write_text(index.render(STUDIES), encoding="utf-8")  # with those that others kept meanwhile
        _remove(clone)
    say(f"{name} is kept in {STUDIES / name}: commit it, with the remote's files if they lie in the repository")


def _check_name(name: str) -> None:
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in presets:
        raise InputError(f"{name!r} is not a preset; {PRESETS} has {', '.join(presets)}.")
    if name == params.load().preset:
        raise InputError(f"{name} is the study that reports/metrics.md shows: another one can be kept beside it.")


def _check_clean(remote: Path | None, goes_on: bool) -> None:
    """Raise :class:`InputError` if git has not all of the checkout; a study that goes on may have left files there."""
    listed = _git(Path(), "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    changed = [Path(entry[3:]) for entry in listed.split("\0") if entry]
    kept = [path for path in changed if any(path.is_relative_to(made) for made in (STUDIES, remote) if made)]
    if kept and not goes_on:  # before all else: what undoes an experiment would undo this
        raise InputError(f"commit the study you kept ({_first(kept)}): a study is made from what is committed.")
    if others := [path for path in changed if path not in kept]:
        raise InputError(
            f"the checkout has changes that are not committed ({_first(others)}): commit or stash them, because "
            "a study is made from what is committed. After an experiment, `git checkout params.yaml dvc.lock "
            "reports && git clean -fd reports -e studies && rm -rf runs results && dvc repro --pull` returns."
        )


def _first(paths: list[Path]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def _alone(clone: Path) -> AbstractContextManager[int]:
    """Hold a study's clone against another process; give the lock's file descriptor, which shares it."""

    def refuse() -> None:
        raise InputError(f"another process is making the study {clone.name} in this checkout: wait for its end.")

    clone.parent.mkdir(parents=True, exist_ok=True)
    return locked(_beside(clone, ".lock"), refuse)


def _beside(clone: Path, ending: str) -> Path:
    return clone.with_name(clone.name + ending)  # with_suffix would make one of lr0.1 and lr0.2


def _bring_up_to_date(clone: Path) -> None:
    """Make everything committed in the clone as in this checkout; what an interrupted call trained in it stays."""
    here = str(Path.cwd())
    if not clone.exists():
        part = _beside(clone, ".part")
        shutil.rmtree(part, ignore_errors=True)
        _git(Path(), "clone", "--quiet", "--no-checkout", here, str(part))
        part.rename(clone)
    _git(clone, "fetch", "--quiet", here, "HEAD")
    _git(clone, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    configure(clone)


def _remove(clone: Path) -> None:
    """Remove it as a whole: in what is left of one, git would take the checkout around it for the repository."""
    part = _beside(clone, ".part")
    shutil.rmtree(part, ignore_errors=True)
    clone.rename(part)
    shutil.rmtree(part)


def _compose(name: str, clone: Path) -> Study:
    """Write the clone's params.yaml as `dvc exp run -S preset=NAME` does."""
    conf = str((clone / "conf").resolve())
    try:
        compose_and_dump(clone / PARAMS, conf, None, "config", conf, [f"preset={name}"])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{PRESETS / name}.yaml cannot be composed: {in_one_line(error)}.") from None
    study = params.load(clone / PARAMS)
    if study.preset != name:
        raise InputError(f"{PRESETS / name}.yaml should have the line `preset: {name}`; it leaves {study.preset!r}.")
    return study


def _lay_out(clone: Path, study: Study, name: str) -> Path:
    """Make, in the clone, the folder that is kept: report, parameters, and the study's part of the lock file."""
    new = clone / SCRATCH / "kept" / name
    shutil.rmtree(new, ignore_errors=True)  # of a call that ended before its end
    new.mkdir(parents=True)
    for file in REPORT:
        path = clone / "reports" / file
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, new / file)
    shutil.copyfile(clone / PARAMS, new / PARAMS)
    lock = _read(clone / LOCK)
    own = [f"{stage}@{cell}" for stage in STAGES for cell in study.list_cells()]
    dump_yaml(new / LOCK, lock | {"stages": {key: lock["stages"][key] for key in own}})
    return new


def _merged(lock: Path, other: Path) -> dict[str, Any]:
    """A lock file with another one's stages in place of its own."""
    one = _read(lock)
    return one | {"stages": one["stages"] | _read(other)["stages"]}


def _read(lock: Path) -> dict[str, Any]:
    return yaml.safe_load(lock.read_text(encoding="utf-8"))


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="surrogateescape")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise InputError(f"`git {' '.join(arguments)}` failed ({said}): a study is made in a git checkout.")
    return done.stdout


def _run(clone: Path, lock: int, command: str, *arguments: str) -> None:
    """Run one of the commands with the clone's code; when this process is interrupted, wait until it has saved.

    When this process is killed, the command ends by itself, and holds the lock until it has.
    """
    environment = subprocess_environment()
    if images := settings.read().source:
        environment["CIFAR10_SOURCE"] = str(images.absolute())
    path = [str((clone / "src").resolve()), *filter(None, [environment.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-m", *MODULES[command], *arguments],
        cwd=clone,
        env=environment | {"PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        pass_fds=[lock],
        preexec_fn=end_with_parent,
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
