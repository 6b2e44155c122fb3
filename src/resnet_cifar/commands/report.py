"""``python stages/report.py``: render the report."""

import argparse
import os
from pathlib import Path

from resnet_cifar import params
from resnet_cifar.cells import RESULTS, RUNS
from resnet_cifar.errors import exit_with, needs_extra
from resnet_cifar.progress import say

EPILOG = """\
Every cell of params.yaml must have been trained and evaluated; otherwise the cells that are missing are named and the
report that is there stays as it is. So it is for a cell whose files are not those that its records speak of.
"""


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Render the report: reports/{metrics.md, metrics.json, results.csv, curves.csv, figures/}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of their evaluations")
    parser.add_argument(
        "--throughput",
        type=Path,
        default="benchmarks/throughput.csv",
        help="the measured speeds; without the file the report has no section on speed",
    )
    parser.add_argument("--out", type=Path, default="reports", help="folder of the report")
    args = parser.parse_args()

    study = params.load()
    # A notebook's shell names a backend that matplotlib may not have, and then refuses to be imported. None is used.
    os.environ.pop("MPLBACKEND", None)
    with needs_extra("pipeline"):
        from resnet_cifar.report.writer import write
    if not args.throughput.exists():
        say(f"{args.throughput} is not there: the report has no section on speed")
    try:
        write(study, args.runs, args.results, args.throughput, args.out)
    except OSError as error:
        error.filename = error.filename or str(args.out)  # a full disk names none
        raise
