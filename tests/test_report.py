"""The report, from results made up here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.report import figures, speed
from resnet_cifar.report.outcome import follows_the_paper, load
from resnet_cifar.report.statistics import summarize
from resnet_cifar.report.writer import write
from resnet_cifar.training.protocol import recipe

ROOT = Path(__file__).resolve().parents[1]
THROUGHPUT = ROOT / "benchmarks/throughput.csv"
PARAMETERS = {3: 269_722, 5: 464_154, 7: 658_586, 9: 853_018, 18: 1_727_962}


def make_results(folder: Path, study: Params) -> None:
    """Leave what training and evaluation would: the shape of the real curves, noise for the numbers."""
    for cell in study.list_cells():
        _make_cell(folder, study, cell)


def _make_cell(folder: Path, study: Params, cell: Cell) -> None:
    random = np.random.default_rng([cell.n, cell.seed, cell.net == "plain"])
    train = study.train
    iterations = np.minimum(np.arange(0, train.iterations, train.eval_every) + train.eval_every, train.iterations)
    rate = train.lr * train.gamma ** sum((iterations > milestone).astype(int) for milestone in train.milestones)
    if cell.net == "resnet":
        final = 6.4 + 5.5 / cell.n + random.normal(0, 0.2)
    else:
        final = 8.4 + 0.5 * cell.n + random.normal(0, 0.3)
    error = final + 12 * rate / train.lr + 50 * np.exp(-12 * iterations / train.iterations)
    error += random.normal(0, 1, len(error)) * rate / train.lr
    error[-1] = round(final, 2)
    splits = {"train": 0.6 * error, "test": error}
    if study.data.validation:
        splits["validation"] = error + 0.25
    columns = {"iteration": iterations, "lr": rate}
    for split, errors in splits.items():
        columns |= {f"{split}_loss": errors / 30, f"{split}_error": errors}
    files = run_files(folder / "runs", cell)
    files.folder.mkdir(parents=True)
    pd.DataFrame(columns).to_csv(files.history, index=False)
    identity = {
        "cell": cell.name,
        "net": cell.net,
        "n": cell.n,
        "seed": cell.seed,
        "weights_sha256": f"{cell.name:x>64}",
    }
    record = {
        "seconds": 61.5 * cell.n + cell.seed,
        "images_per_second": 12345.6 / cell.n,
        "iterations": train.iterations,
        "device": "NVIDIA H200",
        "threads": 16,
        "torch": "2.11.0",
        "precision": "bf16",
        "eval_every": train.eval_every,
        "digests": {"code": "a", "parameters": recipe(study, cell, "bf16").digest, "data": "c"},
        "resumed_at": [],
    }
    files.record.write_text(json.dumps(identity | record))
    mistakes = random.dirichlet(np.ones(10), size=10) * 10 * final
    confusion = mistakes.astype(int) * (1 - np.eye(10, dtype=int))
    confusion += np.diag(1000 - confusion.sum(axis=1))
    evaluated = {
        "error": round(final, 2),
        "loss": final / 30,
        "calibration_error": 3.2,
        "class_errors": list(100 - confusion.diagonal() / 10),
        "confusion": confusion.tolist(),
    }
    metrics = {
        "parameters": PARAMETERS.get(cell.n, 100_000 * cell.n),
        "test": evaluated,
        "validation": evaluated | {"error": round(final + 0.25, 2)} if study.data.validation else None,
    }
    result = folder / "results" / cell.name
    result.mkdir(parents=True)
    (result / "metrics.json").write_text(json.dumps(identity | metrics))


@pytest.fixture
def study_of(compose):
    def made(*overrides: str) -> Params:
        return Params.model_validate(yaml.safe_load(compose(*overrides)))

    return made


@pytest.fixture
def rendered(tmp_path, study_of):
    """Render a study's report from made-up results; returns its folder."""

    def made(*overrides: str) -> Path:
        study = study_of(*overrides)
        make_results(tmp_path, study)
        write(study, tmp_path / "runs", tmp_path / "results", THROUGHPUT, tmp_path / "reports")
        return tmp_path / "reports"

    return made


@pytest.fixture
def no_figures(monkeypatch):
    """Leave the figures out, where a test is about words and numbers."""
    for name in ("error_vs_depth", "training", "confusion"):
        monkeypatch.setattr(figures, name, lambda *args: args[-1].write_bytes(b""))


