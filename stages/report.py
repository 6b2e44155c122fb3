"""Render the report: reports/{metrics.md, metrics.json, results.csv, curves.csv, figures/}."""

import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: the imports take seconds, and Ctrl-C needs no traceback
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.report import main

main()
