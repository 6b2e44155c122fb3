"""Saved states of interrupted runs, kept outside the stage's outs because DVC deletes those before a stage runs."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from resnet_cifar.errors import TrainingError, in_one_line
from resnet_cifar.files import check_readable, write_whole
from resnet_cifar.numerics.run import Run
from resnet_cifar.numerics.weights import KEY, digest
from resnet_cifar.training.record import Arithmetic, Circumstances, Earlier, Question


def home(scratch: Path) -> Path:
    """The folder of the states for a checkout whose folder of interrupted runs is ``scratch``.

    It is that folder, unless the checkout is the copy that DVC makes for `dvc exp run --temp` or a queued experiment
    and removes when it is interrupted. There it is the one of the checkout that was copied, so that the same experiment
    goes on where it was, in whichever copy.

    >>> home(Path("/here/scratch"))
    PosixPath('/here/scratch')
    >>> home(Path("/here/.dvc/tmp/exps/standalone/tmpkae4n5q8/scratch"))
    PosixPath('/here/scratch')
    """
    for folder in scratch.absolute().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2] / scratch.name
    return scratch


class Past(BaseModel):
    """What an interrupted run leaves besides its state.

    Parameters
    ----------
    seconds : float
        Spent on it.
    resumed_at : list of int
        The iterations at which it went on.
    earlier : list of Earlier
        The parts that were computed under other circumstances than what followed.
    circumstances : Circumstances
        Those of the last part; None in a new run, and in a state of an older version, which did not know them.
    """

    model_config = ConfigDict(extra="forbid")

    seconds: float = 0.0
    resumed_at: list[int] = []
    earlier: list[Earlier] = []
    circumstances: Circumstances | None = None

    def go_on(self, circumstances: Circumstances, iteration: int) -> None:
        """From ``iteration`` on, these are the circumstances."""
        if self.circumstances and self.circumstances != circumstances:
            self.earlier.append(Earlier(until=iteration, circumstances=self.circumstances))
        self.circumstances = circumstances


class StateFile:
    """Where the state of one cell's run is saved.

    Its name comes from what decides the run's bytes, so that no other run of the cell takes its state away.

    Parameters
    ----------
    scratch : Path
        The folder of all states.
    question, arithmetic
        The run.
    """

    def __init__(self, scratch: Path, question: Question, arithmetic: Arithmetic) -> None:
        self.question, self.arithmetic = question, arithmetic
        identity = {
            "question": question.model_dump(exclude_defaults=True),
            "arithmetic": arithmetic.model_dump(exclude_defaults=True),
        }
        self.identity = json.dumps(identity, sort_keys=True)
        self.path = scratch / question.cell / f"{_short_name(self.identity)}.safetensors"

    def save(self, run: Run, past: Past) -> None:
        """Write the state in one piece: whatever happens, the file is the old state or the new one."""
        tensors, rest = run.saved()
        note = json.dumps({"identity": self.identity, "past": past.model_dump(), "rest": rest})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, serialize(tensors, {KEY: note, "digest": _digest(note, tensors)}), shared=True)

    def restore(self, run: Run) -> tuple[Past, str]:
        """Have ``run`` go on from the saved state.

        Returns
        -------
        Past
            New if there is no state that fits; then ``run`` is as it was.
        str
            Why a state that is there was left aside, in words; else empty.

        Raises
        ------
        TrainingError
            If the state cannot be opened, or if it fits and another version of this program wrote what goes with it.
        """
        try:
            check_readable(self.path)
            with safe_open(self.path, "pt") as file:
                text, expected = file.metadata()[KEY], file.metadata()["digest"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if expected != _digest(text, tensors):
                return Past(), f"{self.path} is damaged"
            note = json.loads(text)
            if note["identity"] != self.identity or not _fits(tensors, run):
                return Past(), f"{self.path} is another run's"
            past = Past.model_validate(note["past"])
            run.restore(tensors, note["rest"])
        except ValidationError:  # a new run would write over hours of work
            raise TrainingError(
                f"another version of this program saved {self.path}: go on with that version, or move the file away to "
                "begin anew"
            ) from None
        except FileNotFoundError:
            return Past(), self._others()
        except OSError as error:  # as above
            raise TrainingError(
                f"{self.path} cannot be read ({error.strerror or error}): mend that, or move it away to begin anew"
            ) from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            return Past(), f"{self.path} cannot be read ({in_one_line(error)})"
        past.resumed_at.append(run.iteration)
        return past, ""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # another run of the cell has a state there
            self.path.parent.rmdir()

    def _others(self) -> str:
        """In what a saved state of the same question differs, which would have been resumed otherwise."""
        for path in sorted(self.path.parent.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    identity = json.loads(json.loads(file.metadata()[KEY])["identity"])
                theirs = Arithmetic.model_validate(identity["arithmetic"])
                if Question.model_validate(identity["question"]) == self.question:
                    return f"{path} stays where it is: {theirs.difference(self.arithmetic)} as here"
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                continue
        return ""


def _digest(note: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{digest(tensors)} {note}".encode()).hexdigest()


def _fits(tensors: dict[str, Tensor], run: Run) -> bool:
    """Whether these are the tensors of such a run, as far as names, shapes and types say."""
    expected, _ = run.saved()

    def layout(of: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in of.items() if name != "losses"}

    return layout(tensors) == layout(expected)


def _short_name(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
