"""The console command ``resnet-cifar``."""

import argparse

from resnet_cifar.commands import study, sweep, verify
from resnet_cifar.errors import exit_with


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="resnet-cifar",
        description="Train many cells and keep several studies in DVC, and check that published runs come out with the "
        "same bytes here.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (sweep, study, verify):
        command.add_to(commands)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
