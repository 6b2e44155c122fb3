"""Train cells: runs/<cell>/{weights.safetensors, history.csv, run.json}."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.train import main

main()
