"""The native engine's library is compiled once, found by its sources, and never another's.

Here with sources of a few lines in place of the engine's, and a cache of each test's own.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, needs_native

from resnet_cifar.errors import InputError
from resnet_cifar.native import build, library, sets
from resnet_cifar.native.build import Object, Unavailable
from resnet_cifar.native.library import load

ENGINE = """
#define API extern "C" __attribute__((visibility("default")))
API const char* rc_sources() { return RC_SOURCES; }
API const char* rc_set() { return "stub"; }
""" + "".join(
    f"API int {name}() {{ return 7; }}\n"
    for name in library.SIGNATURES
    if name not in ("rc_sources", "rc_set", "rc_supported")
)
CPU = 'extern "C" __attribute__((visibility("default"))) int rc_supported() { return 1; }\n'

pytestmark = needs_native


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A folder of sources in the place of cpp/."""
    folder = tmp_path / "cpp"
    write_sources(folder)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "SHIPPED", tmp_path / "lib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    build._own_folder.cache_clear()
    return folder


def write_sources(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "engine.cpp").write_text(ENGINE)
    (folder / "cpu.cpp").write_text(CPU)
    (folder / "exports.map").write_text("{ global: rc_*; local: *; };\n")


def cached(tmp_path: Path) -> list[str]:
    """The objects and leftovers in the cache."""
    return sorted(path.name for path in tmp_path.glob("cache/resnet-cifar/*/*") if path.name != "lock")


@pytest.mark.usefixtures("sources")
def test_it_is_compiled_once_and_says_so(tmp_path, monkeypatch):
    said: list[str] = []
    first = load(None, said.append)
    assert len(said) == 1
    assert re.match(rf"compiling the native engine for {sets.runnable()[0].name} with \S+: ", said[0])
    monkeypatch.setenv("PATH", "")
    assert load(None, said.append).path == first.path
    assert len(said) == 1
    assert cached(tmp_path) == [first.path.name]
    assert (first.set, first.bits) == ("stub", 7)
    assert re.fullmatch(rf"{sets.runnable()[0].name}-[0-9a-f]{{16}}\.so", first.path.name)


@pytest.mark.parametrize("edit", ["engine.cpp", "cpu.cpp", "exports.map", "new.h", "folder/new.h"])
def test_an_edit_is_another_library(sources, tmp_path, edit):
    before = load(None, print)
    (sources / edit).parent.mkdir(exist_ok=True)
    with (sources / edit).open("a") as file:
        file.write("\n")
    after = load(None, print)
    assert after.path.name != before.path.name
    assert cached(tmp_path) == sorted([before.path.name, after.path.name])


def test_an_edit_taken_back_compiles_nothing(sources):
    before = load(None, print)
    (sources / "engine.cpp").write_text(ENGINE + "\n")
    load(None, print)
    (sources / "engine.cpp").write_text(ENGINE)
    said: list[str] = []
    assert load(None, said.append).path == before.path
    assert not said


def test_an_object_of_other_sources_is_refused(sources):
    """Whatever its name says."""
    path = load(None, print).path
    (sources / "engine.cpp").write_text(ENGINE + "\n")
    path.rename(path.with_name(Object.of(sets.runnable()[0]).name))
    with pytest.raises(Unavailable, match=r"was built from other sources$"):
        load(sets.runnable()[0].name, print)


@pytest.mark.usefixtures("sources")
def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"^there is no C\+\+ compiler \(c\+\+, g\+\+ or clang\+\+\)$"):
        load(None, print)
    monkeypatch.setenv("CXX", "nowhere -m64")
    with pytest.raises(Unavailable, match=r"^CXX is nowhere, which is not there$"):
        load(None, print)


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    ("command", "reason"),
    [("{}", r".+/compiler cannot be started \(Exec format error\)"), ("'", r"CXX is no command \(No closing .+\)")],
)
def test_a_compiler_that_cannot_be_started_is_told(tmp_path, monkeypatch, command, reason):
    """As one of another kind of machine."""
    path = tmp_path / "compiler"
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", command.format(shlex.quote(str(path))))
    with pytest.raises(Unavailable, match=f"^{reason}$"):
        load(None, print)
    assert cached(tmp_path) == []


def test_an_error_of_the_compiler_is_told(sources, tmp_path):
    (sources / "engine.cpp").write_text("#warning first\nint broken(;\n")
    with pytest.raises(Unavailable, match=r"^\S+ could not compile it \(engine\.cpp:2:12: error: .+\)$"):
        load(None, print)
    assert cached(tmp_path) == []


def test_two_processes_compile_it_once(sources, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    real = shlex.join(build._compiler())
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(f"{tmp_path}/calls")}\nsleep 0.2\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", shlex.quote(str(compiler)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    code = f"""
from pathlib import Path
from resnet_cifar.native import build, library
build.SOURCES = Path({str(sources)!r})
print(library.load(None, print).path)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].splitlines()[-1] for process in processes}
    assert len(paths) == 1
    assert (tmp_path / "calls").read_text().count("-c engine.cpp") == 1


