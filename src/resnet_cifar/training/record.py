"""run.json: one record of a run, and whether two runs are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from resnet_cifar.cells import Cell, RunFiles
from resnet_cifar.files import check_readable, sha256, write_whole
from resnet_cifar.numerics.weights import digest

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def differences(self, other: Self) -> list[str]:
        """In what this differs from ``other``, each thing in words."""
        pairs = {
            field.description: (getattr(self, name), getattr(other, name))
            for name, field in type(self).model_fields.items()
        }
        return [
            f"its {what} is {_short(mine)}, not {_short(its)}" for what, (mine, its) in pairs.items() if mine != its
        ]

    def difference(self, other: Self) -> str | None:
        """The first of :meth:`differences`; None if they are equal."""
        return next(iter(self.differences(other)), None)


class Question(_Part):
    """What was asked for. Two runs of the same question belong in one table, wherever they were made."""

    cell: Annotated[str, Field(description="cell")]
    parameters: Annotated[Digest, Field(description="parameters' digest")]
    data: Annotated[Digest, Field(description="data set's digest")]


class Arithmetic(_Part):
    """How it was computed. With equal ones, the same question has the same bytes for an answer.

    Of the native engine's runs only the first three say something, because nothing else changes their bytes.
    """

    engine: Annotated[Literal["eager", "cuda graph", "native"], Field(description="engine")]
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Field(description="precision")]
    bits: Annotated[int | None, Field(description="version of the native engine's bits")] = None
    code: Annotated[Digest | None, Field(description="code's digest")] = None
    device: Annotated[str | None, Field(description="device")] = None
    threads: Annotated[int | None, Field(description="number of CPU threads")] = None
    torch: Annotated[str | None, Field(description="PyTorch version")] = None
    cudnn: Annotated[int | None, Field(description="cuDNN version")] = None
    variables: Annotated[dict[str, str], Field(description="set of variables that change arithmetic")] = {}


class Circumstances(_Part):
    """What is worth knowing and decides nothing beyond what :class:`Arithmetic` says."""

    device: Annotated[str, Field(description="device")]
    threads: Annotated[int, Field(description="number of CPU threads")]
    simd: Annotated[str | None, Field(description="instruction set")]
    torch: Annotated[str, Field(description="PyTorch version")]
    numpy: Annotated[str, Field(description="NumPy version")]
    code: Annotated[Digest, Field(description="code's digest")]


class Earlier(_Part):
    """A part of an interrupted run, computed under other circumstances than what followed."""

    until: Annotated[int, Field(description="last iteration")]
    circumstances: Annotated[Circumstances, Field(description="circumstances")]


class Record(_Part):
    """One run, as run.json holds it.

    Parameters
    ----------
    question, arithmetic, circumstances
        What was asked for, how it was computed, and on what, of an interrupted run the last part.
    iterations : int
        SGD steps.
    seconds, images_per_second : float
        Of training, evaluations included; those of an interrupted run are added up.
    resumed_at : list of int
        The iterations at which it was interrupted and went on.
    earlier : list of Earlier
        The parts before that were computed under other circumstances, in order.
    weights_sha256 : str
        Digest of the tensors in weights.safetensors.
    history_sha256 : str
        SHA-256 of history.csv.
    """

    question: Question
    arithmetic: Arithmetic
    circumstances: Circumstances
    iterations: int
    seconds: float
    images_per_second: float
    resumed_at: list[int]
    earlier: list[Earlier] = []
    weights_sha256: Digest
    history_sha256: Digest

    @property
    def cell(self) -> Cell:
        return Cell.parse(self.question.cell)

    def circumstances_between(self, after: int, until: int) -> list[Circumstances]:
        """Those of the parts that computed iterations ``after`` + 1 to ``until``, in order."""
        bounds = pairwise([0, *(part.until for part in self.earlier), self.iterations])
        parts = [*(part.circumstances for part in self.earlier), self.circumstances]
        return [part for (begin, end), part in zip(bounds, parts, strict=True) if begin < until and after < end]

    def content(self) -> bytes:
        """What run.json holds."""
        return (self.model_dump_json(indent=2, exclude_defaults=True) + "\n").encode()


class RecordError(ValueError):
    """Why a run cannot be believed, in a few words that follow its name."""


class AlteredError(RecordError):
    """Its files are there, and are not what its record says."""


def read(files: RunFiles) -> Record:
    """Read a run's record and check that its weights and history are those that it speaks of.

    Raises
    ------
    AlteredError
        If the weights or the history are damaged or are not what the record says.
    RecordError
        If a file is missing or cannot be read, or the record is none.
    """
    record = read_alone(files)
    with _reading(files.weights):
        check_readable(files.weights)
        try:
            weights = digest(load_file(files.weights))
        except (SafetensorError, TypeError):  # TypeError: of a type that numpy has not
            raise AlteredError(f"its {files.weights.name} is damaged") from None
    check_weights(files, record, weights)
    with _reading(files.history):
        history = sha256(files.history)
    _check(files, files.history, history, record.history_sha256)
    return record


def read_alone(files: RunFiles) -> Record:
    """Read a run's record, whatever the files are that it speaks of.

    Raises
    ------
    RecordError
        If it is missing, cannot be read or is none.
    """
    with _reading(files.record):
        content = files.record.read_bytes()
    try:
        return Record.model_validate_json(content)
    except ValidationError:
        raise RecordError(f"its {files.record.name} is not a record of a run") from None


def check_weights(files: RunFiles, record: Record, found: str) -> None:
    """Raise :class:`AlteredError` if the run's weights, of the digest ``found``, are not those of its record."""
    _check(files, files.weights, found, record.weights_sha256)


def write(files: RunFiles, weights: bytes, history: bytes, record: bytes) -> None:
    """Write a run's files, the record last: whatever happens, there is the old run, none, or the whole new one."""
    files.folder.mkdir(parents=True, exist_ok=True)
    files.record.unlink(missing_ok=True)
    write_whole(files.weights, weights)
    write_whole(files.history, history)
    write_whole(files.record, record)


def _check(files: RunFiles, path: Path, found: str, recorded: str) -> None:
    if found != recorded:
        raise AlteredError(
            f"its {path.name} has the digest {_short(found)}; its {files.record.name} says {_short(recorded)}"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of a file of a run that it is missing or cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise RecordError(f"its {path.name} is missing") from None
    except OSError as error:
        raise RecordError(f"its {path.name} cannot be read ({error.strerror or error})") from None


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
