"""Train cells: runs/<cell>/{weights.safetensors, history.csv, run.json}."""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until exit_with: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar import params
from resnet_cifar.cells import select
from resnet_cifar.errors import InputError, exit_with
from resnet_cifar.training.packing import Interrupted, train_cells
from resnet_cifar.training.runs import Session

EPILOG = """\
examples:
  python stages/train.py --cells resnet-3-0 resnet-9-4    ResNet-20 with seed 0 and ResNet-56 with seed 4
  python stages/train.py --cells 'resnet-9-*'             all seeds of ResNet-56 that params.yaml names
  python stages/train.py                                  every cell of params.yaml

A cell is NET-N-SEED: its network has 6N+2 layers. Parameters come from params.yaml. On a GPU many cells train at once.
An interrupted run goes on when the same command is given again, and ends with the same bytes. It needs torch, numpy,
safetensors, PyYAML and pydantic, and no DVC.

environment:
  RESNET_CIFAR_DEVICE      cpu, cuda or cuda:K (default: the GPU if there is one)
  RESNET_CIFAR_PACK        cells that train at once on a GPU (default: what its memory takes)
  RESNET_CIFAR_SAVE_EVERY  seconds between two saved states, from which an interrupted run goes on (default: 30)
  RESNET_CIFAR_THREADS     CPU threads (default: all cores); part of what decides the bits on a CPU
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default="data/cifar10.safetensors", help="the preprocessed data set")
    parser.add_argument("--runs", type=Path, default="runs", help="folder of the finished runs")
    parser.add_argument("--scratch", type=Path, default="scratch", help="folder of the interrupted runs' states")
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="CELL", help="cells or patterns (default: all)")
    args = parser.parse_args()

    study = params.load()
    cells = select(args.cells, study.list_cells())
    try:
        failed = train_cells(Session(study, args.data, args.runs, args.scratch), cells)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signum)
    if failed:
        raise InputError("; ".join(f"{cell}: {reason}" for cell, reason in failed.items()))


exit_with(main)
