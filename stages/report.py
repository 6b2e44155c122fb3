"""Render the report: reports/{metrics.md, metrics.json, results.csv, curves.csv, figures/}."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.report import main

main()
