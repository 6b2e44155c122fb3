"""``resnet-cifar sweep``: train and record the cells that are missing or stale."""

import argparse
from pathlib import Path
from typing import Any

from resnet_cifar import settings
from resnet_cifar.errors import InputError, needs_extra
from resnet_cifar.progress import say

DESCRIPTION = """\
Train the cells that DVC finds missing or stale, many at once on all GPUs of this machine, and record each in DVC as
soon as it is done. What the run-cache or the remote already has is restored. `dvc repro` then evaluates and reports.
Interrupted, it keeps what is recorded; the same command goes on from there.
"""

EPILOG = f"""\
{settings.explain(*settings.TRAINING)}
A device named there is the only one used. docs/cluster.md says what changes with --ray.
"""


def add_to(commands: Any) -> None:
    """Add the command to those of ``resnet-cifar``."""
    parser = commands.add_parser(
        "sweep",
        help="train and record the cells that are missing or stale",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--dry", action="store_true", help="list what would be trained and about how long; change nothing")
    way.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="train nothing; record the cells that `python stages/train.py --runs DIR` trained elsewhere",
    )
    way.add_argument("--ray", action="store_true", help="train on a Ray cluster, or with Ray on this machine")
    parser.add_argument("--address", help="with --ray: the cluster (default: RAY_ADDRESS, or else this machine)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.address and not args.ray:
        raise InputError("--address names a Ray cluster; it goes with --ray.")
    with needs_extra("pipeline"):  # here, so that --help and a mistyped option are answered at once
        from resnet_cifar.sweep import run as sweep

    if args.dry:
        sweep.dry_run(settings.read(), say)
    elif args.source:
        sweep.record_from(args.source, say)
    else:
        sweep.train(settings.read(), say, args.ray, args.address)
