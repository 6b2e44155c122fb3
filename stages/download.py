"""Download CIFAR-10: six binary files, each checked against its published MD5."""

import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.download import main

main()
