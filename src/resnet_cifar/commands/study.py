"""``resnet-cifar study``: keep a finished study as a folder of its own."""

import argparse
from pathlib import Path
from typing import Any

from resnet_cifar import settings
from resnet_cifar.errors import needs_extra
from resnet_cifar.progress import say

DESCRIPTION = """\
Make the study of a preset and keep it in reports/studies/NAME: report, figures, parameters, and its part of dvc.lock.
Its networks go to DVC's default remote, from which `dvc exp run --pull -S preset=NAME` restores them. What is trained
already is restored, the rest is trained, which may take hours. Everything happens in a clone in scratch/, so that this
checkout stays as it is; it must have no change that is not committed. Interrupted, it leaves no study; the same command
goes on from there. A study that is kept already is made anew by the code of today, from its networks where they are
still what that code would train.
"""


def add_to(commands: Any) -> None:
    """Add the command to those of ``resnet-cifar``."""
    parser = commands.add_parser(
        "study",
        help="keep a finished study beside the current one",
        description=DESCRIPTION,
        epilog=settings.explain(*settings.TRAINING),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a preset of conf/preset/")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="first record the cells that `python stages/train.py --runs DIR` trained elsewhere",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    with needs_extra("pipeline"):
        from resnet_cifar.studies.keep import keep

    keep(args.name, args.source, say)
