"""Preprocess CIFAR-10: images, labels and the training images' statistics in one file; data.validation are held out."""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until exit_with: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar import params
from resnet_cifar.cifar10 import preprocess
from resnet_cifar.errors import exit_with

EPILOG = "data.validation comes from params.yaml: so many training images, the same of each class, are held out."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument("--raw", type=Path, default="data/raw", help="folder of the six binary files")
    parser.add_argument("--out", type=Path, default="data/cifar10.safetensors", help="the file to write")
    args = parser.parse_args()
    preprocess(args.raw, args.out, params.load().data.validation)


exit_with(main)
