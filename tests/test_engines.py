"""Which engine trains, how it is named in a record, and how many networks train at once."""

import dataclasses
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from resnet_cifar import settings
from resnet_cifar.native.library import Unavailable
from resnet_cifar.numerics import bits, determinism
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.training import engines, memory
from resnet_cifar.training.engines import Computer, code_digest

CPU = torch.device("cpu")


@pytest.fixture
def native(monkeypatch):
    """A machine whose native engine loads; nothing calls it."""
    monkeypatch.setattr(engines.library, "load", lambda name, _: SimpleNamespace(set=name or "avx2"))
    return Computer(dataclasses.replace(settings.read(), simd="avx2"), lambda _: None)


def test_without_the_native_engine_torch_trains_and_it_is_said(monkeypatch, tiny_recipe):
    def fails(*_: object) -> None:
        raise Unavailable("there is no compiler")

    monkeypatch.setattr(engines.library, "load", fails)
    lines: list[str] = []
    computer = Computer(dataclasses.replace(settings.read(), simd=None), lines.append)
    assert (computer.native, computer.fallback) == (None, "there is no compiler")
    assert lines == ["no native engine (there is no compiler): PyTorch trains about four times as slowly"]
    assert computer.arithmetic(tiny_recipe).engine == "eager"


def test_none_is_no_fallback():
    lines: list[str] = []
    computer = Computer(dataclasses.replace(settings.read(), simd="none"), lines.append)
    assert (computer.native, computer.fallback, lines) == (None, "", [])


@pytest.mark.parametrize(
    ("change", "has_bf16", "engine"),
    [
        ({}, True, "native"),
        ({"net": "plain"}, True, "native"),
        ({"shortcut": "B"}, True, "eager"),
        ({"net": "plain", "shortcut": "B"}, True, "native"),  # a plain network has no shortcut
        ({"precision": "bf16"}, True, "eager"),
        ({"precision": "bf16"}, False, "native"),  # fp32 takes its place
    ],
)
def test_what_the_native_engine_computes(monkeypatch, native, tiny_recipe, change, has_bf16, engine):
    monkeypatch.setattr(engines.machine, "has_precision", lambda precision, _: precision == "fp32" or has_bf16)
    assert native.arithmetic(dataclasses.replace(tiny_recipe, **change)).engine == engine


def test_of_a_native_run_only_its_bits_count(native, tiny_recipe):
    """Processor, threads, PyTorch and code do not change them: the same on every machine."""
    found = native.arithmetic(tiny_recipe).model_dump(exclude_defaults=True)
    assert found == {"engine": "native", "precision": "fp32", "bits": bits.NATIVE}
    assert native.circumstances(tiny_recipe).simd == "avx2"
    assert native.circumstances(dataclasses.replace(tiny_recipe, shortcut="B")).simd is None  # it computes nothing


def test_the_version_of_the_bits_is_the_engines():
    """It stands twice, because Python's is a dependency of training and the engine's is not."""
    header = (ROOT / "src/resnet_cifar/native/cpp/engine.h").read_text()
    assert re.findall(r"#define RC_BITS (\d+)", header) == [str(bits.NATIVE)]


def test_of_a_run_by_torch_all_counts_that_changes_bits(tiny_recipe, tiny_dataset, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    computer = Computer(dataclasses.replace(settings.read(), threads=2), lambda _: None)
    try:
        found = computer.arithmetic(tiny_recipe)
        assert isinstance(computer.engine(tiny_recipe, tiny_dataset), EagerEngine)
    finally:
        torch.set_num_threads(1)
    assert (found.engine, found.precision, found.threads) == ("eager", "fp32", 2)
    assert found.torch == torch.__version__
    assert found.code == code_digest()
    assert torch.backends.cpu.get_cpu_capability() in found.device
    assert found.variables["MKL_CBWR"] == "AVX2"
    assert not {name for name in found.variables if name.startswith(("RESNET_CIFAR_", "OMP_"))}


def test_the_codes_digest_is_that_of_the_files_that_decide_bytes():
    total = hashlib.sha256()
    for path in sorted((ROOT / "src/resnet_cifar/numerics").glob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
    assert code_digest() == total.hexdigest()


# ---- How many at once


def gpu(free: int, monkeypatch) -> SimpleNamespace:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return SimpleNamespace(device=torch.device("cuda", 0), precision=lambda recipe: recipe.precision)


@pytest.fixture
def deep(paper_study):
    """ResNet-56 in bf16."""
    return dataclasses.replace(paper_study.recipe(SimpleNamespace(net="resnet", n=9, seed=0)), precision="bf16")


def test_a_cpu_trains_one_at_a_time(tiny_recipe):
    assert memory.fit_at_once(SimpleNamespace(device=CPU), [tiny_recipe], 32) == 1


def test_a_gpu_trains_as_many_as_its_memory_takes_up_to_ten(monkeypatch, deep):
    each = memory.footprint(deep, "bf16")
    assert memory.fit_at_once(gpu(10 * each, monkeypatch), [deep] * 20, None) == 8  # of four fifths
    assert memory.fit_at_once(gpu(each // 2, monkeypatch), [deep] * 20, None) == 1
    assert memory.fit_at_once(gpu(1000 * each, monkeypatch), [deep] * 99, None) == 10  # more are not faster
    assert memory.fit_at_once(gpu(10 * each, monkeypatch), [deep] * 20, 3) == 3  # as the environment says
    assert memory.fit_at_once(gpu(10 * each, monkeypatch), [], None) == 1
    small = dataclasses.replace(deep, n=1)
    assert memory.fit_at_once(gpu(10 * each, monkeypatch), [small, deep], None) == 8  # the largest counts
    assert memory.fit_at_once(gpu(10 * each, monkeypatch), [small, small], None) == 10


def test_room_for_one_more(monkeypatch, deep):
    each = memory.footprint(deep, "bf16")
    assert memory.has_room(gpu(each, monkeypatch), deep)
    assert not memory.has_room(gpu(each - 1, monkeypatch), deep)


def test_a_footprint_is_more_than_the_activations_that_the_backward_pass_needs(deep):
    """ResNet-56: 19 maps of 16x32x32 and 18 each of 32x16x16 and 64x8x8 numbers, what each convolution and each batch
    normalisation gives, for 128 images; weights, velocity and gradient are three times 0.85 million."""
    maps = 2 * (19 * 16_384 + 18 * 8_192 + 18 * 4_096)
    assert memory.footprint(deep, "bf16") > 2 * 128 * maps + 3 * 4 * 853_018
    assert memory.footprint(deep, "fp32") > 4 * 128 * maps + 3 * 4 * 853_018
    double = dataclasses.replace(deep, batch_size=512)
    assert memory.footprint(double, "bf16") > 2 * 512 * maps


def test_torch_is_made_exact_and_deterministic():
    """Whatever it was: no TF32, no kernel chosen by its time, an error for what is not deterministic."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_deterministic_debug_mode("default")
    determinism.configure(torch.device("cpu"), 1)
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
