"""What depth does to plain and to residual networks (section 4.2): degradation, and the layers' responses."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_cifar.cells import NETS
from resnet_cifar.params import Study
from resnet_cifar.report.canvas import BLACK, DROPS, draw_curve, figure, mark_schedule
from resnet_cifar.report.outcome import Outcome
from resnet_cifar.report.statistics import LEAST, summarize
from resnet_cifar.report.text import interval, number

PANELS = {"plain": "Plain", "resnet": "Residual"}
LINES = {"plain": "--", "resnet": "-"}
IN_ONE_ROW = 6


def compares_responses(outcome: Outcome) -> bool:
    """Whether the study has networks of both kinds."""
    return set(outcome.cells["net"]) == set(NETS)


def shows_degradation(outcome: Outcome) -> bool:
    """Whether it has them in several depths."""
    return compares_responses(outcome) and outcome.cells["n"].nunique() > 1


def draw_degradation(study: Study, outcome: Outcome, path: Path) -> None:
    """Draw training and test error against the iteration, plain networks left, residual ones right (Figure 6).

    Parameters
    ----------
    study : Study
        Gives the iterations after which the learning rate drops.
    outcome : Outcome
        The results; the lines are means over the seeds, in a band from the lowest to the highest.
    path : Path
        The PNG to write.
    """
    colors, last = _colors(outcome), outcome.curves["iteration"] == study.train.iterations
    highest = outcome.curves.loc[last, ["train_error", "curve_test_error"]].max(axis=None)
    with figure(path, 4.6) as made:
        panels = made.subplots(1, 2, sharey=True)
        for axes, (net, title) in zip(panels, PANELS.items(), strict=True):
            for n, color in colors.items():
                curves = outcome.curves[(outcome.curves["net"] == net) & (outcome.curves["n"] == n)]
                draw_curve(axes, curves, "train_error", alpha=0.15, color=color, linewidth=1.2, linestyle="--")
                draw_curve(axes, curves, "curve_test_error", alpha=0.25, color=color, linewidth=2)
            mark_schedule(axes, study)
            axes.set(title=title, ylim=(0, min(100, 2 * highest)))
        made.supxlabel(DROPS, fontsize=11)
        made.supylabel("Error (%)", fontsize=11)
        kinds = {"Training": {"linestyle": "--", "linewidth": 1.2}, "Test": {"linewidth": 2}}
        _legend(made, colors, kinds)


def describe_degradation(outcome: Outcome) -> str:
    """What depth does to the training error, a line for each kind and one for both; differences are taken by seed."""
    iterations = sorted(outcome.curves["iteration"].unique())
    length = iterations[-1] - (iterations[-2] if len(iterations) > 1 else 0)
    ends = outcome.curves[outcome.curves["iteration"] == iterations[-1]]
    lines, rises = [], {}
    for net in PANELS:
        own = ends[ends["net"] == net]
        (few, shallow), (many, deep) = (
            (rows["network"].iloc[0], rows.set_index("seed")["train_error"])
            for rows in (own[own["n"] == own["n"].min()], own[own["n"] == own["n"].max()])
        )
        rises[net] = deep - shallow
        lines.append(
            f"- From {few} to {many} it goes from {number(shallow.mean())}% to {number(deep.mean())}%, "
            f"{_difference(rises[net])}."
        )
    more = rises["plain"] - rises["resnet"]
    lines.append(f"- The change of the plain networks less that of the residual ones: {_difference(more)}.")
    intervals = "; 95% intervals are Student's t of the differences seed by seed" if outcome.runs >= LEAST else ""
    return (
        f"Training error over the last {length:,} iterations, {outcome.basis} of each network{intervals}:\n\n"
        + "\n".join(lines)
    )


def draw_responses(_: Study, outcome: Outcome, path: Path) -> None:
    """Draw the standard deviations of the layers' responses, by layer and by size (Figure 7).

    Parameters
    ----------
    outcome : Outcome
        The results; means over the seeds are drawn.
    path : Path
        The PNG to write.
    """
    colors = _colors(outcome)
    with figure(path, 6.4) as made:
        by_layer, by_size = made.subplots(2, 1, sharey=True)
        for (net, n), responses in _mean_responses(outcome).groupby(level=["net", "n"]):
            style = {"color": colors[n], "linestyle": LINES[net], "linewidth": 1.5}
            layers = np.arange(1, len(responses) + 1)
            by_layer.plot(layers, responses, **style)
            by_size.plot(layers, responses.sort_values(ascending=False), **style)
        _label(by_layer, "Layer, from first to last")
        _label(by_size, "Layer, from the largest response to the smallest")
        made.supylabel("Standard deviation", fontsize=11)
        _legend(made, colors, {title: {"linestyle": LINES[net]} for net, title in PANELS.items()})


def describe_responses(outcome: Outcome) -> str:
    """The mean over all layers of each network, the two kinds of a depth side by side."""
    means = _mean_responses(outcome).groupby(level=["net", "n"]).mean()
    depths = [
        f"{number(means['plain', n])} and {number(means['resnet', n])} with {6 * n + 2} layers"
        for n in sorted(outcome.cells["n"].unique())
    ]
    return (
        "Standard deviation of each 3x3 layer's response on the first 200 test images, after batch normalisation and "
        f"before nonlinearity and addition, {outcome.basis} of each network. The mean over all layers, plain and "
        f"residual: {', '.join(depths)}."
    )


def _mean_responses(outcome: Outcome) -> pd.Series:
    """Over the seeds, by net, n and layer."""
    return outcome.responses.groupby(["net", "n", "layer"])["response"].mean()


def _colors(outcome: Outcome) -> dict[int, tuple[float, ...]]:
    """A colour for each n, the darker the deeper."""
    depths = sorted(outcome.cells["n"].unique())
    return dict(zip(depths, matplotlib.colormaps["viridis"](np.linspace(0.8, 0, len(depths))), strict=True))


def _legend(made: Figure, colors: dict[int, tuple[float, ...]], kinds: dict[str, dict[str, object]]) -> None:
    """The depths by colour, then what else tells lines apart; in two rows if there are many."""
    marks = [Line2D([], [], color=color, linewidth=2, label=f"{6 * n + 2} layers") for n, color in colors.items()]
    marks += [Line2D([], [], color=BLACK, label=label, **style) for label, style in kinds.items()]
    columns = len(marks) if len(marks) <= IN_ONE_ROW else math.ceil(len(marks) / 2)
    made.legend(handles=marks, loc="outside upper center", ncols=columns, handlelength=1.6, columnspacing=1.4)


def _label(axes: Axes, text: str) -> None:
    axes.set(xlabel=text, xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _difference(points: pd.Series) -> str:
    """The mean over the seeds, with its interval if there is one, and whether that tells it from none."""
    summary = summarize(points)
    if summary.interval is None:
        return f"{number(summary.mean, '+')} points"
    low, high = summary.interval
    return (
        f"{number(summary.mean, '+')} points (95% interval {interval(summary.interval)}"
        f"{', which holds 0' if low <= 0 <= high else ''})"
    )
