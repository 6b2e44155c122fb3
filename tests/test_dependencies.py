"""dvc.yaml's dependencies are exactly what can change a stage's outputs: that makes "only changed stages" true.

Which files those are is a decision, which the tables below state; the imports, taken from the source, show that no file
is left undecided.
"""

import ast
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_tiny_dataset

PACKAGE = ROOT / "src/resnet_cifar"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
READS = {
    "download": set(),
    "preprocess": {"data/raw"},
    "train": {"data/cifar10.safetensors"},
    "evaluate": {"data/cifar10.safetensors", "runs/${key}/run.json", "runs/${key}/weights.safetensors"},
    "report": {"benchmarks/throughput.csv", "runs", "results"},
}
"""What each stage reads beside code and parameters."""
NUMERICS = {f"numerics/{path.name}" for path in (PACKAGE / "numerics").glob("*.py")}

DECIDING = {
    "download": {"sources/published.py"},  # the MD5 of each file, whichever source gives it
    "preprocess": {"cifar10.py"},
    "train": NUMERICS,
    "evaluate": {
        *("evaluation.py", "responses.py"),
        *("numerics/__init__.py", "numerics/data.py", "numerics/elementary.py", "numerics/logits.py"),
        *("numerics/metrics.py", "numerics/models.py", "numerics/weights.py"),
        "numerics/bits.py",  # of the native engine's logits
        "numerics/determinism.py",  # of torch's
    },
    "report": {
        *("cells.py", "cifar10.py"),  # names of networks and classes
        *(f"report/{name}.py" for name in ("canvas", "depth", "figures", "outcome", "paper")),
        *(f"report/{name}.py" for name in ("speed", "statistics", "tables", "text", "writer")),
    },
}
"""The files of the package that decide a stage's bytes: those that dvc.yaml lists, beside the stage's own script."""

DATA_FILES = {"report": {"report/published.csv"}}
"""What the package has beside code, likewise."""

BEHIND = {"evaluate": {"numerics/bits.py", "numerics/determinism.py"}}
"""Those of them that are reached only through a room that is exempt as a whole."""

EXEMPT = {
    "commands/*": "arguments and help texts; what they pass on stands in the stage's cmd, which DVC compares",
    "errors.py": "says what went wrong; a stage that succeeds does not use it",
    "progress.py": "shows progress; writes no file",
    "settings.py": "how a command is executed, which is no parameter; run.json records it",
    "files.py": "writes files whole, and their digests; the content comes from others",
    "params.py": "reads and checks params.yaml; what it reads are the stage's params",
}
"""What every stage may import, and why an edit there changes no byte of a stage that succeeds."""

EXEMPT_OF = {
    "download": {
        "sources/*": "ways to get the files; each file is checked against its MD5",
        "training/*": "that it ends with DVC",
    },
    "train": {
        "cells.py": "names and paths, which are the stage's key and outs",
        "dataset.py": "reads the file of the preprocess stage, or says why it cannot",
        "machine.py": "chooses the device and names it; run.json records it",
        "training/*": "which cells, when and where; tests show that it changes no byte",
        "native/*": "the native engine's bits have a version, numerics/bits.py, and golden hashes",
    },
    "evaluate": {
        "cells.py": "names and paths, which are the stage's key and outs",
        "dataset.py": "reads the file of the preprocess stage, or says why it cannot",
        "machine.py": "chooses the device, or says why it cannot be used; what computes is in numerics/",
        "checkpoint.py": "reads weights strictly: all of them as they are, or an error",
        "results.py": "files and digests; what is measured comes from evaluation.py",
        "training/*": "the record that says who trained, and the choice of the engine",
        "native/*": "the native engine's bits have a version, numerics/bits.py, and golden hashes",
    },
    "report": {
        "report/reading.py": "reads and checks; what is shown is as the files have it",
        "results.py": "reads and checks the evaluations",
        "evaluation.py": "the types of what is read",
        "training/*": "reads and checks the records",
        "numerics/protocol.py": "what the paper's parameters are compared with",
    },
}
"""The same of single stages."""