def _set_error(folder: Path, cell: str, error: float) -> None:
    path = folder / "results" / cell / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["test"]["error"] = error
    path.write_text(json.dumps(metrics))


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _table(text: str) -> list[dict[str, str]]:
    """The first Markdown table of a text."""
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    rows = []
    for line in lines[2:]:
        if len(line) != len(lines[0]) or line[0] == "Network":
            break
        rows.append(dict(zip(lines[0], line, strict=True)))
    return rows


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- The numbers -----------------------------------------------------------------------------------------------


def test_summary_by_hand():
    """8, 9 and 10: s = 1, t(0.975, 2) = 4.303; of the mean t/sqrt(3) = 2.484, of one more run t*sqrt(4/3) = 4.968."""
    summary = summarize([8.0, 9.0, 10.0])
    assert (summary.runs, summary.mean, summary.std) == (3, 9.0, 1.0)
    assert summary.interval == pytest.approx((9 - 2.4841, 9 + 2.4841), abs=1e-4)
    assert summary.prediction == pytest.approx((9 - 4.9683, 9 + 4.9683), abs=1e-4)


def test_one_run_has_a_mean_and_nothing_else():
    summary = summarize([8.5])
    assert (summary.mean, summary.std, summary.interval, summary.prediction) == (8.5, None, None, None)


@pytest.mark.usefixtures("no_figures")
def test_the_table_of_the_paper_preset(tmp_path, study_of):
    """Five runs 8.1, 8.2, 8.3, 8.4, 8.5: s = 0.1581, t(0.975, 4) = 2.776, so 8.30 ± 0.196 and ± 0.481."""
    study = study_of("preset=paper", "model.n=[3,18]")
    make_results(tmp_path, study)
    for seed, error in enumerate((8.3, 8.1, 8.5, 8.2, 8.4)):
        _set_error(tmp_path, f"resnet-3-{seed}", error)
    write(study, tmp_path / "runs", tmp_path / "results", THROUGHPUT, tmp_path / "reports")
    text = (tmp_path / "reports/metrics.md").read_text()
    first, second = _table(text)
    assert first == {
        "Network": "ResNet-20",
        "Parameters": "269,722",
        "Runs": "5",
        "Test error, %": "8.30 ± 0.16",
        "95% interval of the mean": "8.10 to 8.50",
        "Best (seed)": "8.10 (1)",
        "Worst (seed)": "8.50 (2)",
        "Paper": "8.75",
        "Article": "8.59 ± 0.12",
        "The paper's run is": "inside 7.82 to 8.78",
    }
    assert (second["Network"], second["Paper"], second["Article"]) == ("ResNet-110", "6.61 ± 0.16", "–")
    assert second["The paper's run is"] == "–"  # it is a mean of five, which one further run does not compare with
    assert "64,000 iterations" in text
    assert "5 runs on NVIDIA H200" not in text  # ten runs on one kind of machine
    assert "10 runs on NVIDIA H200 (16 CPU threads, PyTorch 2.11.0, bf16)" in text


@pytest.mark.usefixtures("no_figures")
def test_a_paper_run_outside_the_prediction_interval_is_said_to_be(tmp_path, study_of):
    study = study_of("preset=paper", "model.n=3")
    make_results(tmp_path, study)
    for seed in range(5):
        _set_error(tmp_path, f"resnet-3-{seed}", 8.0 + seed / 100)
    write(study, tmp_path / "runs", tmp_path / "results", THROUGHPUT, tmp_path / "reports")
    (row,) = _table((tmp_path / "reports/metrics.md").read_text())
    assert row["The paper's run is"].startswith("outside ")


@pytest.mark.usefixtures("no_figures")
def test_one_run_has_dashes(rendered):
    (row,) = _table((rendered("preset=paper", "model.n=3", "train.seeds=7") / "metrics.md").read_text())
    assert re.fullmatch(r"\d\.\d\d ± –", row["Test error, %"])
    assert (row["95% interval of the mean"], row["The paper's run is"]) == ("–", "–")
    assert row["Best (seed)"] == row["Worst (seed)"]


