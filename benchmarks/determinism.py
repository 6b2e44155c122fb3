"""Train short cells in several ways and compare the SHA-256 of their weights and histories.

The ways: alone, packed with others (on a CPU: after one another in one process), in another order, killed and resumed,
each in a new process; and by another checkout, which shows that an edit changes no byte. Parameters are those of
params.yaml, shortened.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import yaml

from resnet_cifar import machine, params, settings
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError, exit_with

EPILOG = """\
examples:
  python benchmarks/determinism.py                       five cells on the GPU, or on the CPU if there is none
  python benchmarks/determinism.py --iterations 2000     on a GPU 200 are over before all five are under way
  python benchmarks/determinism.py --against ../before   the same, and by the checkout in ../before

It exits with 1 if a byte differs, if no two cells could be resumed, or if on a GPU no two were under way at once.
"""
CELLS = ("resnet-3-0", "resnet-9-0", "resnet-3-1", "plain-3-0", "resnet-5-0")
KILLS = 3


class Bench:
    """A folder with shortened parameters and a data set, in which ``stages/train.py`` of a checkout is run.

    Attributes
    ----------
    together : int
        The most cells of which a state was saved at the same moment: so many were under way at once.
    """

    def __init__(self, folder: Path, data: Path, iterations: int) -> None:
        self.folder, self.data, self.together = folder, data.resolve(), 0
        study = params.load().model_dump()
        study["train"] |= {"iterations": iterations, "milestones": [iterations // 2], "eval_every": iterations // 2}
        study["train"]["warmup"] |= {"min_n": 5, "iterations": iterations // 4}
        (folder / "params.yaml").write_text(yaml.safe_dump(study))

    def start(self, way: str, cells: list[Cell], checkout: Path = ROOT, **variables: str) -> subprocess.Popen[bytes]:
        """Train cells in a process of their own, into ``way``."""
        command = [sys.executable, str(checkout / "stages/train.py"), "--data", str(self.data)]
        command += ["--runs", way, "--scratch", f"{way}-scratch", "--cells", *map(str, cells)]
        with self._log(way).open("w") as log:
            return subprocess.Popen(command, cwd=self.folder, env=os.environ | variables, stderr=log)

    def train(self, way: str, cells: list[Cell], checkout: Path = ROOT) -> None:
        """The same to its end."""
        if self.start(way, cells, checkout).wait():
            last = self._log(way).read_text().splitlines()[-1:]
            raise InputError(f"{checkout}/stages/train.py failed: {''.join(last).removeprefix('error: ')}")

    def _log(self, way: str) -> Path:
        return self.folder / f"{way}.log"

    def kill_and_resume(self, way: str, cells: list[Cell], at_once: int) -> None:
        """Kill the process as soon as ``at_once`` cells have a saved state, a new one among them; again; then go on."""
        killed: set[str] = set()
        for _ in range(min(KILLS, len(cells))):
            process = self.start(way, cells, RESNET_CIFAR_SAVE_EVERY="0")
            saved: set[str] = set()
            while process.poll() is None and not (len(saved) >= at_once and saved - killed):
                time.sleep(0.001)
                saved = {path.parent.name for path in self.folder.glob(f"{way}-scratch/*/*.safetensors")}
            if process.poll() is None:
                killed |= saved
                self.together = max(self.together, len(saved))
            process.kill()
            process.wait()
        self.train(way, cells)

    def digests(self, way: str, cells: list[Cell]) -> dict[Cell, str]:
        """The SHA-256 of each cell's weights followed by its history."""
        files = {cell: run_files(self.folder / way, cell) for cell in cells}
        contents = {cell: each.weights.read_bytes() + each.history.read_bytes() for cell, each in files.items()}
        return {cell: hashlib.sha256(content).hexdigest() for cell, content in contents.items()}

    def resumed(self, way: str, cells: list[Cell]) -> list[Cell]:
        """The cells that were resumed, as their records say."""
        records = {cell: json.loads(run_files(self.folder / way, cell).record.read_text()) for cell in cells}
        return [cell for cell in cells if records[cell]["resumed_at"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default="data/cifar10.safetensors", help="the preprocessed data set")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="CELL", help=f"default: {' '.join(CELLS)}")
    parser.add_argument("--iterations", type=int, default=200, help="length of a run (default: %(default)s)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout that must give the same bytes")
    args = parser.parse_args()

    if not args.data.exists():
        raise InputError(f"{args.data} does not exist: make it with `dvc repro preprocess`.")
    if args.iterations < 2:
        raise InputError(f"--iterations is {args.iterations}; it should be at least 2.")
    if args.against and not (args.against / "stages/train.py").exists():
        raise InputError(f"--against {args.against} has no stages/train.py; it should be a checkout of this project.")
    cells = [Cell.parse(name) for name in args.cells]
    at_once = min(2, len(cells)) if machine.choose_device(settings.read().device).type == "cuda" else 1
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.data, args.iterations)

        def alone(way: str) -> None:
            for cell in cells:
                bench.train(way, [cell])

        ways: dict[str, Callable[[str], None]] = {
            "alone": alone,
            "packed": lambda way: bench.train(way, cells),
            "reversed": lambda way: bench.train(way, cells[::-1]),
            "resumed": lambda way: bench.kill_and_resume(way, cells, at_once),
        }
        if args.against:
            ways["against"] = lambda way: bench.train(way, cells, args.against.resolve())
        found: dict[str, dict[Cell, str]] = {}
        for way, train in ways.items():
            began = time.monotonic()
            train(way)
            found[way] = bench.digests(way, cells)
            for cell, digest in found[way].items():
                verdict = "" if digest == found["alone"][cell] else "  differs"
                print(f"{way:10} {cell!s:12} {digest}{verdict}", flush=True)
            print(f"{way:10} {time.monotonic() - began:.0f} s", flush=True)
        resumed = bench.resumed("resumed", cells)
    print(f"{len(resumed)} cells were resumed; {bench.together} were under way at once")
    different = [way for way in found if found[way] != found["alone"]]
    if different:
        raise InputError(f"the bytes differ from those of cells trained alone: {', '.join(different)}.")
    if len(resumed) < min(2, len(cells)) or bench.together < at_once:
        raise InputError("too few cells could be killed before they ended: more --iterations are needed.")
    print(f"{len(cells)} cells, {len(found)} ways, the same bytes")


if __name__ == "__main__":
    exit_with(main)
