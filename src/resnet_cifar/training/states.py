"""Saved states of interrupted runs, kept outside the stage's outs because DVC deletes those before a stage runs."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from resnet_cifar.files import write_whole
from resnet_cifar.numerics.run import Run
from resnet_cifar.numerics.weights import KEY, digest
from resnet_cifar.training.record import Arithmetic, Question


@dataclass
class Past:
    """What an interrupted run leaves besides its state: seconds spent, and the iterations it was resumed at."""

    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)


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
        identity = {"question": question.model_dump(), "arithmetic": arithmetic.model_dump()}
        self.identity = json.dumps(identity, sort_keys=True)
        self.path = scratch / question.cell / f"{_short_name(self.identity)}.safetensors"

    def save(self, run: Run, past: Past) -> None:
        """Write the state in one piece: whatever happens, the file is the old state or the new one."""
        tensors, rest = run.saved()
        note = {"identity": self.identity, "digest": digest(tensors), "past": asdict(past), "rest": rest}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, serialize(tensors, {KEY: json.dumps(note)}))

    def restore(self, run: Run) -> tuple[Past, str]:
        """Have ``run`` go on from the saved state.

        Returns
        -------
        Past
            New if there is no state that fits; then ``run`` is as it was.
        str
            Why a state that is there was left aside, in words; else empty.
        """
        try:
            with safe_open(self.path, "pt") as file:
                note = json.loads(file.metadata()[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected, _ = run.saved()
            fits = all(tensors[name].shape == tensor.shape for name, tensor in expected.items() if name != "losses")
            past = Past(**note["past"])
            if note["identity"] != self.identity or note["digest"] != digest(tensors) or not fits:
                return Past(), f"{self.path} is damaged or of another run"
            run.restore(tensors, note["rest"])
        except FileNotFoundError:
            return Past(), self._others()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            return Past(), f"{self.path} cannot be read ({error})"
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


def _short_name(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
