"""The pipeline through DVC, end to end, on a tiny data set in the real format, in a clone of its own."""

import json
import re
import sys

import pytest
from clone import Clone, ran
from conftest import ROOT


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    """After a first `dvc repro`."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    output = made.dvc("repro")
    assert ran(output) == ["preprocess", "train@resnet-1-0", "evaluate@resnet-1-0", "report"]
    made.save()
    return made


def test_the_report_has_the_row(clone):
    text = (clone.folder / "reports/metrics.md").read_text()
    assert "quick run" in text.partition("\n")[0]
    assert re.search(r"ResNet-8\b.*75,290", text)  # 464 + 4,672 + 13,952 + 55,552 + 650: conv1 and bn1, layers, fc


def test_a_second_repro_runs_nothing_and_leaves_git_clean(clone):
    assert clone.would_run() == []
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_style_reruns_the_report_alone(clone):
    figures = clone.folder / "src/resnet_cifar/report/figures.py"
    before = figures.read_text()
    figures.write_text(before + "\n# a change of style\n")
    try:
        assert clone.would_run() == ["report"]
    finally:
        figures.write_text(before)


def test_a_learning_rate_retrains_but_does_not_download(clone):
    clone.compose("model.n=1", "train.lr=0.05")
    try:
        assert clone.would_run() == ["train@resnet-1-0", "report"]  # evaluation follows if the weights change
    finally:
        clone.compose("model.n=1")


def test_how_training_is_shown_or_packed_retrains_nothing(clone):
    changed = [clone.folder / f"src/resnet_cifar/{name}" for name in ("progress.py", "training/packing.py", "zoo.py")]
    before = [path.read_text() for path in changed]
    for path, text in zip(changed, before, strict=True):
        path.write_text(text + "\n# a change\n")
    try:
        assert clone.would_run() == []
    finally:
        for path, text in zip(changed, before, strict=True):
            path.write_text(text)


def test_a_mistake_in_the_parameters_stops_with_its_sentence_and_loses_nothing(clone):
    report = clone.folder / "reports/metrics.md"
    before = report.read_text()
    clone.compose("model.n=1", "train.seeds=[]")
    try:
        done = clone.run("dvc", "repro", check=False)
        assert done.returncode != 0
        assert "train.seeds: the list is empty" in done.stderr
        assert "Traceback" not in done.stderr
        assert report.read_text() == before
    finally:
        clone.compose("model.n=1")


def test_a_new_seed_trains_one_cell(clone):
    clone.compose("model.n=1", "train.seeds=[0,1]")
    assert ran(clone.dvc("repro")) == ["train@resnet-1-1", "evaluate@resnet-1-1", "report"]
    assert list(json.loads((clone.folder / "reports/metrics.json").read_text())) == ["ResNet-8"]
    clone.save()


def test_exp_run_with_another_depth_trains_that_network_alone(clone):
    """`dvc exp run -S model.n=9`, last because it narrows the checkout."""
    output = clone.dvc("exp", "run", "-S", "model.n=9")
    assert ran(output) == ["train@resnet-9-0", "evaluate@resnet-9-0", "report"]
    metrics = json.loads((clone.folder / "reports/metrics.json").read_text())
    assert list(metrics) == ["ResNet-56"]
    assert "853,018" in (clone.folder / "reports/metrics.md").read_text()

    # The lines of the README that load a trained network reproduce its row.
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = clone.run(sys.executable, "-c", lines).stdout
    assert float(printed) == metrics["ResNet-56"]["error_mean"]