@pytest.mark.usefixtures("no_figures")
def test_a_quick_run_says_so_first_and_compares_with_nothing(rendered):
    text = (rendered() / "metrics.md").read_text()
    first, _, rest = text.partition("\n")
    assert "quick run of 40 iterations" in first
    assert "Paper" not in rest
    assert "8.75" not in rest


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.iterations=50000"],
        ["train.lr=0.05"],
        ["data.normalize=channel"],
        ["data.validation=40000"],
        ["train.warmup.min_n=1"],
        ["train.warmup.iterations=63999", "model.n=[3,18]"],
    ],
)
def test_another_protocol_is_said_to_be_one_and_compared_with_nothing(rendered, overrides):
    text = (rendered("preset=paper", "model.n=3", *overrides) / "metrics.md").read_text()
    assert "another protocol than the paper's" in text.partition("\n")[0]
    assert "8.75" not in text
    assert "Article" not in text


@pytest.mark.parametrize("override", ["model.n=[3,5,7,9]", "model.n=[3,18]", "data.validation=5000"])
def test_the_paper_preset_is_compared(study_of, override):
    assert follows_the_paper(study_of("preset=paper", override))


@pytest.mark.usefixtures("no_figures")
def test_plain_networks_have_the_values_read_off_the_figure(rendered):
    text = (
        rendered("preset=paper", "model.net=[plain,resnet]", "model.n=3", "model.shortcut=B") / "metrics.md"
    ).read_text()
    resnet, plain = _table(text)
    assert (resnet["Network"], resnet["Paper"]) == ("ResNet-20", "–")  # with shortcut B the paper reports none
    assert (plain["Network"], plain["Paper"]) == ("Plain-20", "≈ 9.7")


@pytest.mark.usefixtures("no_figures")
def test_validation_stands_beside_the_test_error(rendered):
    folder = rendered("data.validation=5000", "model.n=3")
    (row,) = _table((folder / "metrics.md").read_text())
    test, validation = (float(row[f"{split} error, %"].split()[0]) for split in ("Test", "Validation"))
    assert validation == pytest.approx(test + 0.25, abs=0.011)
    assert {"validation_error", "test_error"} <= set(pd.read_csv(folder / "results.csv"))
    assert {"validation_error", "test_error"} <= set(pd.read_csv(folder / "curves.csv"))


@pytest.mark.usefixtures("no_figures")
def test_machine_readable_files(rendered):
    folder = rendered("model.n=[9,3]")
    results = pd.read_csv(folder / "results.csv")
    assert list(results["cell"]) == ["resnet-3-0", "resnet-3-1", "resnet-9-0", "resnet-9-1"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["ResNet-20", "ResNet-56"]
    assert metrics["ResNet-56"].keys() == {"error_mean", "error_std", "runs"}
    errors = results.loc[results["n"] == 9, "test_error"]
    assert metrics["ResNet-56"]["error_mean"] == pytest.approx(errors.mean(), abs=1e-4)
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves["iteration"]) == [20, 40] * 4


@pytest.mark.usefixtures("no_figures")
def test_published_values_are_those_of_the_papers_table_6(study_of, tmp_path):
    study = study_of("preset=paper", "model.n=[3,5,7,9,18,200]", "train.seeds=0")
    make_results(tmp_path, study)
    published = load(study, tmp_path / "runs", tmp_path / "results").published
    paper = published[published["source"] == "paper"].set_index("network")["error"]
    assert paper.tolist() == [8.75, 7.51, 7.17, 6.97, 6.61, 7.93]


def test_the_newest_measurement_of_each_device_is_shown(tmp_path):
    path = tmp_path / "throughput.csv"
    header = ",".join(speed.COLUMNS)
    old, new, other, one_thread = (
        f"2026-01-0{day},{gpu},{threads},2.14,ResNet-20,loop,fp32,1,{rate},1,1"
        for day, gpu, threads, rate in ((1, "A", 2, 100), (2, "A", 2, 200), (1, "B", 2, 300), (3, "A", 1, 400))
    )
    path.write_text("\n".join([header, old, other, new, one_thread]))
    shown = speed.load(path).set_index(["device", "threads"])["images_per_second"].to_dict()
    assert shown == {("A", 2): 200, ("B", 2): 300, ("A", 1): 400}
    path.write_text(header)
    with pytest.raises(InputError, match="is missing or not"):
        speed.load(path)
    path.write_text("nothing")
    with pytest.raises(InputError, match=r"not the table of benchmarks/throughput\.py"):
        speed.load(path)


