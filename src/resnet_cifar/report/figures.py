"""The report's figures, by the names of their files."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container

from resnet_cifar.cells import NETS
from resnet_cifar.cifar10 import CLASSES
from resnet_cifar.params import Study
from resnet_cifar.report import depth
from resnet_cifar.report.canvas import BLACK, BLUE, DROPS, GREEN, VERMILLION, draw_curve, figure, mark_schedule
from resnet_cifar.report.outcome import Outcome
from resnet_cifar.report.statistics import LEAST, summarize

NET_COLORS = {"resnet": BLUE, "plain": VERMILLION}
FOLDER = "figures"


def error_vs_depth(_: Study, outcome: Outcome, path: Path) -> None:
    """Draw the test error against the depth: every seed, the mean with its 95% interval, and what others report.

    Parameters
    ----------
    outcome : Outcome
        The results; the rows of ``published`` are marked.
    path : Path
        The PNG to write.
    """
    depths = sorted(outcome.cells["depth"].unique())
    place = {depth: position for position, depth in enumerate(depths)}
    with figure(path, 4.8) as made:
        axes = made.subplots()
        marks: list[Artist | Container] = []
        for net, cells in outcome.cells.groupby("net", sort=False):
            placed = cells.assign(place=cells["depth"].map(place))
            marks += _mark_runs(axes, placed, outcome.runs, NETS[str(net)], NET_COLORS[str(net)])
        places = outcome.cells.groupby("network")["depth"].first().map(place)
        for source, rows in outcome.published.groupby("source", sort=False):
            marks.append(_mark_published(axes, rows["network"].map(places), rows, str(source)))
        axes.set(xlabel="Depth (layers)", ylabel="Test error (%)", xlim=(-0.5, len(depths) - 0.5))
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.grid(visible=False, axis="x")
        made.legend(handles=marks, loc="outside lower center", ncols=min(2, len(marks)))


def _mark_runs(axes: Axes, cells: pd.DataFrame, count: int, label: str, color: str) -> list[Artist | Container]:
    """Every run as a dot; beside it, if there are several, the mean, with its interval if that can be given."""
    style = {"color": color, "markeredgewidth": 0}
    if count == 1:
        (line,) = axes.plot(cells["place"], cells["test_error"], "-o", linewidth=1, label=f"{label}, one run", **style)
        return [line]
    (runs,) = axes.plot(cells["place"] - 0.1, cells["test_error"], "o", alpha=0.45, label=f"{label}, a run", **style)
    summaries = cells.groupby("place")["test_error"].agg(summarize)
    means = [summary.mean for summary in summaries]
    reach = [summary.interval[1] - summary.mean for summary in summaries] if count >= LEAST else None
    axes.plot(summaries.index, means, color=color, linewidth=1, alpha=0.6)
    text = f"{label}, mean of {count} runs" + (" and 95% interval" if count >= LEAST else "")
    return [runs, axes.errorbar(summaries.index, means, reach, fmt="s", color=color, capsize=4, label=text)]


def _mark_published(axes: Axes, places: pd.Series, rows: pd.DataFrame, source: str) -> Container:
    """What one source reports, beside ours; with its standard deviation where it is a mean."""
    name, marker, color, aside = {
        "paper": ("Paper", "X", BLACK, 0.1),
        "article": ("Article", "D", GREEN, 0.2),
    }[source]
    stands_on = {1: "one run", 5: "mean of 5 ± std"}
    label = f"{name}, {' or '.join(stands_on[runs] for runs in sorted(rows['runs'].unique()))}"
    return axes.errorbar(
        places + aside,
        rows["error"],
        rows["std"].fillna(0),
        fmt=marker,
        color=color,
        markersize=7,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def training(study: Study, outcome: Outcome, path: Path) -> None:
    """Draw training and test error against the iteration, a panel a network, as the paper's Figure 6 does.

    A line is the mean over the seeds, the band reaches from the lowest to the highest. The axis ends a little above
    the final errors, so the first iterations lie outside.

    Parameters
    ----------
    study : Study
        Gives the iterations after which the learning rate drops.
    outcome : Outcome
        The results.
    path : Path
        The PNG to write.
    """
    networks = outcome.networks
    columns = min(2, len(networks))
    rows = math.ceil(len(networks) / columns)
    final = outcome.curves.loc[outcome.curves["iteration"] == study.train.iterations, "curve_test_error"].max()
    test = "Test" if outcome.precisions == ["fp32"] else f"Test, in {' or '.join(outcome.precisions)}"
    shown = (("curve_test_error", test, BLUE), ("train_error", "Training", VERMILLION))
    with figure(path, 0.6 + rows * (2.6 if columns == 2 else 4)) as made:
        panels = made.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, network in zip(panels, networks, strict=False):
            curves = outcome.curves[outcome.curves["network"] == network]
            for key, label, color in shown:
                draw_curve(axes, curves, key, alpha=0.25, color=color, linewidth=1.5, label=label)
            mark_schedule(axes, study)
            axes.set(title=f"{network}, {outcome.basis}", ylim=(0, min(100, 2.5 * final)))
        for axes in panels[len(networks) :]:
            axes.set_axis_off()
        # The panel above a missing one is the last of its column and says its own iterations.
        for axes in panels[len(networks) - columns : len(networks)]:
            axes.tick_params(labelbottom=True)
        made.supxlabel(DROPS, fontsize=11)
        made.supylabel("Error (%)", fontsize=11)
        made.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


def confusion(_: Study, outcome: Outcome, path: Path) -> None:
    """Draw the confusion matrix of the deepest network, mean over its runs, in percent of the true class's images.

    Parameters
    ----------
    outcome : Outcome
        The results. Of two networks of the same depth the first is drawn.
    path : Path
        The PNG to write.
    """
    network = outcome.cells.loc[outcome.cells["depth"].idxmax(), "network"]
    counts = outcome.confusion[outcome.cells["network"] == network].mean(axis=0)
    percent = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    # The diagonal would leave one colour for all confusions.
    mistakes = np.where(np.eye(len(CLASSES), dtype=bool), np.nan, percent)
    with figure(path, 6.6) as made:
        axes = made.subplots()
        image = axes.imshow(mistakes, cmap="Blues", vmin=0)
        strongest = max(1e-9, np.nanmax(mistakes))
        for (row, column), value in np.ndenumerate(percent):
            dark = row != column and value > 0.7 * strongest
            axes.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=10,
                color="white" if dark else BLACK,
                fontweight="bold" if row == column else "normal",
            )
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(CLASSES)), CLASSES)
        axes.set(
            xlabel="Predicted class",
            ylabel="True class",
            title=f"{network}, {outcome.basis}: where the test images of each class go (%)",
        )
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        made.colorbar(image, label="Mistaken for another class (%)", shrink=0.8)


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes
    ----------
    title : str
        What it shows.
    draw : callable
        Draws it into a PNG.
    fits : callable
        Whether a study has what it needs.
    says : callable
        What the numbers in it come to, in Markdown; may be empty.
    """

    title: str
    draw: Callable[[Study, Outcome, Path], None]
    fits: Callable[[Outcome], bool] = lambda _: True
    says: Callable[[Outcome], str] = lambda _: ""


FIGURES = {
    "error_vs_depth.png": Drawing("Test error against depth", error_vs_depth),
    "degradation.png": Drawing(
        "Degradation: plain and residual networks by depth",
        depth.draw_degradation,
        depth.shows_degradation,
        depth.describe_degradation,
    ),
    "responses.png": Drawing(
        "Layer responses", depth.draw_responses, depth.compares_responses, depth.describe_responses
    ),
    "training.png": Drawing("Training and test error against iteration", training),
    "confusion.png": Drawing("Confusion matrix", confusion),
}
"""By the names of their files, in the report's order."""


def figures_of(outcome: Outcome) -> dict[str, Drawing]:
    """Those of a study, by the names of their files."""
    return {name: drawing for name, drawing in FIGURES.items() if drawing.fits(outcome)}
