"""Load the native engine for this processor and declare its C interface, cpp/engine.h, to ctypes."""

import ctypes
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.errors import InputError
from resnet_cifar.native import build
from resnet_cifar.native.build import Object, Unavailable
from resnet_cifar.native.sets import FAST, Set, compilable, runnable
from resnet_cifar.progress import Say


class ImagesStruct(ctypes.Structure):
    """``rc_images``."""

    _fields_ = (
        ("images", c_void_p),
        ("labels", c_void_p),
        ("count", c_int64),
        ("mean", c_void_p),
        ("std", c_void_p),
    )


class StateStruct(ctypes.Structure):
    """``rc_state``."""

    _fields_ = (("weights", c_void_p), ("velocity", c_void_p), ("statistics", c_void_p))


class BatchesStruct(ctypes.Structure):
    """``rc_batches``."""

    _fields_ = (("index", c_void_p), ("top", c_void_p), ("left", c_void_p), ("flip", c_void_p))


DATA = (c_void_p, POINTER(ImagesStruct), POINTER(StateStruct), POINTER(BatchesStruct))
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rc_set": (c_char_p, ()),
    "rc_sources": (c_char_p, ()),
    "rc_bits": (c_int, ()),
    "rc_supported": (c_int, ()),
    "rc_set_threads": (None, (c_int,)),
    "rc_create": (c_int, (c_int, c_int, c_int, c_int, POINTER(c_void_p))),
    "rc_destroy": (None, (c_void_p,)),
    "rc_weight_count": (c_int64, (c_void_p,)),
    "rc_statistic_count": (c_int64, (c_void_p,)),
    "rc_train": (
        c_int,
        (*DATA, c_int, c_int, c_void_p, c_float, c_float, c_void_p, c_void_p, POINTER(c_int)),
    ),
    "rc_gradient": (c_int, (*DATA, c_int, c_void_p, POINTER(c_double), POINTER(c_int32))),
    "rc_logits": (c_int, (c_void_p, POINTER(ImagesStruct), c_void_p, c_void_p, c_int64, c_int64, c_void_p)),
}


@dataclass(frozen=True)
class Library:
    """A loaded engine.

    Attributes
    ----------
    set : str
        Its instruction set.
    bits : int
        The version of its arithmetic: equal numbers give equal bytes, whatever the set.
    path : Path
        The shared object, named by the set and the digest of what it was built from.
    functions : ctypes.CDLL
        The functions of cpp/engine.h with their types.
    """

    set: str
    bits: int
    path: Path
    functions: ctypes.CDLL


def load(name: str | None, say: Say) -> Library:
    """Load the engine, compiling it at first use.

    Parameters
    ----------
    name : str or None
        An instruction set of ``sets.SETS``, or the fastest one that processor and operating system have.
    say : callable
        Gets a line when something takes long or is not as it should be.

    Raises
    ------
    InputError
        If ``name`` is not an instruction set of this machine.
    Unavailable
        If no engine can be loaded, with the reason.
    """
    if not compilable():
        raise Unavailable("it is made for Linux alone")
    names = [each.name for each in runnable()]
    if name is not None and name not in names:
        raise InputError(f"RESNET_CIFAR_SIMD is {name!r}, which this machine does not run; it has {', '.join(names)}.")
    wanted = [each for each in runnable() if each.name == name] if name else runnable(FAST)
    reasons = []
    for each in wanted:
        try:
            return _library(each, say)
        except Unavailable as error:
            reasons.append(str(error))
    raise Unavailable(reasons[0] if reasons else f"this processor has none of {', '.join(each.name for each in FAST)}")


def _library(each: Set, say: Say) -> Library:
    wanted = Object.of(each)
    path, functions = _open(wanted, say)
    for function, (result, arguments) in SIGNATURES.items():
        declared = getattr(functions, function)
        declared.restype, declared.argtypes = result, arguments
    if functions.rc_sources().decode() != wanted.digest:
        raise Unavailable(f"{path} was built from other sources")
    if not functions.rc_supported():
        raise Unavailable(f"this machine does not run {each.name}")
    return Library(functions.rc_set().decode(), functions.rc_bits(), path, functions)


def _open(wanted: Object, say: Say) -> tuple[Path, ctypes.CDLL]:
    """The shipped object, unless this machine's C library is too old for it; else the cached one."""
    path = build.shipped(wanted)
    with suppress(OSError):
        if path:
            return path, ctypes.CDLL(str(path))
    path = build.cached(wanted, say)
    try:
        return path, ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"it cannot be loaded ({error})") from None
