"""The report, from runs and results made up here, and once from real ones."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, committed
from dvc.utils.hydra import compose_and_dump
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from tiny import write_tiny_cifar10

from resnet_cifar import dataset
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.cifar10 import CLASSES, preprocess
from resnet_cifar.errors import InputError, needs_extra
from resnet_cifar.evaluation import Measures, Result
from resnet_cifar.files import sha256
from resnet_cifar.numerics.weights import digest
from resnet_cifar.params import Study
from resnet_cifar.report import figures, paper, speed
from resnet_cifar.report.outcome import PUBLISHED, Outcome, load
from resnet_cifar.report.statistics import summarize
from resnet_cifar.report.text import number, spread
from resnet_cifar.report.writer import write
from resnet_cifar.responses import IMAGES
from resnet_cifar.results import Evaluator
from resnet_cifar.settings import Settings
from resnet_cifar.training.record import Arithmetic, Circumstances, Earlier, Question, Record
from resnet_cifar.training.session import Session
from resnet_cifar.training.train import train_cells

STUDIES = sorted(path.name for path in (ROOT / "reports/studies").iterdir() if path.is_dir())
THROUGHPUT = ROOT / "benchmarks/throughput.csv"
PARAMETERS = {3: 269_722, 5: 464_154, 7: 658_586, 9: 853_018, 18: 1_727_962}
DATA = "d" * 64
PAPER = ("preset=paper", "model.n=[3,5,7,9]", "train.seeds=[0,1,2,3,4]")
"""All twenty cells, however many of them are trained."""


@cache
def composed(*overrides: str) -> str:
    """params.yaml as `dvc exp run -S` writes it; of the preset ``quick`` where no other is named."""
    preset = () if any(text.startswith("preset=") for text in overrides) else ("preset=quick",)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(path, str(ROOT / "conf"), None, "config", str(ROOT / "conf"), [*preset, *overrides])
        return path.read_text()


def study_of(*overrides: str) -> Study:
    return Study.model_validate(yaml.safe_load(composed(*overrides)))


def make_results(folder: Path, study: Study, errors: dict[str, float] | None = None) -> None:
    """Leave what training and evaluation would: the shape of the real curves, noise for the numbers.

    ``errors`` are the test errors of cells, by name, that are not left to chance.
    """
    for cell in study.list_cells():
        make_cell(folder, study, cell, (errors or {}).get(cell.name))


def make_cell(
    folder: Path,
    study: Study,
    cell: Cell,
    error: float | None = None,
    *,
    engine: str = "native",
    precision: str = "fp32",
    curve_error: float | None = None,
    evaluated_by: str = "native",
    data: str = DATA,
) -> None:
    """Leave one cell's files. ``curve_error`` is where its curve ends, by default at ``error``."""
    random = np.random.default_rng([cell.n, cell.seed, cell.net == "plain"])
    train = study.train
    if error is None and cell.net == "resnet":
        error = round(6.4 + 5.5 / cell.n + random.normal(0, 0.2), 2)
    elif error is None:
        error = round(8.4 + 0.5 * cell.n + random.normal(0, 0.3), 2)
    iterations = np.minimum(np.arange(0, train.iterations, train.eval_every) + train.eval_every, train.iterations)
    rate = train.lr * train.gamma ** sum((iterations > milestone).astype(int) for milestone in train.milestones)
    curve = error + 12 * rate / train.lr + 50 * np.exp(-12 * iterations / train.iterations)
    curve += random.normal(0, 1, len(curve)) * rate / train.lr
    curve[-1] = error if curve_error is None else curve_error
    splits = {"train": 0.6 * curve, "test": curve}
    if study.data.validation:
        splits["validation"] = curve + 0.25
    columns = {"iteration": iterations, "lr": rate}
    for split, values in splits.items():
        columns |= {f"{split}_loss": values / 30, f"{split}_error": values}
    weights = {"weights": torch.tensor([cell.n, cell.seed, error])}
    files = run_files(folder / "runs", cell)
    files.folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, files.weights)
    pd.DataFrame(columns).assign(weights_sha256="e" * 64).to_csv(files.history, index=False, float_format="%.6f")
    record = Record(
        question=Question(cell=cell.name, parameters=study.recipe(cell).digest, data=data),
        arithmetic=_arithmetic(engine, precision),
        circumstances=Circumstances(
            device="AMD EPYC" if engine == "native" else "NVIDIA H200",
            threads=16,
            simd=None,
            torch="2.11.0",
            numpy="2.0",
            code="c" * 64,
        ),
        iterations=train.iterations,
        seconds=360.0,
        images_per_second=12345.6 / cell.n,
        resumed_at=[],
        weights_sha256=digest(weights),
        history_sha256=sha256(files.history),
    )
    files.record.write_bytes(record.content())
    result = folder / "results" / cell.name
    result.mkdir(parents=True, exist_ok=True)
    logits = {"test_logits": torch.tensor([[float(cell.seed)]])}
    save_file(logits, result / "predictions.safetensors")
    validation = measures(error + 0.25, study.data.validation) if study.data.validation else None
    metrics = Result(
        cell=cell.name,
        parameters=PARAMETERS.get(cell.n, 100_000 * cell.n),
        weights_sha256=digest(weights),
        data_sha256=data,
        predictions_sha256=digest(logits),
        arithmetic=_arithmetic(evaluated_by, "fp32"),
        test=measures(error, 10_000),
        responses=responses(cell, random),
        validation=validation,
    )
    (result / "metrics.json").write_bytes(metrics.content())


def responses(cell: Cell, random: np.random.Generator) -> list[float]:
    """Smaller in a residual network, and the smaller the deeper it is, as in the paper's Figure 7."""
    scale = 1.0 if cell.net == "plain" else 1 / np.sqrt(cell.n)
    return (scale * random.uniform(0.5, 1.5, cell.depth - 1)).round(4).tolist()


def _arithmetic(engine: str, precision: str) -> Arithmetic:
    if engine == "native":
        return Arithmetic(engine=engine, precision=precision, bits=1)
    return Arithmetic(engine=engine, precision=precision, code="c" * 64, device="NVIDIA H200", torch="2.11.0", cudnn=9)


def measures(error: float, images: int) -> Measures:
    """Of images of equally many in each class, of whose mistakes each class has its share in the next one's column."""
    wrong = round(error * images / 100)
    confusion = np.zeros((10, 10), int)
    for label in range(10):
        mine = wrong // 10 + (label < wrong % 10)
        confusion[label, (label + 1) % 10] = mine
        confusion[label, label] = images // 10 - mine
    return Measures(
        error=round(100 * wrong / images, 4),
        loss=round(error / 30, 6),
        calibration_error=3.2,
        class_errors=[round(100 * (1 - row[label] / row.sum()), 4) for label, row in enumerate(confusion)],
        confusion=confusion.tolist(),
    )


def render(folder: Path, study: Study, throughput: Path = THROUGHPUT) -> Path:
    write(study, folder / "runs", folder / "results", throughput, folder / "reports")
    return folder / "reports"


