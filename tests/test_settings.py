"""The environment's variables: each is read when a command starts, and a wrong value is one sentence."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from resnet_cifar import settings
from resnet_cifar.errors import InputError
from resnet_cifar.native.sets import SETS


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch) -> None:
    for name in settings.HELP:
        monkeypatch.delenv(name, raising=False)


def test_nothing_said(monkeypatch):
    monkeypatch.setattr(settings, "_cores", lambda: 6)
    found = settings.read()
    assert found == settings.Settings(device=None, threads=6, pack=None, save_every=30.0, simd=None, source=None)
    monkeypatch.setattr(settings, "_cores", lambda: 256)
    assert settings.read().threads == 64


def test_everything_said(monkeypatch):
    values = {
        "RESNET_CIFAR_DEVICE": "cuda:1",
        "RESNET_CIFAR_PACK": "32",
        "RESNET_CIFAR_SAVE_EVERY": "0.5",
        "RESNET_CIFAR_SIMD": "avx2",
        "RESNET_CIFAR_THREADS": "64",
        "CIFAR10_SOURCE": "/data/cifar-10-binary.tar.gz",
    }
    assert values.keys() == settings.HELP.keys()
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = settings.read()
    assert (found.device, found.pack, found.save_every, found.simd, found.threads) == ("cuda:1", 32, 0.5, "avx2", 64)
    assert found.source == Path("/data/cifar-10-binary.tar.gz")


def test_an_empty_value_says_nothing(monkeypatch):
    before = settings.read()
    for name in settings.HELP:
        monkeypatch.setenv(name, "")
    assert settings.read() == before


NO_NUMBERS = ["many", "0", "-1", "1.5", "1e1", " 4", "4 ", "+4", "0x4", "1_0", "١", "²", "9" * 20, "9" * 5000]


@pytest.mark.parametrize("value", [*NO_NUMBERS, "33"])
def test_a_wrong_number_at_once(monkeypatch, value):
    monkeypatch.setenv("RESNET_CIFAR_PACK", value)
    with pytest.raises(InputError, match=r"RESNET_CIFAR_PACK is .*; it should be a whole number from 1 to 32"):
        settings.read()


@pytest.mark.parametrize("value", ["0", "65", "100000"])
def test_a_wrong_number_of_threads(monkeypatch, value):
    monkeypatch.setenv("RESNET_CIFAR_THREADS", value)
    with pytest.raises(InputError, match=r"RESNET_CIFAR_THREADS is .*; it should be a whole number from 1 to 64"):
        settings.read()


@pytest.mark.parametrize("value", ["often", "-1", "nan", "-inf", "1,5", "١", "1_0", "30 s"])
def test_wrong_seconds(monkeypatch, value):
    monkeypatch.setenv("RESNET_CIFAR_SAVE_EVERY", value)
    with pytest.raises(InputError, match=r"RESNET_CIFAR_SAVE_EVERY is .*; it should be a number of seconds from 0"):
        settings.read()


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("1e3", 1000.0), ("0.05", 0.05), ("inf", float("inf"))])
def test_seconds(monkeypatch, value, seconds):
    monkeypatch.setenv("RESNET_CIFAR_SAVE_EVERY", value)
    assert settings.read().save_every == seconds


def test_a_wrong_instruction_set(monkeypatch):
    monkeypatch.setenv("RESNET_CIFAR_SIMD", "AVX2")
    with pytest.raises(InputError, match="'AVX2'; it should be avx512, avx2, neon, plain or none"):
        settings.read()


def test_the_instruction_sets_are_those_of_the_engine():
    assert [each.name for each in SETS] == [name for name in settings.SETS if name != "none"]


def test_help_names_what_it_is_asked_for():
    text = settings.explain("RESNET_CIFAR_SIMD", "RESNET_CIFAR_SAVE_EVERY")
    lines = text.splitlines()
    assert lines[0] == "environment:"
    assert [line.split()[0] for line in lines[1:]] == ["RESNET_CIFAR_SIMD", "RESNET_CIFAR_SAVE_EVERY"]
    assert len({line.index(settings.HELP[line.split()[0]]) for line in lines[1:]}) == 1  # in a column


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_commands_help_names_the_variables_that_it_reads(stage, tmp_path):
    """From another folder and with a wrong value: nothing is read when the command is imported."""
    environment = os.environ | {"RESNET_CIFAR_THREADS": "many", "RESNET_CIFAR_DEVICE": "tpu"}
    command = [sys.executable, str(ROOT / f"stages/{stage}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = {name for name in settings.HELP if name in done.stdout}
    both = {"RESNET_CIFAR_DEVICE", "RESNET_CIFAR_SIMD", "RESNET_CIFAR_THREADS"}
    assert named == both | ({"RESNET_CIFAR_PACK", "RESNET_CIFAR_SAVE_EVERY"} if stage == "train" else set())


def test_the_environment_is_read_nowhere_else():
    """But for what is not this project's, such as torch's own variables and the compiler, and for children's sake."""
    package, names = ROOT / "src/resnet_cifar", {"environ", "environb", "getenv"}
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {each.name for each in node.names} & names)
    }
    others = {"training/engines.py", "numerics/determinism.py", "native/build.py", "sources/official.py"}
    children = {"commands/report.py", *(f"sweep/{name}.py" for name in ("__init__", "cluster", "ledger", "local"))}
    assert readers == {"settings.py"} | others | children