@pytest.mark.usefixtures("sources")
def test_a_cache_that_cannot_be_written_is_a_folder_of_the_process(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    said: list[str] = []
    paths = [load(None, said.append).path for _ in range(2)]
    assert paths[0] == paths[1]
    assert len(said) == 2
    assert re.match(r"the native engine cannot be kept \(.+\); with XDG_CACHE_HOME", said[0])
    assert not paths[0].is_relative_to(tmp_path)


@pytest.mark.usefixtures("sources")
def test_a_killed_build_leaves_nothing_that_is_loaded(tmp_path):
    path = load(None, print).path
    path.unlink()
    path.with_name(f".{path.name}.part").write_bytes(b"half of it")
    assert load(None, print).path == path
    assert cached(tmp_path) == [path.name]


def test_old_objects_go_when_a_new_one_comes(sources, tmp_path):
    """Those that nobody used for a day, apart from the last few."""
    name = sets.runnable()[0].name
    folder = load(None, print).path.parent
    now = time.time()
    for age in range(1, 8):  # half days
        path = folder / f"{name}-{age}.so"
        path.touch()
        os.utime(path, (now - age * 43_200 - 60,) * 2)
    (folder / "other-7.so").touch()
    os.utime(folder / "other-7.so", (0, 0))
    (sources / "engine.cpp").write_text(ENGINE + "\n")
    load(None, print)
    left = {path.removeprefix(f"{name}-") for path in cached(tmp_path)}
    assert {"1.so", "2.so", "other-7.so"} <= left
    assert not {f"{age}.so" for age in range(3, 8)} & left


@pytest.mark.usefixtures("sources")
def test_a_set_that_is_not_here_is_refused(monkeypatch):
    with pytest.raises(
        InputError, match=r"^RESNET_CIFAR_SIMD is 'mmx', which this machine does not run; it has .+, plain\.$"
    ):
        load("mmx", print)
    monkeypatch.setattr(sets, "_processor", set)
    absent = next((each for each in sets.compilable() if each.needs), None)
    if absent:
        with pytest.raises(InputError, match=rf"^RESNET_CIFAR_SIMD is '{absent.name}', which .+; it has plain\.$"):
            load(absent.name, print)
        with pytest.raises(Unavailable, match=r"^this processor has none of avx512, avx2, neon$"):
            load(None, print)
    assert load("plain", print).set == "stub"


def test_the_library_has_the_last_word(sources):
    first = sets.runnable()[0]
    (sources / "cpu.cpp").write_text(
        CPU.replace("return 1", f"\n#ifdef {first.define[2:]}\nreturn 0;\n#endif\nreturn 1")
    )
    with pytest.raises(Unavailable, match=rf"^this machine does not run {first.name}$"):
        load(first.name, print)
    others = [each.name for each in sets.runnable(sets.FAST)[1:]]
    if others:
        assert load(None, print).path.name.startswith(others[0])


@pytest.mark.usefixtures("sources")
def test_another_system_has_none(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(Unavailable, match=r"^it is made for Linux alone$"):
        load(None, print)


@pytest.mark.usefixtures("sources")
def test_a_shipped_object_needs_no_compiler(tmp_path, monkeypatch):
    build.SHIPPED.mkdir()
    shipped = Object.of(sets.runnable()[0])
    build.make(shipped, build.SHIPPED, print)
    monkeypatch.setenv("PATH", "")
    assert load(None, print).path == build.SHIPPED / shipped.name
    assert cached(tmp_path) == []


@pytest.mark.usefixtures("sources")
def test_a_shipped_object_that_does_not_load_is_compiled_here():
    build.SHIPPED.mkdir()
    (build.SHIPPED / Object.of(sets.runnable()[0]).name).write_bytes(b"for another C library")
    assert load(None, print).path.parent != build.SHIPPED


@pytest.mark.parametrize("compiler", [True, False])
def test_the_wheel_ships_objects_and_sources(tmp_path, compiler):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "src/resnet_cifar"
    shutil.copytree(ROOT / "src/resnet_cifar", package, ignore=shutil.ignore_patterns("cpp", "lib", "__pycache__"))
    write_sources(package / "native/cpp")
    (package / "native/cpp/folder").mkdir()
    (package / "native/cpp/folder/new.h").touch()
    for left in ("old.py", "native/cpp/old.h", "native/lib/old.so"):  # by an earlier build
        (tmp_path / "made/resnet_cifar" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made/resnet_cifar" / left).touch()
    environment = os.environ | ({} if compiler else {"PATH": str(tmp_path)})
    environment.pop("CXX", None)
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "made", "bdist_wheel"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("resnet_cifar/")]
    objects = {Path(file).name.split("-")[0] for file in files if "/native/lib/" in file}
    assert objects == ({each.name for each in sets.compilable(sets.FAST)} if compiler else set())
    assert ("ships no native engine" in done.stderr) != compiler
    weights = {file for file in files if file.startswith("resnet_cifar/pretrained/")}
    assert weights == {f"resnet_cifar/pretrained/{path.name}" for path in (package / "pretrained").iterdir()}
    assert "resnet_cifar/pretrained/resnet-3-0.safetensors" in weights
    shipped = {file.partition("/cpp/")[2] for file in files if "/native/cpp/" in file}
    assert shipped == {"engine.cpp", "cpu.cpp", "exports.map", "folder/new.h"}
    assert "resnet_cifar/old.py" not in files