def read(folder: Path, study: Study) -> Outcome:
    return load(study, folder / "runs", folder / "results")


@pytest.fixture
def rendered(tmp_path):
    """Render a study's report from made-up results; returns its folder."""

    def made(*overrides: str) -> Path:
        study = study_of(*overrides)
        make_results(tmp_path, study)
        return render(tmp_path, study)

    return made


@pytest.fixture
def no_figures(monkeypatch):
    """Leave the figures out, where a test is about words and numbers."""
    for name, drawing in figures.FIGURES.items():
        empty = dataclasses.replace(drawing, draw=lambda *args: args[-1].write_bytes(b""))
        monkeypatch.setitem(figures.FIGURES, name, empty)


def _evaluate_otherwise(path: Path, **change: object) -> None:
    """Write a metrics.json that an evaluation with other outcomes would leave."""
    path.write_bytes(Result.parse(path.read_bytes()).model_copy(update=change).content())


def _edit(path: Path, change: dict[str, object]) -> None:
    """Alter a JSON file: ``change`` has values by keys with dots."""
    content = json.loads(path.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


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


def test_two_runs_have_no_interval():
    """Of two equal ones it would have no width, and of 8 and 9 it would reach from 2.1 to 14.9."""
    for values, std in (([8.0, 9.0], 0.7071), ([8.0, 8.0], 0.0)):
        summary = summarize(values)
        assert summary.std == pytest.approx(std, abs=1e-4)
        assert (summary.interval, summary.prediction) == (None, None)


@pytest.mark.usefixtures("no_figures")
def test_the_table_of_the_paper_preset(tmp_path):
    """Five runs 8.1, 8.2, 8.3, 8.4, 8.5: s = 0.1581, t(0.975, 4) = 2.776, so 8.30 ± 0.196 and ± 0.481."""
    study = study_of(*PAPER, "model.n=[3,18]")
    make_results(tmp_path, study, {f"resnet-3-{seed}": error for seed, error in enumerate((8.3, 8.1, 8.5, 8.2, 8.4))})
    text = (render(tmp_path, study) / "metrics.md").read_text()
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
    assert text.startswith("# Test error on CIFAR-10\n")
    assert "64,000 iterations" in text
    assert "over 5 runs of each network" in text


def test_a_decimal_between_two_is_rounded_as_it_is_written():
    """To the even one, although the double nearest to each of these lies below the middle."""
    assert [number(value) for value in (0.475, 8.465, np.float64(8.475), -0.015)] == ["0.48", "8.46", "8.48", "-0.02"]
    assert number(np.mean([7.88, 8.11])) == "8.00"  # 7.994999999999999
    assert [number(value, "+") for value in (0.475, -0.015)] == ["+0.48", "-0.02"]
    assert [number(-0.001), number(-0.001, "+")] == ["0.00", "+0.00"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("lowest", "said"), [(8.0, "outside 7.97 to 8.07"), (9.5, "outside 9.47 to 9.57")])
def test_a_paper_run_outside_the_prediction_interval_is_said_to_be(tmp_path, lowest, said):
    """8.75 is above one and below the other. s = 0.0158, t(0.975, 4)*sqrt(6/5) = 3.041, so lowest + 0.02 ± 0.048."""
    study = study_of(*PAPER, "model.n=3")
    make_results(tmp_path, study, {f"resnet-3-{seed}": round(lowest + seed / 100, 2) for seed in range(5)})
    (row,) = _table((render(tmp_path, study) / "metrics.md").read_text())
    assert row["The paper's run is"] == said


@pytest.mark.usefixtures("no_figures")
def test_one_run_has_dashes_and_stands_beside_the_papers_one_run(rendered):
    text = (rendered(*PAPER, "model.n=3", "train.seeds=7") / "metrics.md").read_text()
    (row,) = _table(text)
    assert re.fullmatch(r"\d\.\d\d ± –", row["Test error, %"])
    assert (row["95% interval of the mean"], row["The paper's run is"], row["Paper"]) == ("–", "–", "8.75")
    assert row["Best (seed)"] == row["Worst (seed)"]
    assert "The paper's are single runs, too: a difference from them may be chance." in text
    assert "prediction interval" not in text
    assert "Means over" not in text


@pytest.mark.usefixtures("no_figures")
def test_two_runs_have_a_deviation_and_no_interval(tmp_path):
    """8.00 and 8.20: s = 0.2/sqrt(2) = 0.141."""
    study = study_of(*PAPER, "model.n=3", "train.seeds=[0,1]")
    make_results(tmp_path, study, {"resnet-3-0": 8.0, "resnet-3-1": 8.2})
    text = (render(tmp_path, study) / "metrics.md").read_text()
    (row,) = _table(text)
    assert row["Test error, %"] == "8.10 ± 0.14"
    assert (row["95% interval of the mean"], row["The paper's run is"]) == ("–", "–")
    assert "over 2 runs of each network, one seed each; an interval needs 3." in text
    assert "may be chance" in text


@pytest.mark.usefixtures("no_figures")
def test_a_quick_run_says_so_first_and_compares_with_nothing(rendered):
    text = (rendered() / "metrics.md").read_text()
    first, _, rest = text.partition("\n")
    assert "quick run of 100 iterations" in first
    assert "Article" not in rest
    assert "8.75" not in rest


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.iterations=50000"], "`iterations`"),
        (["train.lr=0.05"], "`lr`"),
        (["data.normalize=channel"], "`normalize`"),
        (["data.validation=5000"], "`validation`"),
        (["train.warmup.min_n=1"], "`warmup_iterations`"),
        (["train.warmup.iterations=0", "model.n=[3,18]"], "`warmup_iterations`"),
        (["train.momentum=0.8", "train.weight_decay=0"], "`momentum` and `weight_decay`"),
    ],
)
def test_another_protocol_is_said_to_be_one_and_compared_with_nothing(rendered, overrides, named):
    text = (rendered(*PAPER, "model.n=3", "train.seeds=0", *overrides) / "metrics.md").read_text()
    assert "another protocol than the paper's" in text.partition("\n")[0]
    assert f"Not the paper's, and so not compared with it: {named}.\n" in text
    assert "8.75" not in text
    assert "Article" not in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_what_was_trained_in_16_bits_is_compared_with_nothing(tmp_path, asked):
    """One cell in bf16 is enough, and what counts is the precision in force, not the one that was asked for."""
    study = study_of(*PAPER, "model.n=3", f"train.precision={asked}")
    make_results(tmp_path, study)
    assert read(tmp_path, study).compares
    make_cell(tmp_path, study, Cell("resnet", 3, 2), engine="cuda graph", precision="bf16")
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert "not compared with it: `precision`." in text
    assert "Trained in bf16" in text
    assert "8.75" not in text


def test_the_papers_protocol_is_that_of_the_preset():
    """Every value of conf/ that decides a byte, for networks with and without a warm-up."""
    study = study_of(*PAPER, "model.net=[resnet,plain]", "model.n=[3,5,7,9,18,200]")
    assert paper.differences(study, {"fp32"}) == []
    for cell in study.list_cells():
        mine, its = study.recipe(cell), paper.recipe(cell)
        assert dataclasses.replace(its, warmup_lr=mine.warmup_lr) == mine
        assert its.warmup_lr == mine.warmup_lr or not mine.warmup_iterations


