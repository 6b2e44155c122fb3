"""``python stages/preprocess.py``: preprocess CIFAR-10."""

import argparse
from pathlib import Path

from resnet_cifar import files, params
from resnet_cifar.cifar10 import preprocess
from resnet_cifar.errors import exit_with


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Preprocess CIFAR-10: images, labels and the training images' statistics in one file.",
        epilog="data.validation comes from params.yaml: so many training images, the same of each class, are held out.",
    )
    parser.add_argument("--raw", type=Path, default="data/raw", help="folder of the six binary files")
    parser.add_argument("--out", type=Path, default="data/cifar10.safetensors", help="the file to write")
    args = parser.parse_args()

    files.check_no_link(args.out)
    preprocess(args.raw, args.out, params.load().data.validation)