# ---- Figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides", [("preset=paper",), ("model.n=9", "train.seeds=3"), ("model.net=[resnet,plain]",)]
)
def test_figures_are_wide_enough_and_the_same_bytes_again(rendered, study_of, tmp_path, overrides):
    folder = rendered(*overrides)
    before = _everything(folder)
    assert {name for name in before if name.endswith(".png")} == {
        "figures/error_vs_depth.png",
        "figures/training.png",
        "figures/confusion.png",
    }
    for path in (folder / "figures").iterdir():
        assert Image.open(path).width >= 800
    (folder / "figures/stale.png").write_bytes(b"")
    write(study_of(*overrides), tmp_path / "runs", tmp_path / "results", THROUGHPUT, folder)
    assert _everything(folder) == before


def test_every_run_is_a_dot_and_every_published_value_a_mark(tmp_path, study_of, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    study = study_of("preset=paper")
    make_results(tmp_path, study)
    outcome = load(study, tmp_path / "runs", tmp_path / "results")
    figures.error_vs_depth(outcome, tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    shown = {(round(x), round(float(y), 3)) for line in axes.lines for x, y in line.get_xydata()}
    runs = zip(outcome.cells["n"], outcome.cells["test_error"], strict=True)
    assert {((n - 3) // 2, error) for n, error in runs} <= shown
    assert {(0, 8.75), (1, 7.51), (2, 7.17), (3, 6.97), (0, 8.586), (3, 7.884)} <= shown


# ---- What is missing or wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "results/resnet-9-1/metrics.json").unlink(), r"resnet-9-1 \(.*metrics\.json is missing\)"),
        (lambda f: (f / "runs/resnet-9-1/run.json").unlink(), r"resnet-9-1 \(.*run\.json is missing\)"),
        (lambda f: (f / "runs/resnet-9-1/history.csv").write_text(""), r"resnet-9-1 \(.*history\.csv is not a table\)"),
        (lambda f: (f / "runs/resnet-9-1/run.json").write_text("{"), r"resnet-9-1 \(.*run\.json is not JSON\)"),
        (lambda f: _edit(f / "runs/resnet-9-1/run.json", iterations=99), r"run\.json ends at iteration 99, not at 40"),
        (lambda f: _edit(f / "runs/resnet-9-1/run.json", cell="resnet-9-0"), r"run\.json is of resnet-9-0"),
        (lambda f: _edit(f / "runs/resnet-9-1/run.json", weights_sha256="x"), r"are of different weights"),
        (lambda f: _edit(f / "runs/resnet-9-1/run.json", precision="fp32"), r"run\.json is of other parameters"),
        (lambda f: _edit(f / "runs/resnet-9-1/run.json", eval_every=10), r"run\.json has train\.eval_every 10, not 20"),
        (lambda f: _edit(f / "results/resnet-9-1/metrics.json", validation={"error": 1}), r"data\.validation 0"),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_a_cell_that_is_missing_or_does_not_match_is_named_and_the_last_report_stays(
    tmp_path, study_of, change, sentence
):
    study = study_of()
    make_results(tmp_path, study)
    arguments = study, tmp_path / "runs", tmp_path / "results", THROUGHPUT, tmp_path / "reports"
    write(*arguments)
    before = _everything(tmp_path / "reports")
    change(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        write(*arguments)
    assert str(caught.value).startswith("1 of 8 cells cannot be reported: resnet-9-1 ")
    assert _everything(tmp_path / "reports") == before


@pytest.mark.usefixtures("no_figures")
def test_a_cell_that_the_parameters_do_not_name_is_left_out(tmp_path, study_of):
    make_results(tmp_path, study_of())
    write(study_of("model.n=9"), tmp_path / "runs", tmp_path / "results", THROUGHPUT, tmp_path / "reports")
    assert [row["Network"] for row in _table((tmp_path / "reports/metrics.md").read_text())] == ["ResNet-56"]


def test_the_stage_says_what_is_missing_in_one_line(tmp_path, compose):
    (tmp_path / "params.yaml").write_text(compose("model.n=3", "train.seeds=0"))
    command = [sys.executable, str(ROOT / "stages/report.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: 1 of 1 cells cannot be reported: resnet-3-0 (runs/resnet-3-0/run.json is missing)"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "reports").exists()
