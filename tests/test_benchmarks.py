"""The benchmarks run here and print what they say; what they print is measured elsewhere."""

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, needs_native, write_tiny_dataset
from native_runs import TINY

from resnet_cifar import machine
from resnet_cifar.errors import InputError
from resnet_cifar.native import build, sets
from resnet_cifar.report import speed


@pytest.fixture(scope="module")
def folder(compose, tmp_path_factory) -> Path:
    """A folder with parameters and data."""
    made = tmp_path_factory.mktemp("benchmarks")
    (made / "params.yaml").write_text(compose("train.batch_size=16", "train.precision=fp32"))
    write_tiny_dataset(made / "data/cifar10.safetensors")
    return made


def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From a checkout's own code: without PYTHONPATH."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_throughput_appends_a_row_for_each_way(folder):
    """Without the native engine; the table is what the report reads."""
    table = (ROOT / "benchmarks/throughput.csv").read_text().splitlines()
    (folder / "table.csv").write_text(table[0] + "\n")
    done = run(folder, "throughput.py", "--n", "1", "--seconds", "0", "--out", "table.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "table.csv").open()))
    autocast = ["usual loop, autocast"] if machine.has_precision("bf16", torch.device("cpu")) else []
    assert [row["way"] for row in rows] == ["usual loop, fp32", *autocast, "this step, eager"]
    for row in rows:
        seconds = float(row["seconds_per_64k_iterations"]) / 64_000
        assert float(row["images_per_second"]) == pytest.approx(16 / seconds, rel=0.01)
    assert float(rows[0]["times_the_usual_loop"]) == 1
    assert None not in rows[0]
    assert len(speed.load(folder / "table.csv")) == len(rows)
    assert done.stdout.count("images/s") == len(rows)


def test_a_way_advances_every_network_by_so_many_iterations(tiny_recipe, tiny_dataset):
    """Two engines of other stretches in turns: they end with the bytes of five steps alone."""
    throughput = runpy.run_path(str(ROOT / "benchmarks/throughput.py"))
    engines = [
        type("Stretched", (throughput["EagerEngine"],), {"stretch": stretch})(tiny_recipe, tiny_dataset, "fp32")
        for stretch in (1, 3, 5)
    ]
    throughput["together"](engines[:2], tiny_recipe, tiny_dataset)(5)
    throughput["together"](engines[2:], tiny_recipe, tiny_dataset)(5)
    states = [engine.tensors() for engine in engines]
    assert all(torch.equal(states[0][name], other[name]) for name in states[0] for other in states[1:])
    fresh = throughput["EagerEngine"](tiny_recipe, tiny_dataset, "fp32").tensors()
    assert not torch.equal(states[0]["weights"], fresh["weights"])


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
    network = other / "src/resnet_cifar/numerics/network.py"
    text = network.read_text()
    network.write_text(text.replace("alpha=recipe.weight_decay", "alpha=2 * recipe.weight_decay"))
    assert network.read_text() != text
    done = run(folder, "determinism.py", "--cells", "resnet-1-0", "--iterations", "20", "--against", str(other))
    assert done.returncode == 1
    ways = [line.split()[0] for line in done.stdout.splitlines() if "resnet-1-0" in line and "differs" not in line]
    assert ways == ["alone", "packed", "reversed", "resumed"]
    assert "1 cells were resumed; 1 were under way at once" in done.stdout
    assert done.stderr == "error: the bytes differ from those of cells trained alone: against.\n"


@needs_native
def test_the_cost_of_the_engine_is_a_row_a_case(capsys, monkeypatch):
    """Of one network, two cores: batch 128, then two other batches, then one thread and the slower sets."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import native_cost

    found = list(native_cost.cases(2))
    fastest, *others = [each.name for each in sets.runnable(sets.FAST)]
    assert [case for case in found if case[1] == 128 and case[2:] == (2, fastest)] == [
        (n, 128, 2, fastest) for n in (3, 5, 7, 9, 18)
    ]
    assert len(found) == len(set(found))
    assert {(3, 128, 1, name) for name in (fastest, *others)} <= set(found)
    monkeypatch.setattr(native_cost, "IMAGES", 20)
    monkeypatch.setattr(native_cost, "cases", lambda _: [(1, 20, 1, fastest)])
    monkeypatch.setattr(sys, "argv", ["native_cost.py", "--seconds", "0"])
    native_cost.main()
    title, columns, _, row = [line for line in capsys.readouterr().out.splitlines() if line]
    assert title == machine.device_name(torch.device("cpu"))
    assert row.startswith(f"| ResNet-8 | 20 | 1 | {fastest} | ")
    assert row.count("|") == columns.count("|")


@needs_native
def test_two_engines_from_the_same_weights_on_the_same_batches(folder, monkeypatch):
    """Of one iteration the losses are the same to rounding; the last row is a short one."""
    monkeypatch.delenv("RESNET_CIFAR_SIMD")
    few = "--iterations", "3", "--every", "2", "--moved", "2"
    done = run(folder, "engines_together.py", "--cell", "resnet-1-0", *few)
    assert done.returncode == 0, done.stderr
    head, _, first, last, test = done.stdout.splitlines()
    assert [row.split(" | ")[0] for row in (first, last)] == ["| 1 to 2", "| 3 to 3"]
    native, moved, eager = first.split(" | ")[1:4]
    assert [float(loss) for loss in (native, *moved.split(" to "))] == pytest.approx([float(eager)] * 3, rel=1e-3)
    assert head.count("|") == last.count("|")
    assert re.fullmatch(r"Test error, %: native, moved, eager: (\d+\.\d\d( \| | to |$)){4}", test)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import engines_together

    monkeypatch.chdir(folder)
    for wrong in (["--cell", "resnet-0-0"], ["--every", "0"]):
        monkeypatch.setattr(sys, "argv", ["engines_together.py", *wrong])
        with pytest.raises(InputError):
            engines_together.main()


@needs_native
def test_the_program_for_emulators_makes_the_golden_run(tmp_path, monkeypatch):
    """Arm's bits are seen by it alone; with two threads, in another floating-point mode."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import native_bits

    monkeypatch.setattr(build, "COMMON", [flag.replace("-O3", "-O0") for flag in build.COMMON])  # compiles in seconds
    program = native_bits.program(tmp_path / "program", sets.runnable(sets.FAST)[0], build._compiler()[0])
    made = native_bits.outcome([str(program)], tmp_path, TINY, 2, hostile=True)
    golden = json.loads((ROOT / "tests/golden/native.json").read_text())["sha256"]
    assert made.digest(TINY.n) == golden[TINY.name]


def test_the_textbooks_network_and_rates_are_the_papers(folder, capsys, monkeypatch):
    """ResNet-20's number of parameters; of seven iterations, the rate falls after the third and the fifth."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import textbook

    assert sum(parameter.numel() for parameter in textbook.resnet(3).parameters()) == 269_722
    monkeypatch.chdir(folder)
    monkeypatch.setattr(textbook, "BATCH", 20)
    monkeypatch.setattr(sys, "argv", ["textbook.py", "--n", "1", "--iterations", "7", "--every", "2"])
    with torch.random.fork_rng():
        textbook.main()
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    rates = {"2": "0.1", "4": "0.01", "6": "0.001", "7": "0.001"}
    assert [(row["iteration"], row["lr"]) for row in rows] == list(rates.items())
    assert all(0 <= float(row["train_error"]) <= 100 and float(row["test_loss"]) > 0 for row in rows)
    for wrong in (["--n", "0"], ["--seed", "-1"]):
        monkeypatch.setattr(sys, "argv", ["textbook.py", *wrong])
        with pytest.raises(SystemExit, match=r"^[^\n]+$"):
            textbook.main()
