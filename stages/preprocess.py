"""Preprocess CIFAR-10: data/cifar10.safetensors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.preprocess import main

main()