WALLS = {
    "evaluate": ("training/*", "native/*"),  # how cells are trained is no matter of evaluation
    "report": ("results.py", "evaluation.py", "training/*", "params.py"),  # nothing is computed again
    "preprocess": ("params.py",),
    "download": (),
    "train": (),
}
"""Exempt files whose own imports cannot matter either."""


def module_path(name: str) -> Path | None:
    path = ROOT / "src" / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


class Imports(ast.NodeVisitor):
    """The names that a file imports when it runs: not those for the type checker alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.names = path, set[str]()
        self.visit(ast.parse(path.read_text()))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
        for other in node.orelse:
            self.visit(other)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.path}: imports are absolute"
        self.names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, packages' __init__.py included."""
    names = {name for name in Imports(path).names if name.partition(".")[0] == "resnet_cifar"}
    parts = {".".join(name.split(".")[:end]) for name in names for end in range(1, len(name.split(".")) + 1)}
    return {found for part in parts if (found := module_path(part))}


def closure(script: Path, walls: tuple[str, ...] = ()) -> set[str]:
    """Everything in the package that a script imports, directly or not; of what matches ``walls`` no imports."""
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path != script and matches(path.relative_to(PACKAGE).as_posix(), walls):
            continue
        new = imported(path) - seen
        seen |= new
        waiting += new
    return {path.relative_to(PACKAGE).as_posix() for path in seen}


