"""The report in words and numbers: the error table in Markdown, the same as CSV and as metrics for DVC."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from tabulate import tabulate

from resnet_cifar.cifar10 import CLASSES
from resnet_cifar.params import TRAINING_IMAGES, Params
from resnet_cifar.report.outcome import Outcome, follows_the_paper
from resnet_cifar.report.statistics import Summary, summarize

DASH = "–"
FIGURES = {
    "error_vs_depth.png": "Test error against depth",
    "training.png": "Training and test error against iteration",
    "confusion.png": "Confusion matrix",
}


def metrics_md(study: Params, outcome: Outcome, speed: pd.DataFrame) -> str:
    """The report, reports/metrics.md: the error table, protocol and hardware, figures, errors by class, time, speed."""
    parts = [
        _title(study),
        _error_table(study, outcome),
        _legend(outcome),
        f"**Protocol:** {_protocol(study)}",
        f"**Hardware:** {_hardware(outcome)}",
        *[f"## {title}\n\n![{title}](figures/{name})" for name, title in FIGURES.items()],
        "## Test error by class, %\n\nMean over the runs.",
        _class_table(outcome),
        "## Loss, calibration and time\n\nMeans over the runs. The calibration error is the expected gap between "
        "confidence and accuracy. Runs that share a device overlap: each one's seconds are from its start to its end.",
        _cost_table(outcome),
        "## Speed\n\nThe training step beside the usual loop (a DataLoader, torchvision's transforms, an eager "
        "network), as `python benchmarks/throughput.py` measured them; of each device the newest figures. Several "
        "networks at once: all their images, and the seconds that one network's 64,000 iterations come to.",
        _speed_table(speed),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics_json(outcome: Outcome) -> str:
    """A few numbers a network for ``dvc metrics``: mean and standard deviation of the test error, %, and the runs."""
    metrics = {}
    for network, rows in outcome.cells.groupby("network", sort=False):
        errors = summarize(rows["test_error"])
        metrics[network] = {"error_mean": round(errors.mean, 4)}
        if errors.std is not None:
            metrics[network]["error_std"] = round(errors.std, 4)
        metrics[network]["runs"] = errors.runs
    return json.dumps(metrics, indent=2) + "\n"


def csv(table: pd.DataFrame) -> str:
    """A table as CSV, the same bytes on every system."""
    return table.to_csv(index=False, lineterminator="\n")


def _title(study: Params) -> str:
    if follows_the_paper(study):
        return "# Test error on CIFAR-10"
    if study.train.iterations * study.train.batch_size < TRAINING_IMAGES:
        return (
            f"# A quick run of {study.train.iterations:,} iterations: it shows the pipeline and compares with nothing"
        )
    return "# Test error on CIFAR-10, with another protocol than the paper's"


def _error_table(study: Params, outcome: Outcome) -> str:
    table = []
    for network, rows in outcome.cells.groupby("network", sort=False):
        errors = summarize(rows["test_error"])
        row = {
            "Network": str(network),
            "Parameters": f"{rows['parameters'].iloc[0]:,}",
            "Runs": str(errors.runs),
            "Test error, %": _spread(errors.mean, errors.std),
        }
        if study.data.validation:
            held_out = summarize(rows["validation_error"])
            row["Validation error, %"] = _spread(held_out.mean, held_out.std)
        row |= {
            "95% interval of the mean": _range(errors.interval),
            "Best (seed)": _seed(rows, rows["test_error"].idxmin()),
            "Worst (seed)": _seed(rows, rows["test_error"].idxmax()),
        }
        if follows_the_paper(study):
            published = outcome.published[outcome.published["network"] == network].set_index("source")
            paper = published.loc["paper"] if "paper" in published.index else None
            article = published.loc["article"] if "article" in published.index else None
            row |= {
                "Paper": _reported(paper),
                "Article": _reported(article),
                "The paper's run is": _verdict(paper, errors),
            }
        table.append(row)
    return _markdown(table)


def _reported(row: pd.Series | None) -> str:
    """A published error as its source gives it: ``8.75``, ``6.61 ± 0.16``, or ``≈ 9.7`` where it was read off."""
    if row is None:
        return DASH
    if row["kind"] == "figure":
        return f"≈ {row['error']:.1f}"
    return _spread(row["error"], row["std"]) if row["kind"] == "mean" else _number(row["error"])


def _verdict(paper: pd.Series | None, ours: Summary) -> str:
    """Where a single run of the paper lies: inside or outside the interval of one further run of ours."""
    if paper is None or paper["kind"] == "mean" or ours.prediction is None:
        return DASH
    low, high = ours.prediction
    return f"{'inside' if low <= paper['error'] <= high else 'outside'} {_range(ours.prediction)}"


def _legend(outcome: Outcome) -> str:
    parts = []
    if outcome.cells.groupby("network").size().max() > 1:
        parts.append("Errors are mean ± standard deviation (n-1) over the runs, one seed each.")
    kinds = set(outcome.published["source"] + " " + outcome.published["kind"])
    if "paper single" in kinds:
        parts.append("Paper: He et al. 2015, Table 6, single runs.")
    if "paper mean" in kinds:
        parts.append("The paper's ResNet-110: mean ± standard deviation of five runs.")
    if "paper figure" in kinds:
        parts.append("≈: single runs read off the paper's Figure 6, to about ± 0.1.")
    if "article mean" in kinds:
        parts.append(
            "Article: an implementation of these networks in PyTorch, whose runs this project repeats; mean ± standard "
            "deviation of five."
        )
    if kinds & {"paper single", "paper figure"}:
        parts.append(
            "The last column says whether the paper's run lies inside the 95% prediction interval for one further run "
            "of ours."
        )
    return " ".join(parts)


def _protocol(study: Params) -> str:
    train, data = study.train, study.data
    drops = _listed([f"{milestone:,}" for milestone in train.milestones])
    rate = f"learning rate {train.lr:g}" + (f", times {train.gamma:g} after {drops} iterations" if drops else "")
    warmup = train.warmup
    if warmup.iterations and max(study.cells.n) >= warmup.min_n:
        deep = "" if min(study.cells.n) >= warmup.min_n else f" if {6 * warmup.min_n + 2} layers or more"
        rate += f" ({warmup.lr:g} for the first {warmup.iterations:,}{deep})"
    mean = "per-pixel mean subtracted" if data.normalize == "pixel_mean" else "channels standardised"
    held_out = f" ({data.validation:,} more held out)" if data.validation else ""
    shortcut = "parameter-free shortcuts (A)" if study.model.shortcut == "A" else "projection shortcuts (B)"
    images = f"{TRAINING_IMAGES - data.validation:,} training images{held_out}"
    return (
        f"{train.iterations:,} iterations of SGD on batches of {train.batch_size}, momentum {train.momentum:g}, "
        f"weight decay {train.weight_decay:g}, {rate}; {images}, {mean}, random crops and flips; {shortcut}; "
        "the error is the last iterate's on the test images."
    )


def _hardware(outcome: Outcome) -> str:
    machines = outcome.cells.groupby(["device", "threads", "torch", "precision"], sort=True).size()
    kinds = [
        f"{count} {'run' if count == 1 else 'runs'} on {device} ({_threads(threads)}, PyTorch {torch}, {precision})"
        for (device, threads, torch, precision), count in machines.items()
    ]
    return "; ".join(kinds) + "."


def _threads(count: int) -> str:
    return f"{count} CPU thread" + ("s" if count > 1 else "")


def _class_table(outcome: Outcome) -> str:
    table = []
    for network in outcome.networks:
        errors = outcome.class_errors[outcome.cells["network"] == network].mean(axis=0)
        table.append({"Network": network} | dict(zip(CLASSES, map(_number, errors), strict=True)))
    return _markdown(table)


def _cost_table(outcome: Outcome) -> str:
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "Test loss, nats": ("test_loss", "{:.3f}".format),
        "Calibration error, %": ("test_calibration_error", _number),
        "Seconds a run": ("seconds", "{:,.0f}".format),
        "Images a second": ("images_per_second", "{:,.0f}".format),
    }
    return _markdown(
        [
            {"Network": str(network)} | {title: form(rows[key].mean()) for title, (key, form) in columns.items()}
            for network, rows in outcome.cells.groupby("network", sort=False)
        ]
    )


def _markdown(rows: Sequence[dict[str, str]], words: int = 1) -> str:
    """Rows, each from heading to cell, as a Markdown table; its first columns hold words, the others numbers."""
    alignment = ["left"] * words + ["right"] * (len(rows[0]) - words)
    return tabulate(rows, headers="keys", tablefmt="pipe", colalign=alignment, disable_numparse=True)


def _speed_table(speed: pd.DataFrame) -> str:
    return _markdown(
        [
            {
                "Device": f"{row['device']}, {_threads(row['threads'])}",
                "PyTorch": row["torch"],
                "Network": row["network"],
                "Way": row["way"],
                "Precision": row["precision"],
                "At once": str(row["networks_at_once"]),
                "Images a second": f"{row['images_per_second']:,.0f}",
                "Seconds for 64,000 iterations": f"{row['seconds_per_64k_iterations']:,.0f}",
                "× the usual loop": f"{row['times_the_usual_loop']:.2f}",
            }
            for row in speed.to_dict("records")
        ],
        words=5,
    )


def _number(value: float) -> str:
    return DASH if np.isnan(value) else f"{value:.2f}"


def _spread(mean: float, std: float | None) -> str:
    return f"{_number(mean)} ± {DASH if std is None else _number(std)}"


def _range(interval: tuple[float, float] | None) -> str:
    return DASH if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _seed(rows: pd.DataFrame, index: int) -> str:
    return f"{_number(rows.loc[index, 'test_error'])} ({rows.loc[index, 'seed']})"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
