"""The benchmarks run here and print what they say; what they print is measured elsewhere."""

import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_tiny_dataset


@pytest.fixture(scope="module")
def folder(compose, tmp_path_factory) -> Path:
    """A folder with parameters and data."""
    made = tmp_path_factory.mktemp("benchmarks")
    (made / "params.yaml").write_text(compose("train.batch_size=16", "train.precision=fp32"))
    write_tiny_dataset(made / "data/cifar10.safetensors")
    return made


def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_throughput_appends_a_row_for_each_way(folder):
    table = (ROOT / "benchmarks/throughput.csv").read_text().splitlines()
    (folder / "table.csv").write_text(table[0] + "\n")
    done = run(folder, "throughput.py", "--n", "3", "--seconds", "0", "--out", "table.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["way"] for row in rows] == ["usual loop, fp32", "this step, eager"]
    for row in rows:
        seconds = float(row["seconds_per_64k_iterations"]) / 64_000
        assert float(row["images_per_second"]) == pytest.approx(16 / seconds, rel=0.01)
    assert float(rows[0]["times_the_usual_loop"]) == 1
    assert None not in rows[0]


def test_the_limits_are_those_of_the_network():
    """ResNet-20, an image: 40.55 million multiplications; 7 maps of 16x32x32, 6 of 32x16x16, 6 of 64x8x8 elements."""
    throughput = runpy.run_path(str(ROOT / "benchmarks/throughput.py"))
    assert throughput["flops"](3, 1) / 6 == pytest.approx(40_550_000, rel=1e-4)
    assert throughput["traffic"](3, 1, 2) == 9 * 2 * (7 * 16_384 + 6 * 8_192 + 6 * 4_096)


def test_a_difference_is_found_and_named(folder, tmp_path):
    """Against a checkout in which a number of the protocol is another."""
    other = tmp_path / "other"
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, other / name)
    protocol = other / "src/resnet_cifar/training/protocol.py"
    text = protocol.read_text()
    protocol.write_text(text.replace("alpha=recipe.weight_decay", "alpha=2 * recipe.weight_decay"))
    assert protocol.read_text() != text
    done = run(folder, "determinism.py", "--cells", "resnet-1-0", "--iterations", "30", "--against", str(other))
    assert done.returncode == 1
    ways = [line.split()[0] for line in done.stdout.splitlines() if "resnet-1-0" in line and "differs" not in line]
    assert ways == ["alone", "packed", "reversed", "resumed"]
    assert done.stderr == "error: the bytes differ from those of cells trained alone: against.\n"
