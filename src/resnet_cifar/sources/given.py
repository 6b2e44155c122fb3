"""CIFAR-10 as the user has it: an official archive, python or binary, or what was unpacked from one."""

import pickle
from pathlib import Path

import numpy as np

from resnet_cifar.sources.archives import read_folder, read_tar
from resnet_cifar.sources.check import SourceError, check
from resnet_cifar.sources.published import MD5, PICKLED_MD5


def read_given(source: Path) -> dict[str, bytes]:
    """Read the six files from an official archive, python or binary, or from an unpacked folder of one.

    Parameters
    ----------
    source : Path
        The archive, the folder with the batches, or a folder above that one.

    Returns
    -------
    dict of str to bytes
        Name and content of each file; from pickled batches only if those had their published MD5.

    Raises
    ------
    SourceError
        If it does not exist, is neither, lacks a batch, or has a pickled batch with another MD5.
    """
    if not source.exists():
        raise SourceError("there is no such file or folder" + ("" if source.is_absolute() else f" in {Path.cwd()}"))
    read = read_folder if source.is_dir() else read_tar
    found = read(source, {*MD5, *PICKLED_MD5})
    if not found:
        raise SourceError("it holds no CIFAR-10 batch")
    if found.keys() >= MD5.keys():
        return {name: found[name] for name in MD5}
    if found.keys() <= MD5.keys():
        raise SourceError(f"it lacks {', '.join(name for name in MD5 if name not in found)}")
    return _from_pickled(found)


def records(labels: list[int], pixels: np.ndarray) -> bytes:
    """The binary layout of labels (N,) and pixels (N, 3072).

    >>> list(records([7, 2], np.zeros((2, 3072), np.uint8))[3072:3075])
    [0, 2, 0]
    """
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], pixels], axis=1).tobytes()


def _from_pickled(batches: dict[str, bytes]) -> dict[str, bytes]:
    """The binary layout of the python version's batches."""
    files = {}
    for name in PICKLED_MD5:
        if name not in batches:
            raise SourceError(f"it lacks {name}")
        check(name, batches[name])  # unpickling runs code: only what is known is unpickled
        batch = pickle.loads(batches[name], encoding="latin1")
        files[f"{name}.bin"] = records(batch["labels"], batch["data"])
    return files
