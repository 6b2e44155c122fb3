"""``resnet-cifar verify``: make published bytes again."""

import argparse
import sys
from typing import Any

from resnet_cifar import params, settings
from resnet_cifar.cells import DATA, RUNS, SCRATCH, select
from resnet_cifar.errors import InputError
from resnet_cifar.native.build import Unavailable
from resnet_cifar.progress import say

NOT_COMPARED = 3
UNAVAILABLE = 4

DESCRIPTION = """\
Train the beginning of a finished run once more, on a CPU with the native engine, and compare each evaluation on the way
with the run's history.csv: its losses and errors, and the digest of the exact weights, statistics and velocities. So
anybody sees the published bytes come out, up to all iterations. Nothing changes but the folder scratch/; interrupted,
the same command goes on from there.
"""

EPILOG = f"""\
examples:
  resnet-cifar verify                                the first evaluation of the smallest network, about a minute
  resnet-cifar verify --all                          that of each cell of params.yaml
  resnet-cifar verify resnet-3-0 --iterations 5000   ResNet-20 with seed 0, five evaluations
  resnet-cifar verify resnet-3-0 --iterations 64000  all of it

exit code:
  0  all bytes are the same
  1  some differ, or a run's files were altered; or what was asked for is wrong, in one sentence
  {NOT_COMPARED}  nothing differs, but a cell could not be compared: its run is missing, has other parameters or data,
     or is not of this version of the native engine; another process has the cell, or there is no memory for it
  {UNAVAILABLE}  the native engine cannot be used here, as without a C++ compiler

{settings.explain("RESNET_CIFAR_SAVE_EVERY", "RESNET_CIFAR_SIMD", "RESNET_CIFAR_THREADS")}"""


def add_to(commands: Any) -> None:
    """Add the command to those of ``resnet-cifar``."""
    parser = commands.add_parser(
        "verify",
        help="make published bytes again on this machine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "cells", nargs="*", metavar="CELL", help="cells or patterns (default: the first of the smallest network)"
    )
    parser.add_argument("--all", action="store_true", help="every cell of params.yaml")
    parser.add_argument(
        "--iterations", type=int, metavar="K", help="go on to the last evaluation within K (default: the first one)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.all and args.cells:
        raise InputError("--all means every cell of params.yaml; it does not go with the names of some.")
    study = params.load()
    known = study.list_cells()
    chosen = known if args.all else select(args.cells, known) or [min(known, key=lambda cell: cell.n)]

    # Here, since torch takes seconds to come.
    from resnet_cifar.verification import Verdict, last_evaluation, table, verify

    last = last_evaluation(study, args.iterations)
    findings, otherwise = [], 0
    try:
        for finding in verify(study, chosen, last, DATA, RUNS, SCRATCH, settings.read(), say):
            print(finding.sentence, flush=True)
            findings.append(finding)
    except Unavailable as error:
        say(
            f"not compared: the native engine, whose bytes these are, cannot be used here ({error}). It needs Linux, a "
            "processor with AVX2, AVX-512 or NEON, a C++ compiler such as g++, and no RESNET_CIFAR_SIMD=none."
        )
        otherwise = UNAVAILABLE
    if len(findings) > 1:
        print(table(findings))
    found = {finding.verdict for finding in findings}
    if found & {Verdict.DIFFERENT, Verdict.ALTERED}:
        sys.exit(1)
    sys.exit(NOT_COMPARED if Verdict.NOT_COMPARED in found else otherwise)