@pytest.mark.usefixtures("no_figures")
def test_plain_networks_have_the_values_read_off_the_figure(rendered):
    text = (rendered(*PAPER, "model.net=[plain,resnet]", "model.n=3", "model.shortcut=B") / "metrics.md").read_text()
    resnet, plain = _table(text)
    assert (resnet["Network"], resnet["Paper"]) == ("ResNet-20", "–")  # with shortcut B the paper reports none
    assert (plain["Network"], plain["Paper"]) == ("Plain-20", "≈ 9.7")


@pytest.mark.usefixtures("no_figures")
def test_where_the_protocol_is_not_the_papers_to_the_letter(tmp_path):
    study = study_of(*PAPER, "model.n=[9,18]", "train.seeds=0")
    make_results(tmp_path, study)
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert "(0.01 for the first 400 if 110 layers or more)" in text
    assert '400 iterations of warm-up replace the paper\'s "until the training error is below 80%"' in text
    assert "two GPUs" in text
    assert "the learning rate stands outside the velocity" in text
    shallow = study_of(*PAPER, "model.n=9", "train.seeds=0")
    assert "warm-up" not in (render(tmp_path, shallow) / "metrics.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_validation_stands_beside_the_test_error_and_is_disclosed(rendered):
    folder = rendered("data.validation=5000", "model.n=3")
    text = (folder / "metrics.md").read_text()
    (row,) = _table(text)
    test, validation = (float(row[f"{split} error, %"].split()[0]) for split in ("Test", "Validation"))
    assert validation == pytest.approx(test + 0.25, abs=0.021)
    assert "5,000 training images are held out" in text
    assert "; 45,000 training images (5,000 more held out), " in text
    assert {"validation_error", "test_error"} <= set(pd.read_csv(folder / "results.csv"))
    assert {"curve_validation_error", "curve_test_error"} <= set(pd.read_csv(folder / "curves.csv"))


@pytest.mark.usefixtures("no_figures")
def test_machine_readable_files(rendered, tmp_path):
    folder = rendered("model.n=[9,3]")
    results = pd.read_csv(folder / "results.csv").set_index("cell")
    assert list(results.index) == ["resnet-3-0", "resnet-3-1", "resnet-9-0", "resnet-9-1"]
    files = run_files(tmp_path / "runs", Cell("resnet", 9, 1))
    expected = {"depth": 56, "engine": "native", "precision": "fp32", "processor": "AMD EPYC", "seconds": 360.0}
    assert {key: results.loc["resnet-9-1", key] for key in expected} == expected
    assert results.loc["resnet-9-1", "history_sha256"] == sha256(files.history)
    assert results.loc["resnet-9-1", "weights_sha256"] == json.loads(files.record.read_text())["weights_sha256"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["ResNet-20", "ResNet-56"]
    assert metrics["ResNet-56"].keys() == {"error_mean", "error_std", "runs"}
    errors = results.loc[results["n"] == 9, "test_error"]
    assert metrics["ResNet-56"]["error_mean"] == pytest.approx(errors.mean(), abs=1e-4)
    assert metrics["ResNet-56"]["error_std"] == pytest.approx(errors.std(), abs=1e-4)
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves["iteration"]) == [50, 100] * 4


def test_published_values_are_those_of_the_papers_table_6(tmp_path):
    study = study_of(*PAPER, "model.n=[3,5,7,9,18,200]", "train.seeds=0")
    make_results(tmp_path, study)
    published = read(tmp_path, study).published
    rows = published[published["source"] == "paper"].set_index("network")
    assert rows["error"].tolist() == [8.75, 7.51, 7.17, 6.97, 6.61, 7.93]
    assert rows["runs"].tolist() == [1, 1, 1, 1, 5, 1]


def test_published_values_are_those_of_the_article_and_of_the_papers_figure_6():
    published = pd.read_csv(PUBLISHED)
    article = published[published["source"] == "article"]
    assert article[["network", "error", "std"]].to_numpy().tolist() == [
        ["ResNet-20", 8.586, 0.120],
        ["ResNet-32", 7.728, 0.318],
        ["ResNet-44", 7.540, 0.475],
        ["ResNet-56", 7.884, 0.523],
    ]
    assert published[published["kind"] == "figure"]["error"].tolist() == [9.7, 10.1, 11.4, 13.3]


# ---- Two test errors, engines, hours ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_curve_in_16_bits_ends_at_another_number_under_another_name(tmp_path):
    study = study_of("model.n=3", "train.seeds=0")
    make_cell(tmp_path, study, Cell("resnet", 3, 0), 70.0, engine="eager", precision="bf16", curve_error=71.5)
    folder = render(tmp_path, study)
    curves, results = pd.read_csv(folder / "curves.csv"), pd.read_csv(folder / "results.csv")
    assert (curves["curve_test_error"].iloc[-1], results["test_error"].iloc[0]) == (71.5, 70.0)
    assert "test_error" not in curves
    assert set(curves["precision"]) == {"bf16"}
    assert "computed while training, here in bf16" in (folder / "metrics.md").read_text()


def test_in_fp32_curve_and_table_are_one_number(tmp_path):
    """The same arithmetic, the same number; another processor's rounding may turn three images of 10,000."""
    study, cell = study_of("model.n=3", "train.seeds=0"), Cell("resnet", 3, 0)
    make_cell(tmp_path, study, cell, 8.0, curve_error=8.01)
    with pytest.raises(InputError, match=r"resnet-3-0 \(its history\.csv ends with test error 8\.01 and loss"):
        read(tmp_path, study)
    make_cell(tmp_path, study, cell, 8.0, engine="cuda graph", evaluated_by="eager", curve_error=8.03)
    read(tmp_path, study)
    make_cell(tmp_path, study, cell, 8.0, engine="cuda graph", evaluated_by="eager", curve_error=8.04)
    with pytest.raises(InputError, match=r"metrics\.json has 8 and"):
        read(tmp_path, study)
    make_cell(tmp_path, study, cell, 8.0)
    path = tmp_path / "results/resnet-3-0/metrics.json"
    test = Result.parse(path.read_bytes()).test
    _evaluate_otherwise(path, test=test.model_copy(update={"loss": test.loss + 2e-6}))
    with pytest.raises(InputError, match=r"history\.csv ends with test error 8 and loss"):
        read(tmp_path, study)


@pytest.mark.usefixtures("no_figures")
def test_that_a_processor_decides_images_is_said_of_pytorchs_step_alone(tmp_path):
    study, cell = study_of("model.n=3", "train.seeds=0"), Cell("resnet", 3, 0)
    make_cell(tmp_path, study, cell)
    assert "table's, `test_error` in results.csv." in (render(tmp_path, study) / "metrics.md").read_text()
    make_cell(tmp_path, study, cell, engine="cuda graph", evaluated_by="eager")
    said = "table's, `test_error` in results.csv; where another processor evaluated, it is so to a few images."
    assert said in (render(tmp_path, study) / "metrics.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_errors_by_class_and_what_a_run_costs_are_means_over_the_seeds(tmp_path):
    """Of the two seeds 0 and 1 the means are 0.5 more than of seed 0; ResNet-56 has 10 more than ResNet-20."""
    study = study_of("model.n=[3,9]", "train.seeds=[0,1]")
    make_results(tmp_path, study)
    losses: dict[str, list[float]] = {"ResNet-20": [], "ResNet-56": []}
    for cell in study.list_cells():
        level = 10.0 * (cell.n == 9) + cell.seed
        path = tmp_path / f"results/{cell}/metrics.json"
        test = Result.parse(path.read_bytes()).test
        losses[cell.network].append(test.loss)
        other = {"class_errors": [level + label for label in range(10)], "calibration_error": level}
        _evaluate_otherwise(path, test=test.model_copy(update=other))
        times = {"seconds": 100 * (1 + level), "images_per_second": 1000 * (2 + level)}
        _edit(run_files(tmp_path / "runs", cell).record, times)
    text = (render(tmp_path, study) / "metrics.md").read_text()
    by_class = _table(text.partition("## Test error by class")[2])
    assert [tuple(row) for row in by_class] == [("Network", *CLASSES)] * 2
    assert [[*row.values()] for row in by_class] == [
        [network, *(f"{first + label:.2f}" for label in range(10))]
        for network, first in (("ResNet-20", 0.5), ("ResNet-56", 10.5))
    ]
    cost = [[*row.values()] for row in _table(text.partition("## Loss, calibration and time")[2])]
    assert cost == [
        ["ResNet-20", f"{np.mean(losses['ResNet-20']):.3f}", "0.50", "150", "2,500"],
        ["ResNet-56", f"{np.mean(losses['ResNet-56']):.3f}", "10.50", "1,150", "12,500"],
    ]


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_several_processors_computed_names_them(tmp_path):
    study = study_of("model.n=3")
    make_results(tmp_path, study)
    files = run_files(tmp_path / "runs", Cell("resnet", 3, 1))
    made = Record.model_validate_json(files.record.read_bytes())
    parts = [("Intel Xeon", 20), ("AMD EPYC", 30), ("Intel Xeon", 40)]
    earlier = [
        Earlier(until=until, circumstances=made.circumstances.model_copy(update={"device": device}))
        for device, until in parts
    ]
    files.record.write_bytes(made.model_copy(update={"earlier": earlier}).content())
    folder = render(tmp_path, study)
    processors = pd.read_csv(folder / "results.csv").set_index("cell")["processor"]
    assert processors["resnet-3-1"] == "Intel Xeon, then AMD EPYC, then Intel Xeon, then AMD EPYC"
    assert (
        "**Hardware:** 1 run on AMD EPYC (16 CPU threads), native engine, fp32; "
        "1 run on Intel Xeon, then AMD EPYC, then Intel Xeon, then AMD EPYC (16 CPU threads), native engine, fp32. "
    ) in (folder / "metrics.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_the_hardware_line_counts_the_kinds_of_runs_and_their_hours(tmp_path):
    study = study_of(*PAPER, "model.n=3")
    make_results(tmp_path, study)
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert "**Hardware:** 5 runs on AMD EPYC (16 CPU threads), native engine, fp32. " in text
    assert "add up to 30.0 minutes" in text  # 5 times 360 seconds
    assert "mixes engines" not in text
    make_cell(tmp_path, study, Cell("resnet", 3, 4), engine="cuda graph")
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert "1 run on NVIDIA H200 (16 CPU threads), cuda graph engine, fp32" in text
    assert "**The table mixes engines:** 1 run of the cuda graph engine and 4 runs of the native engine." in text
    for cell in study.list_cells():
        _edit(run_files(tmp_path / "runs", cell).record, {"seconds": 7200.0})
    assert "add up to 10.0 hours." in (render(tmp_path, study) / "metrics.md").read_text()


# ---- Speed -----------------------------------------------------------------------------------------------------

SPEEDS = (
    "date,device,threads,torch,network,way,precision,networks_at_once,images_per_second,seconds_per_64k_iterations,"
    "times_the_usual_loop,percent_of_copy_bandwidth,percent_of_matrix_rate\n"
)


def test_the_newest_measurement_of_each_device_is_shown(tmp_path):
    path = tmp_path / "throughput.csv"
    old, new, other, one_thread = (
        f"2026-01-0{day},{gpu},{threads},2.14,ResNet-20,step,fp32,1,{rate},1,1,1,1"
        for day, gpu, threads, rate in ((1, "A", 2, 100), (2, "A", 2, 200), (1, "B", 2, 300), (3, "A", 1, 400))
    )
    path.write_text(SPEEDS + "\n".join([old, other, new, one_thread]))
    shown = speed.load(path).set_index(["device", "threads"])["images_per_second"].to_dict()
    assert list(shown.items()) == [(("A", 2), 200), (("A", 1), 400), (("B", 2), 300)]  # a device's together


def test_each_row_on_speed_stands_below_the_loop_to_which_it_is_compared(tmp_path):
    path = tmp_path / "throughput.csv"
    loop = speed.LOOP
    measured = [(loop, 10), ("eager", 20), ("graph", 40)], [(loop, 8), ("graph", 48)], [(loop, 5), ("graph", 35)]
    rows = [
        f'2026-01-01,A,2,2.14,ResNet-20,"{way}",fp32,1,{rate},1,{rate / ways[0][1]},1,1'
        for ways in measured
        for way, rate in ways
    ]
    path.write_text(SPEEDS + "\n".join(rows))
    shown = speed.load(path)[["way", "images_per_second", "times_the_usual_loop"]]
    assert shown.to_numpy().tolist() == [[loop, 10, 1], ["eager", 20, 2], [loop, 5, 1], ["graph", 35, 7]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        SPEEDS,
        "\xff",
        SPEEDS + "2026-01-01,A,2,2.14,ResNet-20,loop,fp32,1,fast,1,1,1,1",
        SPEEDS + "2026-01-01,A,two,2.14,ResNet-20,loop,fp32,1,1,1,1,1,1",
        SPEEDS + "2026-01-01,A,2,2.14,ResNet-20,loop,fp32,1,,1,1,1,1",
    ],
)
def test_another_file_than_the_benchmarks_table_is_refused(tmp_path, text):
    path = tmp_path / "throughput.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"throughput\.csv is not the table of benchmarks/throughput\.py"):
        speed.load(path)


@pytest.mark.usefixtures("no_figures")
def test_without_measurements_there_is_no_section_on_speed(tmp_path):
    study = study_of("model.n=3")
    make_results(tmp_path, study)
    assert "## Speed" in (render(tmp_path, study) / "metrics.md").read_text()
    assert "Speed" not in (render(tmp_path, study, tmp_path / "missing.csv") / "metrics.md").read_text()


# ---- Figures ---------------------------------------------------------------------------------------------------


ALWAYS = {"error_vs_depth.png", "training.png", "confusion.png"}
BOTH = ("model.net=[resnet,plain]",)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (PAPER, ALWAYS),
        (("model.n=9", "train.seeds=3"), ALWAYS),
        ((*BOTH, "model.n=3", "train.seeds=0"), ALWAYS | {"responses.png"}),
        (BOTH, set(figures.FIGURES)),
    ],
)
def test_figures_are_wide_enough_and_the_same_bytes_again(rendered, tmp_path, overrides, names):
    folder = rendered(*overrides)
    before = _everything(folder)
    assert {path.name for path in (folder / "figures").iterdir()} == names
    for path in (folder / "figures").iterdir():
        assert Image.open(path).width >= 800
    (folder / "figures/stale.png").write_bytes(b"")
    render(tmp_path, study_of(*overrides))
    assert _everything(folder) == before


