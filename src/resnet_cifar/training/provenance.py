"""What a run came from: digests of code, parameters and data, and the machine."""

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

CODE = (
    "batches.py",
    "checkpoint.py",
    "dataset.py",
    "machine.py",
    "models.py",
    "training/engine.py",
    "training/loop.py",
    "training/protocol.py",
    "training/step.py",
)
"""The files that can change the bytes of a run: the train stage's dependencies in dvc.yaml."""


def code_digest() -> str:
    """SHA-256 over the names and contents of the files in ``CODE``."""
    digest = hashlib.sha256()
    for name in CODE:
        content = (PACKAGE / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
