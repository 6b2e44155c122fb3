"""``python stages/evaluate.py``: evaluate trained cells from their checkpoints."""

import argparse
from pathlib import Path

from resnet_cifar import dataset, settings
from resnet_cifar.cells import DATA, RESULTS, RUNS, Cell
from resnet_cifar.errors import exit_with
from resnet_cifar.files import check_no_link, sha256
from resnet_cifar.progress import say
from resnet_cifar.results import Evaluator

EPILOG = f"""\
example:
  python stages/evaluate.py --cells resnet-3-0 resnet-9-4    ResNet-20 with seed 0 and ResNet-56 with seed 4

A cell is NET-N-SEED: its network has 6N+2 layers. The logits are computed in fp32 from
runs/<cell>/weights.safetensors, by the native engine if run.json beside it says that it trained the cell; where there
is none, if that engine can be used on this device. The layers' responses are PyTorch's, in float64.

{settings.explain("RESNET_CIFAR_DEVICE", "RESNET_CIFAR_SIMD", "RESNET_CIFAR_THREADS")}"""


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Evaluate trained cells: results/<cell>/{metrics.json, predictions.safetensors}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the preprocessed data set")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--cells", nargs="+", required=True, metavar="CELL", help="the cells to evaluate")
    args = parser.parse_args()

    cells = [Cell.parse(name) for name in args.cells]
    for cell in cells:
        check_no_link(args.results / cell.name)
    evaluator = Evaluator(dataset.load(args.data), sha256(args.data), settings.read(), say)
    for cell in cells:
        result = evaluator.evaluate(cell, args.runs, args.results)
        print(f"{cell}: {cell.network}, test error {result.test.error:.2f}%")
