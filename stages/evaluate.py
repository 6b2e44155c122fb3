"""Evaluate trained cells from their checkpoints: results/<cell>/{metrics.json, predictions.safetensors}."""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until exit_with: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar import dataset, machine
from resnet_cifar.cells import Cell
from resnet_cifar.errors import exit_with
from resnet_cifar.evaluation import evaluate_cell

EPILOG = """\
example:
  python stages/evaluate.py --cells resnet-3-0 resnet-9-4    ResNet-20 with seed 0 and ResNet-56 with seed 4

A cell is NET-N-SEED: its network has 6N+2 layers. Of its run, only runs/<cell>/weights.safetensors is read. Everything
is computed in fp32.

environment:
  RESNET_CIFAR_DEVICE   cpu, cuda or cuda:K (default: the GPU if there is one)
  RESNET_CIFAR_THREADS  CPU threads (default: all cores)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default="data/cifar10.safetensors", help="the preprocessed data set")
    parser.add_argument("--runs", type=Path, default="runs", help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default="results", help="folder of the results")
    parser.add_argument("--cells", nargs="+", required=True, metavar="CELL", help="the cells to evaluate")
    args = parser.parse_args()

    cells = [Cell.parse(name) for name in args.cells]
    device = machine.configure()
    data = dataset.load(args.data)
    for cell in cells:
        metrics = evaluate_cell(cell, data, args.runs, args.results, device)
        print(f"{cell}: {cell.network}, test error {metrics['test']['error']:.2f}%")


exit_with(main)
