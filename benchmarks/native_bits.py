"""Compare the bits of the native engine: every instruction set and compiler that there is here, 1 to 3 threads.

Each build makes the runs of tests/native_runs.py, in a program of its own (src/resnet_cifar/native/cpp/golden.cpp); the
SHA-256 of what they leave must be the one in tests/golden/native.json. With two threads the caller rounds towards zero
and flushes denormals, which must change nothing. With aarch64-linux-gnu-g++ and qemu-aarch64, Arm is among them.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import native_runs as runs
import numpy as np
from native_runs import Outcome, Run

from resnet_cifar.errors import InputError, exit_with
from resnet_cifar.native import build, sets
from resnet_cifar.native.network import State

EPILOG = """\
examples:
  python benchmarks/native_bits.py
  python benchmarks/native_bits.py --compilers g++-14 clang++-18

It exits with 1 if a hash is not the golden one.
"""
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
CALLERS = ((1, False), (2, True), (3, False))
"""Threads, and whether the caller's floating-point mode is another."""


def program(folder: Path, each: sets.Set, compiler: str) -> Path:
    """Compile golden.cpp with the engine for a set."""
    folder.mkdir()
    wanted = build.Object.of(each)
    build.compile_into(folder, wanted, [compiler])
    flags = ["-O1", "-std=c++17", "-pthread", "-static", each.define]
    build.run([compiler, *flags, "golden.cpp", "engine.o", "cpu.o", "-o", "golden"], folder)
    return folder / "golden"


def outcome(command: list[str], folder: Path, run: Run, threads: int, hostile: bool) -> Outcome:
    """Make a run by a program."""
    images, state = runs.make_images(run.seed), runs.make_state(run.n, run.seed)
    seen = runs.make_batches(run.steps, run.batch, run.seed)
    header = [run.net == "resnet", run.n, 10, run.batch, run.batch, run.steps, runs.COUNT, threads, hostile]
    arrays = [np.int32(header), np.float32([runs.MOMENTUM, runs.WEIGHT_DECAY]), *vars(images).values(), state.weights]
    arrays += [*vars(seen).values(), runs.rates(run.steps)]
    given, left = folder / "in", folder / "out"
    given.write_bytes(b"".join(array.tobytes() for array in arrays))
    subprocess.run([*command, str(given), str(left)], check=True)
    shapes = [((3,), np.int32), ((run.steps,), np.float64), ((run.steps,), np.int32)]
    shapes += [(array.shape, np.float32) for array in vars(state).values()] + [((runs.COUNT, 10), np.float32)]
    with left.open("rb") as file:
        status, losses, errors, *vectors, logits = (
            np.fromfile(file, dtype, math.prod(shape)).reshape(shape) for shape, dtype in shapes
        )
    if status.tolist() != [0, run.steps, 0]:
        raise InputError(f"{' '.join(command)} gave the statuses {status[0]} and {status[2]}; they should be 0.")
    return Outcome(State(*vectors), losses, errors, logits)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = [name for name in ("g++", "clang++") if shutil.which(name)]
    parser.add_argument("--compilers", nargs="+", default=there, help=f"default: {' '.join(there)}")
    args = parser.parse_args()

    missing = [name for name in args.compilers if not shutil.which(name)]
    if missing or not args.compilers:
        raise InputError(f"{' '.join(missing) or 'A C++ compiler'} is not there; a compiler such as g++ is needed.")
    golden = json.loads((ROOT / "tests/golden/native.json").read_text())["sha256"]
    neon = next(each for each in sets.SETS if each.name == "neon")
    wanted = [(each, compiler, []) for compiler in args.compilers for each in sets.runnable()]
    if shutil.which(CROSS) and shutil.which(EMULATOR):
        wanted.append((neon, CROSS, [EMULATOR]))
    different = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, (each, compiler, emulator) in enumerate(wanted):
            title = f"{each.name}, {compiler}"
            try:
                command = [*emulator, str(program(folder / str(number), each, compiler))]
            except build.Unavailable as error:
                raise InputError(f"the native engine cannot be used here: {error}.") from None
            for run in (runs.TINY, *runs.RUNS):
                for threads, hostile in CALLERS:
                    began = time.monotonic()
                    digest = outcome(command, folder, run, threads, hostile).digest(run.n)
                    seconds = f"{time.monotonic() - began:5.1f} s"
                    verdict = "" if digest == golden[run.name] else "  differs"
                    print(f"{title:30} {run.name:24} {threads} threads {seconds}  {digest}{verdict}", flush=True)
                    different += [title] if verdict else []
    if different:
        raise InputError(f"the bits are not the golden ones: {'; '.join(dict.fromkeys(different))}.")
    print(f"{len(wanted)} builds, {len(runs.RUNS) + 1} runs, 1 to {len(CALLERS)} threads: the golden bits")


if __name__ == "__main__":
    exit_with(main)
