"""Render the report: reports/{metrics.md, metrics.json, results.csv, curves.csv, figures/}."""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until exit_with: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar import params
from resnet_cifar.errors import exit_with
from resnet_cifar.report.writer import write

EPILOG = """\
Every cell of params.yaml must have been trained and evaluated; otherwise the cells that are missing are named and the
report that is there stays as it is.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default="runs", help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default="results", help="folder of their evaluations")
    parser.add_argument("--throughput", type=Path, default="benchmarks/throughput.csv", help="the measured speeds")
    parser.add_argument("--out", type=Path, default="reports", help="folder of the report")
    args = parser.parse_args()
    write(params.load(), args.runs, args.results, args.throughput, args.out)


exit_with(main)
