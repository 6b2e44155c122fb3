"""Evaluate trained cells from their checkpoints: results/<cell>/{metrics.json, predictions.safetensors}."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from resnet_cifar.commands.evaluate import main

main()
