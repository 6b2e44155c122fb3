"""Preprocess CIFAR-10: data/cifar10.safetensors."""

import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.preprocess import main

main()