def test_dvc_shows_what_the_report_renders():
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    assert [plot for plot in plots if isinstance(plot, str)] == [
        f"reports/figures/{name}" for name in figures.FIGURES if name in ALWAYS
    ]
    (curve,) = (plot for plot in plots if isinstance(plot, dict))
    assert curve["Test error, %"]["y"] == {"reports/curves.csv": "curve_test_error"}


def _drawn(name: str, tmp_path: Path, study: Study, monkeypatch) -> Figure:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    figures.FIGURES[name].draw(study, read(tmp_path, study), tmp_path / "figure.png")
    return drawn[0]


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_run_is_a_dot_and_every_published_value_a_mark(tmp_path, monkeypatch):
    study = study_of(*PAPER)
    make_results(tmp_path, study)
    figure = _drawn("error_vs_depth.png", tmp_path, study, monkeypatch)
    (axes,) = figure.axes
    shown = {(round(x), round(float(y), 3)) for line in axes.lines for x, y in line.get_xydata()}
    cells = read(tmp_path, study).cells
    runs = zip(cells["n"], cells["test_error"], strict=True)
    assert {((n - 3) // 2, error) for n, error in runs} <= shown
    assert {(0, 8.75), (1, 7.51), (2, 7.17), (3, 6.97), (0, 8.586), (3, 7.884)} <= shown
    assert _legend(figure) == [
        "ResNet, a run",
        "ResNet, mean of 5 runs and 95% interval",
        "Paper, one run",
        "Article, mean of 5 ± std",
    ]


def test_the_bars_are_the_intervals_of_the_mean(tmp_path, monkeypatch):
    study = study_of(*PAPER)
    make_results(tmp_path, study)
    (axes,) = _drawn("error_vs_depth.png", tmp_path, study, monkeypatch).axes
    (ours,) = [bars for bars in axes.containers if bars.get_label().startswith("ResNet, mean")]
    spans = [segment[:, 1].tolist() for segment in ours.lines[2][0].get_segments()]
    groups = read(tmp_path, study).cells.groupby("n")["test_error"]
    assert spans == [pytest.approx(summarize(errors).interval) for _, errors in groups]


def test_learning_curves_are_the_means_of_what_they_are_called(tmp_path, monkeypatch):
    study = study_of("model.n=[3,9]")
    make_results(tmp_path, study)
    figure = _drawn("training.png", tmp_path, study, monkeypatch)
    for axes, (_, curves) in zip(figure.axes, read(tmp_path, study).curves.groupby("n"), strict=True):
        means = curves.groupby("iteration")[["curve_test_error", "train_error"]].mean()
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert drawn["Test"] == pytest.approx(means["curve_test_error"])
        assert drawn["Training"] == pytest.approx(means["train_error"])


def test_the_confusion_matrix_is_the_deepest_networks_in_percent_of_the_true_class(tmp_path, monkeypatch):
    """Of four airplanes one is taken for an automobile, of sixteen automobiles none for anything: 25 and 0 percent."""
    study = study_of("model.n=[3,9]", "train.seeds=[0,1]")
    make_results(tmp_path, study)
    counts = np.diag([3, 16, 1, 1, 1, 1, 1, 1, 1, 1])
    counts[0, 1] = 1
    for seed in (0, 1):
        path = tmp_path / f"results/resnet-9-{seed}/metrics.json"
        test = Result.parse(path.read_bytes()).test
        _evaluate_otherwise(path, test=test.model_copy(update={"confusion": counts.tolist()}))
    axes, *_ = _drawn("confusion.png", tmp_path, study, monkeypatch).axes
    shown = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # row, column
    assert axes.get_title().startswith("ResNet-56, mean of 2 runs")
    assert (axes.get_ylabel(), [shown[place] for place in ((0, 0), (0, 1), (1, 0), (1, 1))]) == (
        "True class",
        ["75.0", "25.0", "0.0", "100.0"],
    )


def test_the_longest_legend_fits_into_its_figure(tmp_path, monkeypatch):
    study = study_of(*PAPER, "model.net=[resnet,plain]", "model.n=[3,18]")
    make_results(tmp_path, study)
    figure = _drawn("error_vs_depth.png", tmp_path, study, monkeypatch)
    assert "Paper, one run or mean of 5 ± std" in _legend(figure)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 <= legend.x1 <= figure.bbox.x1


def test_one_run_is_not_called_a_mean(tmp_path, monkeypatch):
    study = study_of("model.n=[3,9]", "train.seeds=0")
    make_results(tmp_path, study)
    assert _legend(_drawn("error_vs_depth.png", tmp_path, study, monkeypatch)) == ["ResNet, one run"]
    titles = [axes.get_title() for axes in _drawn("training.png", tmp_path, study, monkeypatch).axes]
    assert titles == ["ResNet-20, 1 run", "ResNet-56, 1 run"]


def test_the_mean_of_two_runs_has_no_bar(tmp_path, monkeypatch):
    study = study_of("model.n=[3,9]", "train.seeds=[0,1]")
    make_results(tmp_path, study)
    figure = _drawn("error_vs_depth.png", tmp_path, study, monkeypatch)
    assert _legend(figure) == ["ResNet, a run", "ResNet, mean of 2 runs"]
    assert list(figure.axes[0].collections) == []  # where matplotlib keeps bars


def test_learning_curves_say_the_precision_of_their_test_error(tmp_path, monkeypatch):
    study = study_of("model.n=3")
    make_results(tmp_path, study)
    assert _legend(_drawn("training.png", tmp_path, study, monkeypatch)) == ["Test", "Training"]
    make_cell(tmp_path, study, Cell("resnet", 3, 1), engine="eager", precision="bf16")
    assert _legend(_drawn("training.png", tmp_path, study, monkeypatch)) == ["Test, in bf16 or fp32", "Training"]


# ---- Plain and residual networks by depth ----------------------------------------------------------------------


def _end(folder: Path, errors: dict[str, float]) -> None:
    """Give cells' curves these last training errors, and their records the new digest."""
    for name, error in errors.items():
        files = run_files(folder / "runs", Cell.parse(name))
        curve = pd.read_csv(files.history, dtype=str)
        curve.loc[curve.index[-1], "train_error"] = str(error)
        curve.to_csv(files.history, index=False)
        _edit(files.record, {"history_sha256": sha256(files.history)})


@pytest.mark.usefixtures("no_figures")
def test_degradation_is_said_in_points_and_by_intervals_of_pairs(tmp_path):
    """Plain 5.9, 6.0 and 6.1 more, s = 0.1, t(0.975, 2)/sqrt(3) = 2.484, so 6.00 ± 0.25, whatever the seeds;
    residual 0.8, 1.0 and 1.2 less, s = 0.2, -1.00 ± 0.50; the one less the other 6.7, 7.0 and 7.3, 7.00 ± 0.75."""
    study = study_of("preset=degradation")
    make_results(tmp_path, study)
    ends = {
        ("plain", 3): (5.0, 6.0, 7.0),
        ("plain", 9): (10.9, 12.0, 13.1),
        ("resnet", 3): (5.8, 4.0, 5.2),
        ("resnet", 9): (5.0, 3.0, 4.0),
    }
    _end(tmp_path, {f"{net}-{n}-{seed}": error for (net, n), of in ends.items() for seed, error in enumerate(of)})
    text = (render(tmp_path, study) / "metrics.md").read_text()
    _, _, said = text.partition("(figures/degradation.png)\n\n")
    assert said.split("\n\n## ")[0] == (
        "Training error over the last 250 iterations, mean of 3 runs of each network; 95% intervals are Student's t of "
        "the differences seed by seed:\n\n"
        "- From Plain-20 to Plain-56 it goes from 6.00% to 12.00%, +6.00 points (95% interval 5.75 to 6.25).\n"
        "- From ResNet-20 to ResNet-56 it goes from 5.00% to 4.00%, -1.00 points (95% interval -1.50 to -0.50).\n"
        "- The change of the plain networks less that of the residual ones: +7.00 points (95% interval 6.25 to 7.75)."
    )


@pytest.mark.usefixtures("no_figures")
def test_degradation_of_one_run_has_no_interval(rendered):
    text = (rendered(*BOTH, "model.n=[3,9]", "train.seeds=0") / "metrics.md").read_text()
    assert "Training error over the last 50 iterations, 1 run of each network:" in text
    assert "95% interval" not in text.partition("(figures/degradation.png)")[2].partition("## ")[0]


@pytest.mark.usefixtures("no_figures")
def test_a_depth_that_shows_nothing_is_said_to(tmp_path):
    """1.0 less, none and 1.0 more: 0.00 ± 2.48."""
    study = study_of("preset=degradation", "model.n=[3,9]")
    make_results(tmp_path, study)
    _end(tmp_path, {f"resnet-{n}-{seed}": 5 + (n == 9) * (seed - 1) for n in (3, 9) for seed in range(3)})
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert "from 5.00% to 5.00%, +0.00 points (95% interval -2.48 to 2.48, which holds 0)." in text


@pytest.mark.usefixtures("no_figures")
def test_responses_are_said_as_means_over_layers_and_seeds(tmp_path):
    study = study_of(*BOTH, "model.n=3", "train.seeds=[0,1]")
    make_results(tmp_path, study)
    for cell in study.list_cells():
        level = (2.0 if cell.net == "plain" else 1.0) + 0.5 * cell.seed
        layers = [level - 0.25, *[level] * 17, level + 0.25]
        _evaluate_otherwise(tmp_path / f"results/{cell}/metrics.json", responses=layers)
    text = (render(tmp_path, study) / "metrics.md").read_text()
    assert f"on the first {IMAGES} test images" in text
    assert "mean of 2 runs of each network. The mean over all layers, plain and residual: 2.25 and 1.25 with 20" in text
    assert "Degradation" not in text  # one depth shows none


def test_a_report_of_residual_networks_alone_speaks_of_neither(rendered):
    text = (rendered("model.n=[3,9]") / "metrics.md").read_text()
    assert "Degradation" not in text
    assert "responses" not in text


@pytest.mark.parametrize("depths", ["[3,5,7,9]", "[1,2,3,4,5,18]"])
def test_both_panels_of_degradation_have_every_depth(tmp_path, monkeypatch, depths):
    study = study_of("preset=degradation", f"model.n={depths}")
    make_results(tmp_path, study)
    figure = _drawn("degradation.png", tmp_path, study, monkeypatch)
    assert [axes.get_title() for axes in figure.axes] == ["Plain", "Residual"]
    curves = read(tmp_path, study).curves
    for axes, net in zip(figure.axes, ("plain", "resnet"), strict=True):
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 32]
        assert [line.get_linestyle() for line in drawn] == ["--", "-"] * len(study.cells.n)  # training, test
        deepest = curves[(curves["net"] == net) & (curves["n"] == study.cells.n[-1])].groupby("iteration")
        assert drawn[-1].get_ydata() == pytest.approx(deepest["curve_test_error"].mean())
        assert drawn[-2].get_ydata() == pytest.approx(deepest["train_error"].mean())
        assert len(axes.collections) == len(drawn)  # the bands
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 <= legend.x1 <= figure.bbox.x1


def test_responses_are_drawn_by_layer_and_by_size(tmp_path, monkeypatch):
    study = study_of(*BOTH, "model.n=[3,9]")
    make_results(tmp_path, study)
    by_layer, by_size = _drawn("responses.png", tmp_path, study, monkeypatch).axes
    means = read(tmp_path, study).responses.groupby(["net", "n", "layer"])["response"].mean()
    expected = [means["plain", 3], means["plain", 9], means["resnet", 3], means["resnet", 9]]
    for line, of_size, values in zip(by_layer.lines, by_size.lines, expected, strict=True):
        assert line.get_xydata().tolist() == [list(pair) for pair in enumerate(values, start=1)]
        assert of_size.get_ydata().tolist() == sorted(values, reverse=True)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("kind", "words"), [("pytorch", "; initialised as PyTorch does; the error is"), ("he", "(A); the")]
)
def test_another_initialisation_is_said(rendered, kind, words):
    text = (rendered(*PAPER, "model.n=3", f"model.initialization={kind}") / "metrics.md").read_text()
    assert words in text
    assert ("compared with it: `initialization`" in text) == (kind != "he")


