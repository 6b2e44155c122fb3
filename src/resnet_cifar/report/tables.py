"""The report in words and numbers: the error table in Markdown, the same as CSV and as metrics for DVC."""

import json
from collections.abc import Callable

import pandas as pd

from resnet_cifar.cells import Cell
from resnet_cifar.cifar10 import CLASSES
from resnet_cifar.params import TRAINING_IMAGES, Study
from resnet_cifar.report.figures import FOLDER, figures_of
from resnet_cifar.report.outcome import Outcome
from resnet_cifar.report.statistics import LEAST, Summary, summarize
from resnet_cifar.report.text import DASH, interval, listed, markdown, number, spread

INITIALIZATIONS = {
    "he": "",
    "he_convolutions": "the classifier initialised as PyTorch does, the convolutions by He's rule; ",
    "pytorch": "initialised as PyTorch does; ",
}
"""The paper's needs no word."""


def metrics_md(study: Study, outcome: Outcome, speed: pd.DataFrame | None) -> str:
    """The report, reports/metrics.md: the error table, protocol and hardware, figures, errors by class, time, speed.

    Parameters
    ----------
    study : Study
        The parameters.
    outcome : Outcome
        The results.
    speed : DataFrame or None
        What :func:`resnet_cifar.report.speed.load` gives.
    """
    parts = [
        _title(study, outcome),
        _error_table(study, outcome),
        _legend(outcome),
        f"**Protocol:** {_protocol(study)}",
        _remarks(study, outcome),
        f"**Hardware:** {_hardware(outcome)}",
        f"**Curves:** {_curves(outcome)}",
        *[
            part
            for name, drawing in figures_of(outcome).items()
            for part in (f"## {drawing.title}\n\n![{drawing.title}]({FOLDER}/{name})", drawing.says(outcome))
        ],
        f"## Test error by class, %\n\n{_basis(outcome)}",
        _class_table(outcome),
        f"## Loss, calibration and time\n\n{_basis(outcome)} The calibration error is the expected gap between "
        "confidence and accuracy. Seconds are those of training and its evaluations, of an interrupted run added up: "
        "beside other work, or other runs on the device, they are more than the section on speed says.",
        _cost_table(outcome),
    ]
    if speed is not None:
        parts += [
            "## Speed\n\nThe training step beside the usual loop (a DataLoader, torchvision's transforms, an eager "
            "network), as `python benchmarks/throughput.py` measured them; of each device the newest figures. The "
            "ratio is to the nearest fp32 loop above, with which a way took turns in one measurement. Several "
            "networks at once: all their images, and the seconds that one network's 64,000 iterations come to. On a "
            "GPU the fp32 loop has TF32 in its convolutions, which is PyTorch's default; this step has none. Last two "
            "columns: bytes of an ideally fused step and FLOPs of direct convolutions, as shares of what the device "
            "copies and multiplies in the same precision, without TF32; most of the native engine's convolutions need "
            "a quarter of the multiplications of direct ones, so that its share may exceed 100.",
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


def _title(study: Study, outcome: Outcome) -> str:
    if outcome.compares:
        return "# Test error on CIFAR-10"
    if study.train.iterations * study.train.batch_size < TRAINING_IMAGES:
        return (
            f"# A quick run of {study.train.iterations:,} iterations: it shows the pipeline and compares with nothing"
        )
    return "# Test error on CIFAR-10, with another protocol than the paper's"


def _error_table(study: Study, outcome: Outcome) -> str:
    table = []
    for network, rows in outcome.cells.groupby("network", sort=False):
        errors = summarize(rows["test_error"])
        row = {
            "Network": str(network),
            "Parameters": f"{rows['parameters'].iloc[0]:,}",
            "Runs": str(errors.runs),
            "Test error, %": spread(errors.mean, errors.std),
        }
        if study.data.validation:
            held_out = summarize(rows["validation_error"])
            row["Validation error, %"] = spread(held_out.mean, held_out.std)
        row |= {
            "95% interval of the mean": interval(errors.interval),
            "Best (seed)": _seed(rows, rows["test_error"].idxmin()),
            "Worst (seed)": _seed(rows, rows["test_error"].idxmax()),
        }
        if outcome.compares:
            published = outcome.published[outcome.published["network"] == network].set_index("source")
            paper = published.loc["paper"] if "paper" in published.index else None
            article = published.loc["article"] if "article" in published.index else None
            row |= {
                "Paper": _reported(paper),
                "Article": _reported(article),
                "The paper's run is": _verdict(paper, errors),
            }
        table.append(row)
    return markdown(table)


def _reported(row: pd.Series | None) -> str:
    """A published error as its source gives it: ``8.75``, ``6.61 ± 0.16``, or ``≈ 9.7`` where it was read off."""
    if row is None:
        return DASH
    if row["kind"] == "figure":
        return f"≈ {row['error']:.1f}"
    return spread(row["error"], row["std"]) if row["kind"] == "mean" else number(row["error"])


def _verdict(paper: pd.Series | None, ours: Summary) -> str:
    """Where a single run of the paper lies: inside or outside the interval of one further run of ours."""
    if paper is None or paper["kind"] == "mean" or ours.prediction is None:
        return DASH
    low, high = ours.prediction
    return f"{'inside' if low <= paper['error'] <= high else 'outside'} {interval(ours.prediction)}"


def _legend(outcome: Outcome) -> str:
    parts = []
    if outcome.runs > 1:
        parts.append(
            f"Errors are mean ± standard deviation (n-1) over {outcome.runs} runs of each network, one seed each"
            + ("." if outcome.runs >= LEAST else f"; an interval needs {LEAST}.")
        )
    else:
        parts.append("One run of each network: there is no spread and no interval.")
    kinds = set(outcome.published["source"] + " " + outcome.published["kind"])
    if "paper single" in kinds:
        parts.append("Paper: He et al. 2015, Table 6, single runs.")
    if "paper mean" in kinds:
        parts.append("The paper's ResNet-110: mean ± standard deviation of five runs.")
    if "paper figure" in kinds:
        parts.append("≈: single runs read off the paper's Figure 6, to about ± 0.1.")
    if "article mean" in kinds:
        parts.append(
            "Article: an implementation of these networks in PyTorch, with its default initialisation and biases in "
            "the convolutions; mean ± standard deviation of five."
        )
    if kinds & {"paper single", "paper figure"}:
        parts.append(
            "The last column says whether the paper's run lies inside the 95% prediction interval for one further run "
            "of ours."
            if outcome.runs >= LEAST
            else "The paper's are single runs, too: a difference from them may be chance."
        )
    return " ".join(parts)


def _protocol(study: Study) -> str:
    train, data = study.train, study.data
    drops = listed([f"{milestone:,}" for milestone in train.milestones])
    rate = f"learning rate {train.lr:g}" + (f", times {train.gamma:g} after {drops} iterations" if drops else "")
    if warm := _warmed_up(study):
        deep = "" if len(warm) == len(study.list_cells()) else f" if {min(cell.depth for cell in warm)} layers or more"
        rate += f" ({train.warmup.lr:g} for the first {train.warmup.iterations:,}{deep})"
    mean = "per-pixel mean subtracted" if data.normalize == "pixel_mean" else "channels standardised"
    held_out = f" ({data.validation:,} more held out)" if data.validation else ""
    shortcut = "parameter-free shortcuts (A)" if study.model.shortcut == "A" else "projection shortcuts (B)"
    images = f"{TRAINING_IMAGES - data.validation:,} training images{held_out}"
    start = INITIALIZATIONS[study.model.initialization]
    return (
        f"{train.iterations:,} iterations of SGD on batches of {train.batch_size}, momentum {train.momentum:g}, "
        f"weight decay {train.weight_decay:g}, {rate}; {images}, {mean}, random crops and flips; {shortcut}; {start}"
        "the error is the last iterate's on the test images, computed in fp32 from its checkpoint."
    )


def _remarks(study: Study, outcome: Outcome) -> str:
    """Where the protocol is not the paper's, and where it is not so to the letter; a line each."""
    lines = []
    if outcome.differences:
        named = listed([f"`{name}`" for name in outcome.differences])
        lines.append(f"Not the paper's, and so not compared with it: {named}.")
    if study.data.validation:
        lines.append(
            f"{study.data.validation:,} training images are held out. The paper fixed its schedule on a split of "
            "45,000 and 5,000; what stands beside its table is trained on all."
        )
    if outcome.precisions != ["fp32"]:
        lines.append(f"Trained in {listed(outcome.precisions)}; the paper trained in single precision (fp32).")
    if _warmed_up(study):
        lines.append(
            f"A fixed {study.train.warmup.iterations:,} iterations of warm-up replace the paper's "
            '"until the training error is below 80%".'
        )
    lines.append(
        f"Batch normalisation sees all {study.train.batch_size} images of a batch; the paper used two GPUs, each of "
        "which probably saw half of them."
    )
    lines.append("Momentum is PyTorch's: the learning rate stands outside the velocity, so a drop takes hold at once.")
    return "\n".join(f"- {line}" for line in lines)


def _warmed_up(study: Study) -> list[Cell]:
    return [cell for cell in study.list_cells() if study.recipe(cell).warmup_iterations]


def _hardware(outcome: Outcome) -> str:
    cells = outcome.cells
    kinds = [
        f"{_runs(count)} on {processor} ({_threads(threads)}), {engine} engine, {precision}"
        for (processor, threads, engine, precision), count in cells.groupby(
            ["processor", "threads", "engine", "precision"]
        )
        .size()
        .items()
    ]
    minutes = cells["seconds"].sum() / 60
    time = f"{minutes / 60:,.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
    engines = cells.groupby("engine").size()
    mixed = ""
    if len(engines) > 1:
        counts = listed([f"{_runs(count)} of the {engine} engine" for engine, count in engines.items()])
        mixed = f" **The table mixes engines:** {counts}. They compute the same protocol with other roundings."
    return f"{'; '.join(kinds)}. The times of all runs add up to {time}.{mixed}"


def _curves(outcome: Outcome) -> str:
    """Which test error a curve shows: there are two."""
    if outcome.precisions == ["fp32"]:
        nearly = "; where another processor evaluated, it is so to a few images"
        return (
            "their test error, `curve_test_error` in curves.csv, is computed while training. Its last value is the "
            f"table's, `test_error` in results.csv{'' if set(outcome.cells['engine']) == {'native'} else nearly}."
        )
    return (
        "their test error, `curve_test_error` in curves.csv, is computed while training, here in "
        f"{listed(outcome.precisions)}. In 16 bits it is another number than the table's, `test_error` in "
        "results.csv, which comes from the checkpoint in fp32."
    )


def _basis(outcome: Outcome) -> str:
    return f"Means over the {outcome.runs} runs of each network." if outcome.runs > 1 else "One run of each network."


def _runs(count: int) -> str:
    return f"{count} {'run' if count == 1 else 'runs'}"


def _threads(count: int) -> str:
    return f"{count} CPU thread" + ("s" if count > 1 else "")


def _class_table(outcome: Outcome) -> str:
    table = []
    for network in outcome.networks:
        errors = outcome.class_errors[outcome.cells["network"] == network].mean(axis=0)
        table.append({"Network": network} | dict(zip(CLASSES, map(number, errors), strict=True)))
    return markdown(table)


def _cost_table(outcome: Outcome) -> str:
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "Test loss, nats": ("test_loss", "{:.3f}".format),
        "Calibration error, %": ("test_calibration_error", number),
        "Seconds a run": ("seconds", "{:,.0f}".format),
        "Images a second": ("images_per_second", "{:,.0f}".format),
    }
    return markdown(
        [
            {"Network": str(network)} | {title: form(rows[key].mean()) for title, (key, form) in columns.items()}
            for network, rows in outcome.cells.groupby("network", sort=False)
        ]
    )


def _speed_table(speed: pd.DataFrame) -> str:
    return markdown(
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
                "% of copy": f"{row['percent_of_copy_bandwidth']:.0f}",
                "% of matrix": f"{row['percent_of_matrix_rate']:.0f}",
            }
            for row in speed.to_dict("records")
        ],
        words=5,
    )


def _seed(rows: pd.DataFrame, index: int) -> str:
    return f"{number(rows.loc[index, 'test_error'])} ({rows.loc[index, 'seed']})"