def matches(name: str, patterns: tuple[str, ...] | dict[str, str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_empty(name: str) -> bool:
    """Whether a package's __init__.py has nothing but its docstring."""
    tree = ast.parse((PACKAGE / name).read_text())
    return name.endswith("__init__.py") and len(tree.body) <= (ast.get_docstring(tree) is not None)


# ---- The tables


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_what_decides_a_stage_and_nothing_else(stage):
    files = DECIDING[stage] | DATA_FILES.get(stage, set())
    listed = set(STAGES[stage]["deps"]) - READS[stage]
    assert listed == {f"src/resnet_cifar/{name}" for name in files} | {f"stages/{stage}.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_what_a_stage_reads(stage):
    assert {dep for dep in STAGES[stage]["deps"] if not dep.startswith(("src/", "stages/"))} == READS[stage]


def test_dvc_lists_every_parameter_key_by_key():
    conf = yaml.safe_load((ROOT / "conf/config.yaml").read_text())
    every = {f"{section}.{key}" for section in ("model", "data", "train") for key in conf[section]}
    matrix = {"model.net", "model.n", "train.seeds"}
    assert set(STAGES["train"]["params"]) == every - matrix - {"data.validation"}
    assert STAGES["preprocess"]["params"] == ["data.validation"]
    assert STAGES["report"]["params"] == [{"params.yaml": None}]


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_decided_on(stage):
    reached = {name for name in closure(ROOT / f"stages/{stage}.py", WALLS[stage]) if not is_empty(name)}
    deciding = {name for name in DECIDING[stage] if not is_empty(name)}
    exempt = EXEMPT | EXEMPT_OF.get(stage, {})
    undecided = {name for name in reached - deciding if not matches(name, exempt)}
    assert undecided == set()
    assert deciding - reached == BEHIND.get(stage, set())
    everything = closure(ROOT / f"stages/{stage}.py")
    assert everything >= BEHIND.get(stage, set())


@pytest.mark.parametrize("stage", STAGES)
def test_no_exemption_is_idle(stage):
    everything = closure(ROOT / f"stages/{stage}.py")
    for pattern in EXEMPT_OF.get(stage, {}):
        assert any(fnmatchcase(name, pattern) for name in everything), pattern
    assert all(any(fnmatchcase(name, pattern) for name in everything) for pattern in WALLS[stage])


def test_dependencies_are_files_that_exist_or_outs():
    outs = ("data/", "runs", "results")
    for stage in STAGES.values():
        assert all(dep.startswith(outs) or (ROOT / dep).is_file() for dep in stage["deps"])


# ---- The folder of what decides the bytes of weights and history


@pytest.mark.parametrize("name", sorted(NUMERICS))
def test_what_decides_bytes_imports_nothing_else_of_the_package(name):
    used = {path.relative_to(PACKAGE).as_posix() for path in imported(PACKAGE / name)}
    assert {other for other in used if not is_empty(other)} <= NUMERICS


def test_what_decides_bytes_is_all_used_in_training():
    """A file that no run imports would make every cell stale and decide nothing."""
    assert {name for name in NUMERICS if not is_empty(name)} <= closure(ROOT / "stages/train.py")


def test_imports_for_the_type_checker_do_not_count(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from resnet_cifar.params import Study\nelse:\n    import resnet_cifar.files\n"
        "def f():\n    from resnet_cifar import cells\n"
    )
    assert {found.name for found in imported(path)} == {"__init__.py", "files.py", "cells.py"}


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_nothing_else_is_imported_with_a_command(name):
    """The imports of the source are those that Python makes: nothing is imported by name in secret."""
    code = (
        "import sys; from resnet_cifar.commands import " + name + "\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('resnet_cifar') and m.__file__), sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = {Path(line).relative_to(PACKAGE).as_posix() for line in done.stdout.splitlines()}
    assert loaded <= closure(ROOT / f"stages/{name}.py")


def test_training_needs_five_packages_and_no_dvc_and_imports_nothing_in_secret(compose, tmp_path):
    """A GPU machine has torch, numpy, safetensors, PyYAML and pydantic; here a cell is trained with the rest hidden."""
    overrides = ["model.n=1", "train.seeds=0", "train.iterations=2", "train.batch_size=16", "train.milestones=[1]"]
    (tmp_path / "params.yaml").write_text(compose(*overrides, "train.warmup.iterations=0"))
    write_tiny_dataset(tmp_path / "data/cifar10.safetensors")
    code = """
import sys
from importlib.metadata import distributions
allowed = {"torch", "numpy", "safetensors", "pyyaml", "pydantic", "pydantic_core", "annotated_types", "setuptools",
           "typing_extensions", "typing_inspection", "sympy", "mpmath", "filelock", "jinja2", "markupsafe", "networkx",
           "fsspec", "triton"}  # the five, and what they need themselves
blocked = set()
for distribution in distributions():
    name = distribution.metadata["Name"].lower().replace("-", "_")
    if name in allowed or name.startswith(("nvidia", "cuda", "resnet")):
        continue
    files = [str(file) for file in distribution.files or [] if file.suffix == ".py"]
    tops = {file.split("/")[0].removesuffix(".py") for file in files}
    blocked |= {top for top in tops if top.isidentifier()}
assert {"dvc", "timm", "pandas", "torchvision", "matplotlib", "scipy"} <= blocked
for finder in list(sys.meta_path):
    def find_spec(name, path=None, target=None, find=finder.find_spec):
        return None if name.partition(".")[0] in blocked else find(name, path, target)
    sys.meta_path[sys.meta_path.index(finder)] = type("Hiding", (), {"find_spec": staticmethod(find_spec)})
import runpy
script = sys.argv[1]
sys.argv = [script, "--cells", "resnet-1-0"]
runpy.run_path(script, run_name="__main__")
assert not blocked & {name.partition(".")[0] for name in sys.modules}
print(*(m.__file__ for n, m in sys.modules.items() if n.startswith("resnet_cifar") and m.__file__), sep="\\n")
"""
    script = str(ROOT / "stages/train.py")
    done = subprocess.run([sys.executable, "-c", code, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/resnet-1-0/weights.safetensors").exists()
    assert {Path(line).relative_to(PACKAGE).as_posix() for line in done.stdout.splitlines()} <= closure(Path(script))