# ---- What is missing or wrong ----------------------------------------------------------------------------------

METRICS, PREDICTIONS = "results/resnet-9-1/metrics.json", "results/resnet-9-1/predictions.safetensors"
RECORD, HISTORY = "runs/resnet-9-1/run.json", "runs/resnet-9-1/history.csv"
WEIGHTS = "runs/resnet-9-1/weights.safetensors"


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / METRICS).unlink(), r"metrics\.json is missing"),
        (lambda f: (f / PREDICTIONS).unlink(), r"predictions\.safetensors is missing"),
        (lambda f: (f / RECORD).unlink(), r"run\.json is missing"),
        (lambda f: (f / WEIGHTS).unlink(), r"weights\.safetensors is missing"),
        (lambda f: (f / HISTORY).unlink(), r"history\.csv is missing"),
        (lambda f: (f / RECORD).write_text("{"), r"run\.json is not a record"),
        (lambda f: (f / METRICS).write_text("{}"), r"metrics\.json is not the result"),
        # Altered afterwards
        (lambda f: _append(f / HISTORY, "41,0.1,1,1,1,1,e\n"), r"history\.csv has the digest"),
        (lambda f: save_file({"weights": torch.zeros(3)}, f / WEIGHTS), r"weights\.safetensors has the digest"),
        (lambda f: save_file({"test_logits": torch.ones(3)}, f / PREDICTIONS), r"predictions\.safetensors is not what"),
        (lambda f: _edit(f / METRICS, {"test.calibration_error": 1.0}), r"metrics\.json was altered: its values"),
        (lambda f: _evaluate_otherwise(f / METRICS, responses=[1.0] * 19), r"metrics\.json has responses of 19 layers"),
        (
            lambda f: _evaluate_otherwise(f / METRICS, test=measures(5.0, 10_000)),
            r"history\.csv ends with test error .* metrics\.json has 5 and",
        ),
        (lambda f: _evaluate_otherwise(f / METRICS, cell="resnet-9-0"), r"metrics\.json is of resnet-9-0"),
        (lambda f: _evaluate_otherwise(f / METRICS, weights_sha256="a" * 64), r"of other weights"),
        (lambda f: _evaluate_otherwise(f / METRICS, data_sha256="a" * 64), r"of another data set than its run\.json"),
        (lambda f: _edit(f / RECORD, {"question.cell": "resnet-9-0"}), r"its cell is resnet-9-0, not resnet-9-1"),
        (lambda f: _edit(f / RECORD, {"question.parameters": "a" * 64}), r"its parameters' digest is aaaa"),
        (
            lambda f: make_cell(f, study_of("train.eval_every=10"), Cell("resnet", 9, 1)),
            r"its parameters' digest is .*run\.json",
        ),
        (
            lambda f: make_cell(f, study_of("data.validation=5000"), Cell("resnet", 9, 1)),
            r"not of data\.validation 0",
        ),
        (
            lambda f: make_cell(f, study_of(), Cell("resnet", 9, 1), data="a" * 64),
            r"its data set's digest is aaaaaaaaaaaa, that of resnet-3-0 is dddddddddddd",
        ),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_a_cell_that_is_missing_altered_or_anothers_is_named_and_the_last_report_stays(tmp_path, change, sentence):
    study = study_of()
    make_results(tmp_path, study)
    before = _everything(render(tmp_path, study))
    change(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        render(tmp_path, study)
    assert str(caught.value).startswith("1 of 8 cells cannot be reported: resnet-9-1 (")
    assert _everything(tmp_path / "reports") == before


def test_all_that_is_wrong_is_named_at_once(tmp_path):
    study = study_of("model.n=[3,9]", "train.seeds=[0,1,2]")
    make_results(tmp_path, study)
    (tmp_path / RECORD).unlink()
    make_cell(tmp_path, study, Cell("resnet", 3, 0), data="a" * 64)
    _edit(tmp_path / "results/resnet-9-0/metrics.json", {"test.error": 1.0})
    with pytest.raises(InputError, match=r"^3 of 6 cells .*resnet-3-0 \(.*resnet-9-0 \(.*resnet-9-1 \("):
        read(tmp_path, study)


def test_a_result_of_5000_held_out_images_is_not_one_of_40000(tmp_path):
    make_results(tmp_path, study_of("data.validation=5000", "model.n=3"))
    with pytest.raises(InputError, match=r"2 of 2 cells .*not of data\.validation 40000"):
        read(tmp_path, study_of("data.validation=40000", "model.n=3"))


@pytest.mark.usefixtures("no_figures")
def test_a_cell_that_the_parameters_do_not_name_is_left_out(tmp_path):
    make_results(tmp_path, study_of())
    text = (render(tmp_path, study_of("model.n=9")) / "metrics.md").read_text()
    assert [row["Network"] for row in _table(text)] == ["ResNet-56"]


# ---- The real thing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [0, 50])
def test_what_training_and_evaluation_leave_is_reported(tmp_path, validation):
    """Two cells of six iterations; the curve's last error and loss are those of the checkpoint."""
    write_tiny_cifar10(tmp_path / "raw", train=20, test=40)
    data = tmp_path / "cifar10.safetensors"
    preprocess(tmp_path / "raw", data, validation)
    overrides = ["model.n=1", "train.iterations=6", "train.batch_size=8", "train.milestones=[4]", "train.eval_every=4"]
    study = study_of(*overrides, f"data.validation={validation}")
    settings = Settings(device="cpu", threads=1, pack=None, save_every=30.0, simd="none", source=None)
    session = Session(study, data, tmp_path / "runs", tmp_path / "scratch", settings, lambda _: None)
    assert train_cells(session, study.list_cells(), lambda _: None) == {}
    evaluator = Evaluator(dataset.load(data), sha256(data), settings, lambda _: None)
    for cell in study.list_cells():
        evaluator.evaluate(cell, tmp_path / "runs", tmp_path / "results")
    folder = render(tmp_path, study)
    results, curves = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "curves.csv")
    assert curves["iteration"].tolist() == [4, 6] * 2
    assert curves["curve_test_error"].tolist()[1::2] == results["test_error"].tolist()
    assert curves["curve_test_loss"].tolist()[1::2] == results["test_loss"].tolist()
    assert results["parameters"].tolist() == [75_290] * 2
    assert ("curve_validation_error" in curves) == bool(validation)


