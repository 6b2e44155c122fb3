"""The state of an interrupted run, kept outside the stage's outs because DVC deletes those before a stage runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from resnet_cifar.checkpoint import write_whole
from resnet_cifar.training.step import TrainState

KEY = "resnet_cifar"


@dataclass
class Past:
    """What an interrupted run leaves besides its tensors: seconds spent, and the iterations it was resumed at."""

    seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)


def save(path: Path, state: TrainState, identity: dict[str, Any], past: Past) -> None:
    """Write the state of a run in one piece: whatever happens, ``path`` is the old state or the new one."""
    path.parent.mkdir(exist_ok=True)
    note = {"identity": identity, "seconds": past.seconds, "resumed_at": past.resumed_at}
    write_whole(
        path, serialize({name: tensor.cpu() for name, tensor in state.tensors().items()}, {KEY: json.dumps(note)})
    )


def load(path: Path, state: TrainState, identity: dict[str, Any]) -> Past | None:
    """Put a saved state back if it is of this very run; None if there is none, or one of another run.

    Parameters
    ----------
    identity : dict
        All that has to be equal: parameters, data, code and the kind of machine.
    """
    try:
        with safe_open(path, "pt") as file:
            note = json.loads(file.metadata()[KEY])
            if note["identity"] != identity:
                return None
            state.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):
        return None
    return Past(note["seconds"], [*note["resumed_at"], int(state.iteration)])
