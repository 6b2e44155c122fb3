"""A study's clone and the remote: the outputs of its cells, and the run-cache entries that lead to them.

`dvc push --run-cache` would push every entry of the cache: of other studies, and of the data, which no remote has. Some
of this is DVC's inside, which may change with any version of it; a test names what is used.
"""

from contextlib import chdir
from pathlib import Path

from dvc.fs import generic
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile

from resnet_cifar.errors import InputError
from resnet_cifar.sweep.ledger import default_remote

STAGES = ("train", "evaluate")


def configure(clone: Path) -> None:
    """Give a clone the cache of the working directory's repository, and what git does not have of its configuration."""
    with Repo() as repo, Repo(str(clone)) as other, other.config.edit("local") as local:
        local.update(repo.config.load_one("local"))  # remotes, credentials, kinds of links
        local["cache"]["dir"] = repo.cache.legacy.path


def find_remote() -> Path | None:
    """The folder of the default remote, from the working directory, if it lies in it.

    Raises
    ------
    InputError
        If the working directory's repository has no default remote, or one that cannot be used.
    """
    with Repo() as repo:
        remote = default_remote(repo)
    if remote is None:
        raise InputError(
            "DVC has no default remote, in which a study's networks are kept: `dvc remote default NAME` sets one."
        )
    folder, here = Path(remote.path).resolve(), Path.cwd().resolve()
    return folder.relative_to(here) if remote.fs.protocol == "local" and folder.is_relative_to(here) else None


def push(clone: Path) -> None:
    """Push what the cells of a clone gave, and their run-cache entries, to this repository's default remote.

    Parameters
    ----------
    clone : Path
        Its train and evaluate stages are up to date, and its cache is this repository's.

    Raises
    ------
    InputError
        If the remote cannot be written.
    """
    with Repo() as repo, chdir(clone), Repo() as other:  # DVC takes the paths of stages from the working directory
        stages = [stage for name in STAGES for stage in other.stage.collect(name)]
        for stage in stages:
            for objects in stage.get_used_objs().values():
                if repo.cloud.push(objects).failed:
                    raise InputError(f"the outputs of {stage.addressing} could not be pushed to the remote.")
            _push_entry(repo, stage)


def _push_entry(repo: Repo, stage: PipelineStage) -> None:
    stage.repo.stage_cache.save(stage)  # does nothing if it is there
    key = _get_stage_hash(stage)
    entry = Path("runs", key[:2], key, _get_cache_hash(to_single_stage_lockfile(stage)))
    cache = repo.cache.legacy
    remote = repo.cloud.get_remote_odb(command="push --run-cache", hash_name="md5-dos2unix")
    target = remote.fs.join(remote.path, *entry.parts)
    if not remote.fs.exists(target):
        generic.copy(cache.fs, cache.fs.join(cache.path, *entry.parts), remote.fs, target)