def _stage(folder: Path, *before: str, **variables: str) -> subprocess.CompletedProcess:
    """`python stages/report.py` with some statements before it."""
    code = "; ".join(["import runpy, sys", *before, "sys.argv = sys.argv[1:]", "runpy.run_path(sys.argv[0])"])
    command = [sys.executable, "-c", code, str(ROOT / "stages/report.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | variables)


def test_the_stage_says_what_is_missing_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text(composed("model.n=3", "train.seeds=0"))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/throughput.csv").write_text("not looked at before the cells")
    done = _stage(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: 1 of 1 cells cannot be reported: resnet-3-0 (its run.json is missing); make them with `dvc repro`.\n"
    )
    assert not (tmp_path / "reports").exists()


def test_the_stage_in_a_notebooks_shell_and_without_measurements(tmp_path):
    """IPython names its backend to the processes that it starts; matplotlib cannot be imported where it is missing."""
    study = study_of("model.n=3", "train.seeds=0")
    (tmp_path / "params.yaml").write_text(composed("model.n=3", "train.seeds=0"))
    make_results(tmp_path, study)
    done = _stage(tmp_path, MPLBACKEND="module://no.such.backend")
    assert (done.returncode, done.stderr) == (
        0,
        "benchmarks/throughput.csv is not there: the report has no section on speed\n",
    )
    assert {path.name for path in (tmp_path / "reports/figures").iterdir()} == ALWAYS


def test_a_disk_that_is_full_is_named_and_the_last_report_stays(tmp_path):
    study = study_of("model.n=3", "train.seeds=0")
    (tmp_path / "params.yaml").write_text(composed("model.n=3", "train.seeds=0"))
    make_results(tmp_path, study)
    (tmp_path / "reports/.new/figures").mkdir(parents=True)  # of a report that was killed
    (tmp_path / "reports/metrics.md").write_text("the last one")
    done = _stage(tmp_path, "import resource", "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: reports: File too large."
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["metrics.md"]
    assert (tmp_path / "reports/metrics.md").read_text() == "the last one"


@pytest.mark.parametrize("package", ["pandas", "tabulate"])
def test_the_stage_names_the_extra_that_is_missing(tmp_path, package):
    (tmp_path / "params.yaml").write_text(composed("model.n=3", "train.seeds=0"))
    done = _stage(tmp_path, f"sys.modules[{package!r}] = None")
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {package} is not installed: in a clone, `pip install '.[pipeline]'` brings it.\n",
    )


@pytest.mark.parametrize("module", ["resnet_cifar.missing", "_ctypes"])
def test_what_no_extra_brings_is_not_asked_for(module):
    with pytest.raises(ModuleNotFoundError, match=module), needs_extra("pipeline"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_the_readme_opens_with_the_reports_table():
    text = committed("reports/metrics.md")
    table = "\n".join(line for line in text.partition("\n\n**")[0].splitlines() if line.startswith("|"))
    assert table in (ROOT / "README.md").read_text().partition("```")[0]


def fetch(md5: str, path: Path) -> None:
    """What DVC has under a digest in store/, to a file or a folder."""
    content = (ROOT / "store/files/md5" / md5[:2] / md5[2:]).read_bytes()
    assert hashlib.md5(content).hexdigest() == md5.removesuffix(".dir")
    if md5.endswith(".dir"):
        for file in json.loads(content):
            fetch(file["md5"], path / file["relpath"])
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("folder", "report"),
    [("", "reports/"), *((f"reports/studies/{name}/", f"reports/studies/{name}/") for name in STUDIES)],
)
def test_the_published_report_is_that_of_the_bytes_in_the_store(tmp_path, folder, report):
    for name, stage in yaml.safe_load(committed(f"{folder}dvc.lock"))["stages"].items():
        for out in stage["outs"] if name.startswith(("train@", "evaluate@")) else []:
            fetch(out["md5"], tmp_path / out["path"])
    made = render(tmp_path, Study.model_validate(yaml.safe_load(committed(f"{folder}params.yaml"))))
    for name in ("metrics.md", "metrics.json", "results.csv", "curves.csv"):
        # A kept study's section on speed is of its own day.
        one, other = (text.partition("\n## Speed")[0] for text in ((made / name).read_text(), committed(report + name)))
        assert one == other


def test_the_readmes_sentences_have_the_reports_numbers(tmp_path):
    text = " ".join((ROOT / "README.md").read_text().split())
    cells = pd.read_csv(StringIO(committed("reports/results.csv")))
    published = pd.read_csv(PUBLISHED).query("source == 'paper'").set_index("network")["error"]
    means = cells.groupby("network")["test_error"].mean().map(number).astype(float)  # as the table shows them
    first, *others = (number(abs(gap)) for gap in sorted((means - published).dropna()))
    assert f"ResNet-20 is {first} points better than its, the others are {others[0]} to {others[-1]} worse." in text
    assert f"They took {cells['seconds'].sum() / 3600:.1f} hours." in text
    assert list(means[:3]) == sorted(means[:3], reverse=True)
    deepest = cells[cells["network"] == "ResNet-56"].set_index("seed")["test_error"]
    *usual, outlier = map(number, sorted(deepest))
    assert deepest.idxmax() == 3
    assert f"four have {usual[0]} to {usual[-1]}%, one, seed 3, has {outlier}%" in text
    assert f"the median is {number(deepest.median())}%." in text
    curves = pd.read_csv(StringIO(committed("reports/curves.csv")))
    early = curves.query("network == 'ResNet-56' and iteration == 13_000").set_index("seed")["train_error"]
    *usual, outlier = (f"{error:.1f}" for error in sorted(early))
    assert early.idxmax() == 3
    assert f"the highest of the five already, {outlier}% beside {usual[0]} to {usual[-1]}%." in text
    measured = tmp_path / THROUGHPUT.name
    measured.write_text(committed(f"benchmarks/{measured.name}"))
    table = speed.load(measured)
    here = table[table["device"].str.contains("Xeon") & (table["threads"] == 2)]
    seconds = here.set_index(["network", "way"])["seconds_per_64k_iterations"]
    for way, words in (
        (speed.LOOP, "does {:.2f} (ResNet-20) and {:.2f} times (ResNet-56)"),
        ("usual loop, autocast", "in fp32, {:.2f} and {:.2f} times those of the same loop in bf16"),
    ):
        gains = [seconds[network, way] / seconds[network, "native engine"] for network in ("ResNet-20", "ResNet-56")]
        assert words.format(*gains) in text


def test_the_readme_says_how_strongly_the_outliers_layers_respond(tmp_path):
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "Layers 15 to 27 of the trained network respond about half as strongly as in the other runs" in text
    for name, stage in yaml.safe_load(committed("dvc.lock"))["stages"].items():
        for out in stage["outs"] if name.startswith("evaluate@resnet-9-") else []:
            fetch(out["md5"], tmp_path / out["path"])
    strength = {
        path.parent.name: np.mean(json.loads(path.read_text())["responses"][14:27])
        for path in tmp_path.glob("results/*/metrics.json")
    }
    outlier = strength.pop("resnet-9-3")
    assert outlier / np.mean(list(strength.values())) == pytest.approx(0.5, abs=0.05)


def test_the_readme_says_what_the_degradation_study_found():
    text = " ".join((ROOT / "README.md").read_text().split())
    folder = ROOT / "reports/studies/degradation"
    cells = pd.read_csv(folder / "results.csv").groupby("network")["test_error"].mean()
    plain, residual = re.findall(r"% to [\d.]+%, \+([\d.]+) points \(95% interval", (folder / "metrics.md").read_text())
    assert f"plain networks rises by {float(plain):.0f} points, that of residual ones by {float(residual):.1f}," in text
    assert f"rises, too, from {cells['ResNet-20']:.2f} to {cells['ResNet-56']:.2f}%" in text


def test_the_readme_gives_the_controls_last_points():
    last = pd.read_csv(ROOT / "reports/controls.csv").groupby("cell").last()
    small, large = (last.filter(regex=name, axis="index") for name in ("resnet-3-[01234]", "resnet-9-[01]"))
    assert (len(small), len(large)) == (5, 2)
    (at_small,), (at_large,) = (set(each["iteration"]) for each in (small, large))
    curves = pd.read_csv(StringIO(committed("reports/curves.csv")))
    native = curves.set_index(["network", "iteration"])["curve_test_error"]
    errors = [
        spread(each.mean(), each.std()) for each in (native["ResNet-20", at_small], native["ResNet-56", at_large])
    ]
    found = [
        spread(small["test_error"].mean(), small["test_error"].std()),
        " and ".join(map(number, large["test_error"])),
    ]
    text = " ".join((ROOT / "README.md").read_text().split())
    for control, at, ours in zip(found, (at_small, at_large), errors, strict=True):
        assert f"has {control}% at iteration {at:,}, where the runs above have {ours}%." in text
