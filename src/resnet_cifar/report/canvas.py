"""One style for the report's figures: 800 px wide on a page, colour-blind safe, the same bytes for the same input."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from resnet_cifar.params import Study

# Okabe and Ito, Color Universal Design, 2008.
BLUE, VERMILLION, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
WIDTH = 8.0  # inches
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 11,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "savefig.dpi": 150,
}
DROPS = "Iteration (dotted: the learning rate drops)"


@contextmanager
def figure(path: Path, height: float) -> Iterator[Figure]:
    """A figure in the style, saved at the end without the metadata that would change with the library."""
    with matplotlib.style.context(["default", STYLE]):
        made = Figure(figsize=(WIDTH, height))
        yield made
        made.savefig(path, format="png", metadata={"Software": None})


def draw_curve(axes: Axes, curves: pd.DataFrame, key: str, alpha: float, **style: object) -> None:
    """A network's column ``key`` by iteration: the mean over its seeds, in a band from the lowest to the highest."""
    values = curves.groupby("iteration")[key].agg(["mean", "min", "max"])
    axes.plot(values.index, values["mean"], **style)
    axes.fill_between(values.index, values["min"], values["max"], color=style["color"], alpha=alpha, linewidth=0)


def mark_schedule(axes: Axes, study: Study) -> None:
    """The iterations of a study as the x axis, with a dotted line where the learning rate drops."""
    for milestone in study.train.milestones:
        axes.axvline(milestone, color=BLACK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, study.train.iterations)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 1.6, 2, 2.5, 4, 5, 8, 10]))
