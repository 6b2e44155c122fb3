"""The pipeline through DVC, end to end, on a tiny data set in the real format, in a clone of its own."""

import json
import re
import sys
from collections.abc import Iterator

import pytest
import yaml
from clone import Clone, ran
from conftest import ROOT
from test_dependencies import DECIDING, NUMERICS

PACKAGE = "src/resnet_cifar"
CELL = "train@resnet-1-0"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Clone]:
    """After a first `dvc repro`, with the engine that users have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESNET_CIFAR_SIMD")
        yield Clone.reproduced(tmp_path_factory)


@pytest.fixture
def narrowed(clone):
    """Parameters that a test sets, and afterwards those of the first run."""
    yield clone.compose
    clone.compose("model.n=1")


def test_the_report_has_the_row(clone):
    text = (clone.folder / "reports/metrics.md").read_text()
    assert "quick run" in text.partition("\n")[0]
    assert re.search(r"ResNet-8\b.*75,290", text)  # 464 + 4,672 + 13,952 + 55,552 + 650: conv1 and bn1, layers, fc


def test_a_second_repro_runs_nothing_and_leaves_git_clean(clone):
    assert clone.would_run() == []
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_clone_with_other_line_ends_wanted_is_up_to_date(clone, tmp_path):
    """As Windows' git is set up; .gitattributes keeps every byte."""
    clone.run("git", "-c", "core.autocrlf=true", "clone", "--quiet", ".", str(tmp_path / "clone"))
    assert "w/crlf" not in clone.run("git", "-C", str(tmp_path / "clone"), "ls-files", "--eol").stdout
    assert ran(clone.run("dvc", "--cd", str(tmp_path / "clone"), "repro", "--dry", "--allow-missing").stdout) == []


def test_the_lock_has_a_hash_of_each_file_of_a_run(clone):
    """So that git shows whether weights, curve or only the times are others."""
    outs = yaml.safe_load((clone.folder / "dvc.lock").read_text())["stages"][CELL]["outs"]
    names = ("history.csv", "run.json", "weights.safetensors")
    assert sorted(out["path"] for out in outs) == [f"runs/resnet-1-0/{name}" for name in names]
    assert len({out["md5"] for out in outs}) == 3


def test_an_edit_that_changes_no_byte_makes_nothing_stale(clone):
    """Messages, settings, progress, saved states, commands: every file that decides nothing, all at once."""
    deciding = set().union(*DECIDING.values())
    files = [path.relative_to(ROOT / PACKAGE).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")]
    others = [name for name in files if name not in deciding]
    assert {"errors.py", "settings.py", "training/session.py", "training/states.py", "commands/train.py"} <= set(others)
    with clone.edited(f"{PACKAGE}/{name}" for name in others):
        assert clone.would_run() == []


def test_an_edit_of_each_file_that_decides_bytes_makes_its_stage_stale(clone):
    names = {stage: {f"{PACKAGE}/{name}" for name in DECIDING[stage]} for stage in DECIDING}
    with clone.edited(sorted(set().union(*names.values()))):
        stages = {"train": CELL, "evaluate": "evaluate@resnet-1-0", "preprocess": "preprocess", "report": "report"}
        assert clone.changed(*stages.values()) == {stages[name]: names[name] for name in stages}
    assert len(names["train"]) == len(NUMERICS) > 15


def test_style_reruns_the_report_alone(clone):
    with clone.edited([f"{PACKAGE}/report/figures.py"]):
        assert clone.would_run() == ["report"]


def test_an_edit_of_one_deciding_file_retrains(clone):
    with clone.edited([f"{PACKAGE}/numerics/protocol.py"]):
        assert clone.would_run() == [CELL]  # evaluation and report follow if what comes out is another


def test_a_learning_rate_retrains_but_does_not_download(clone, narrowed):
    narrowed("model.n=1", "train.lr=0.05")
    assert clone.would_run() == [CELL, "report"]  # evaluation follows if the weights change


def test_a_mistake_in_the_parameters_stops_with_its_sentence_and_loses_nothing(clone, narrowed):
    report = clone.folder / "reports/metrics.md"
    before = report.read_text()
    narrowed("model.n=1", "train.seeds=[]")
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "train.seeds: the list is empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert report.read_text() == before


def test_another_seed_trains_one_cell(clone, narrowed):
    narrowed("model.n=1", "train.seeds=[0,1]")
    assert set(json.loads(clone.dvc("status", "--json"))) == {"train@resnet-1-1", "evaluate@resnet-1-1", "report"}


def test_exp_run_with_another_depth_trains_that_network_alone(clone, tmp_path):
    """`dvc exp run -S model.n=9`, and the lines of the README that load a trained network: they reproduce its row.

    Its way back leaves nothing that the experiment added for the report to depend on.
    """
    mine = clone.copy(tmp_path / "clone")
    output = mine.dvc("exp", "run", "-S", "model.n=9")
    assert ran(output) == ["train@resnet-9-0", "evaluate@resnet-9-0", "report"]
    metrics = json.loads((mine.folder / "reports/metrics.json").read_text())
    assert list(metrics) == ["ResNet-56"]
    assert "853,018" in (mine.folder / "reports/metrics.md").read_text()

    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = mine.run(sys.executable, "-c", lines).stdout
    assert float(printed) == metrics["ResNet-56"]["error_mean"]

    (back,) = re.findall(r"`(git checkout .* && dvc repro --pull)` returns", (ROOT / "README.md").read_text())
    mine.run("sh", "-c", back)
    assert not (mine.folder / "runs/resnet-9-0").exists()
    assert mine.run("git", "status", "--porcelain").stdout == ""
