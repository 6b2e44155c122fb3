"""Which engine trains on this machine, and what has to be equal for its bytes to be the same again."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch

from resnet_cifar import machine, numerics
from resnet_cifar.cells import RunFiles
from resnet_cifar.files import sha256_of
from resnet_cifar.native import library
from resnet_cifar.native.engine import NativeEngine, native_can
from resnet_cifar.native.library import Library
from resnet_cifar.numerics import bits
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.determinism import VARIABLES, configure
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.engine import Engine
from resnet_cifar.numerics.graph import GraphEngine
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.progress import Say
from resnet_cifar.settings import Settings
from resnet_cifar.training import record
from resnet_cifar.training.record import Arithmetic, Circumstances, Question, Record, RecordError


class Computer:
    """The device, its threads and the engines that it has, for all cells of one process.

    Parameters
    ----------
    settings : Settings
        What the environment says.
    say : callable
        Gets the lines that a user should see.

    Attributes
    ----------
    device : torch.device
    threads : int
    native : Library or None
        The native engine's library, on a CPU.
    fallback : str
        Why there is none although one was to be expected; else empty.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self.device = machine.choose_device(settings.device)
        self.threads = settings.threads
        with machine.usable(self.device):
            configure(self.device, self.threads)
        self.code = code_digest()  # now, while it is the code that runs
        self.native: Library | None = None
        self.fallback = ""
        if self.device.type == "cpu" and settings.simd != "none":
            try:
                self.native = load_native(settings, say)
            except library.Unavailable as error:
                self.fallback = str(error)
                say(f"no native engine ({error}): PyTorch trains about four times as slowly")

    def engine(self, recipe: Recipe, data: Dataset, stream: "torch.cuda.Stream | None" = None) -> Engine:
        """The network of a recipe, ready to be trained; ``data`` lies on the device.

        Parameters
        ----------
        stream : torch.cuda.Stream, optional
            On a GPU, where it runs; without one it runs eagerly.
        """
        precision = self.precision(recipe)
        if self._is_native(recipe):
            return NativeEngine(recipe, data, self.native, self.threads)
        if stream:
            return GraphEngine(recipe, data, precision, stream)
        return EagerEngine(recipe, data, precision)

    def precision(self, recipe: Recipe) -> str:
        """The precision in force: the recipe's if the device has it natively, else fp32."""
        return recipe.precision if machine.has_precision(recipe.precision, self.device) else "fp32"

    def _is_native(self, recipe: Recipe) -> bool:
        supported = self.precision(recipe) == "fp32" and native_can(recipe.net, recipe.shortcut)
        return self.native is not None and supported

    def arithmetic(self, recipe: Recipe) -> Arithmetic:
        """What has to be equal for the same bytes."""
        if self._is_native(recipe):
            return native_arithmetic()
        engine = GraphEngine.name if self.device.type == "cuda" else EagerEngine.name
        return self.torch_arithmetic(engine, self.precision(recipe))

    def torch_arithmetic(self, engine: str, precision: str) -> Arithmetic:
        """That of torch on this device."""
        on_gpu = self.device.type == "cuda"
        return Arithmetic(
            engine=engine,
            precision=precision,
            code=self.code,
            device=self._device_kind(),
            threads=None if on_gpu else self.threads,
            torch=str(torch.__version__),
            cudnn=torch.backends.cudnn.version() if on_gpu else None,
            variables={name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        )

    def circumstances(self, recipe: Recipe) -> Circumstances:
        """What else a record says."""
        return Circumstances(
            device=machine.device_name(self.device),
            threads=self.threads,
            simd=self.native.set if self._is_native(recipe) else None,
            torch=str(torch.__version__),
            numpy=np.__version__,
            code=self.code,
        )

    def _device_kind(self) -> str:
        name = machine.device_name(self.device)
        return name if self.device.type == "cuda" else f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def read_run(files: RunFiles, question: Question, code: str) -> Record:
    """Read a finished run that answers ``question`` and comes from this code.

    Wherever it was computed: the native engine's bytes are the same everywhere, and torch's belong in one table if they
    come from the same ``code``.

    Raises
    ------
    RecordError
        If it is of another question or of other code, or as :func:`record.read` says.
    """
    found = record.read(files)
    arithmetic = found.arithmetic
    native = arithmetic.engine == NativeEngine.name
    this = native_arithmetic() if native else arithmetic.model_copy(update={"code": code})
    if reason := found.question.difference(question) or arithmetic.difference(this):
        raise RecordError(reason)
    return found


def load_native(settings: Settings, say: Say) -> Library:
    """The native engine's library.

    Raises
    ------
    Unavailable
        If it cannot be built or loaded, or if the environment wants none.
    """
    if settings.simd == "none":
        raise library.Unavailable("RESNET_CIFAR_SIMD is 'none'")
    return library.load(settings.simd, say)


def native_arithmetic() -> Arithmetic:
    """That of the native engine, on every processor."""
    return Arithmetic(engine=NativeEngine.name, precision="fp32", bits=bits.NATIVE)


@cache
def code_digest() -> str:
    """SHA-256 over the files that decide bytes: those of ``resnet_cifar.numerics``, the train stage's dependencies."""
    folder = Path(numerics.__file__).parent
    return sha256_of(sorted(folder.glob("*.py")), folder)
