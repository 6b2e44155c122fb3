"""dvc.yaml's dependencies are exactly what can change a stage's outputs: that makes "only changed stages" true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_tiny_dataset

from resnet_cifar.training import provenance

SOURCE = ROOT / "src"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# What a stage imports without depending on it, and why that is safe.
EXEMPT = {
    "src/resnet_cifar/__init__.py": "empty",
    "src/resnet_cifar/report/__init__.py": "empty",
    "src/resnet_cifar/training/__init__.py": "empty",
    "src/resnet_cifar/errors.py": "says what went wrong; a stage that succeeds does not use it",
    "src/resnet_cifar/progress.py": "shows progress; writes no file",
    "src/resnet_cifar/params.py": "reads and checks params.yaml; what it reads are the stage's params",
    "src/resnet_cifar/cells.py": "names and paths, which are the stage's key and outs",
    "src/resnet_cifar/training/packing.py": "which cells train when; a test shows that this changes no byte",
    "src/resnet_cifar/training/runs.py": "clocks, saved states and run.json; tests show that it changes no weight",
    "src/resnet_cifar/training/resume.py": "interrupted runs; a test shows the same bytes from any iteration",
    "src/resnet_cifar/training/provenance.py": "digests, which go into run.json alone",
}
# Except where the exempt file is what the stage is about.
SHOWN = {"report": {"src/resnet_cifar/cells.py"}}


def module_path(name: str) -> Path | None:
    path = SOURCE / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, packages' __init__.py included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name for name in names if name.partition(".")[0] == "resnet_cifar"}
    parts = {".".join(name.split(".")[:end]) for name in names for end in range(1, len(name.split(".")) + 1)}
    return {found for part in parts if (found := module_path(part))}


def closure(script: Path) -> set[str]:
    """Everything in the project that a script imports, directly or not."""
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        for path in imported(waiting.pop()) - seen:
            seen.add(path)
            waiting.append(path)
    return {str(path.relative_to(ROOT)) for path in seen}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_what_it_imports_and_on_nothing_else(stage):
    needed = closure(ROOT / f"stages/{stage}.py") - (EXEMPT.keys() - SHOWN.get(stage, set()))
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == needed


def test_exemptions_exist():
    assert all((ROOT / path).exists() for path in EXEMPT)


def test_the_code_digest_covers_the_train_stage():
    assert {f"src/resnet_cifar/{name}" for name in provenance.CODE} == {
        dep for dep in STAGES["train"]["deps"] if dep.endswith(".py")
    }


def test_dependencies_are_files_that_exist_or_outs():
    outs = ("data/", "runs", "results")
    for stage in STAGES.values():
        assert all(dep.startswith(outs) or (ROOT / dep).is_file() for dep in stage["deps"])


def test_training_needs_five_packages_and_no_dvc(compose, tmp_path):
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
"""
    script = str(ROOT / "stages/train.py")
    done = subprocess.run([sys.executable, "-c", code, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/resnet-1-0/weights.safetensors").exists()
