"""The console command ``resnet-cifar``."""

import argparse
from pathlib import Path

from resnet_cifar.errors import InputError, exit_with

SWEEP = """\
Train the cells that DVC finds missing or stale, many at once on all GPUs of this machine, and record each in DVC as
soon as it is done. What the run-cache or the remote already has is restored. `dvc repro` then evaluates and reports.
Interrupted, it keeps what is recorded; the same command goes on from there.
"""

EPILOG = """\
environment:
  RESNET_CIFAR_DEVICE, RESNET_CIFAR_PACK, RESNET_CIFAR_SAVE_EVERY, RESNET_CIFAR_THREADS, as in
  `python stages/train.py --help`; a device named there is the only one used
"""


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="resnet-cifar", description="Many cells at once, recorded in DVC.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "sweep",
        help="train and record the cells that are missing or stale",
        description=SWEEP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    way = command.add_mutually_exclusive_group()
    way.add_argument("--dry", action="store_true", help="list what would be trained and about how long; change nothing")
    way.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="train nothing; record the cells that `python stages/train.py --runs DIR` trained elsewhere",
    )
    way.add_argument("--ray", action="store_true", help="train on a Ray cluster, or with Ray on this machine")
    command.add_argument("--address", help="with --ray: the cluster (default: RAY_ADDRESS, or else this machine)")
    args = parser.parse_args()
    if args.address and not args.ray:
        raise InputError("--address names a Ray cluster; it goes with --ray.")
    from resnet_cifar.sweep import command as sweep  # here, so that --help and a mistyped option are answered at once

    if args.dry:
        sweep.dry_run()
    elif args.source:
        sweep.record_from(args.source)
    else:
        sweep.run(args.ray, args.address)
