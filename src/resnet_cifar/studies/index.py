"""reports/studies/README.md: the kept studies, and what one changed parameter does, seed by seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resnet_cifar import params
from resnet_cifar.errors import InputError
from resnet_cifar.params import Study
from resnet_cifar.report import paper
from resnet_cifar.report.outcome import PUBLISHED
from resnet_cifar.report.statistics import Summary, summarize
from resnet_cifar.report.text import interval, listed, markdown, number

IDENTITY = {"net", "n", "seed", "eval_every", "precision"}
"""Fields of a recipe that say which cell it is or where it is looked at; of the precision the one in force counts."""
COLUMNS = ["cell", "network", "seed", "test_error", "engine", "precision"]
"""What is read of results.csv."""
HEAD = """\
# Studies

Each folder is a study beside the one in [metrics.md](../metrics.md): its report with figures, its parameters, and its
part of dvc.lock. `dvc exp run --pull -S preset=NAME` restores its networks from the remote; nothing is trained. This
page and the folders are written by `resnet-cifar study NAME`.
"""
COMPARED = """\
## One parameter changed

Two studies that differ in one parameter, of which the second has the paper's value. Differences are paired: of each
seed the two networks saw the same batches, crops and flips (unless images are held out, or `batch_size` is what
changed), and began with the same weights unless `shortcut` or `initialization` is what changed. The interval is
Student's t of the differences; where it holds 0, the runs show no effect.
"""


@dataclass(frozen=True)
class Kept:
    """A study that is kept: its name, its parameters, and a row of results.csv for each cell."""

    name: str
    study: Study
    results: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """A study beside another one, of which it changes one parameter.

    Attributes
    ----------
    one, base : Kept
    parameter : str
    value, usual : object
        The parameter's, in the one and in the other.
    """

    one: Kept
    base: Kept
    parameter: str
    value: object
    usual: object

    def differences(self) -> Iterator[tuple[str, pd.DataFrame, Summary]]:
        """Network, its rows of both studies, and the differences in test error, in points."""
        both = self.one.results.merge(
            self.base.results[["cell", "test_error", "engine"]], on="cell", suffixes=("", "_base")
        )
        for network, rows in both.groupby("network", sort=False):
            yield str(network), rows, summarize(rows["test_error"] - rows["test_error_base"])


def render(folder: Path, new: Path | None = None) -> str:
    """The page.

    Parameters
    ----------
    folder : Path
        Holds a folder for each study.
    new : Path, optional
        A study's folder that is to stand there too, in place of the one of its name.

    Raises
    ------
    InputError
        If one of them is not what a study leaves.
    """
    folders = {path.parent.name: path.parent for path in folder.glob("*/params.yaml")}
    if new:
        folders[new.name] = new
    kept = [_read(folders[name]) for name in sorted(folders)]
    parts = [HEAD, _table(kept) + "\n" if kept else ""]
    if comparisons := list(compare(kept)):
        parts += [COMPARED, _comparison_table(comparisons) + "\n", _article(comparisons)]
    return "\n".join(part for part in parts if part)


def compare(kept: list[Kept]) -> Iterator[Comparison]:
    """Every two studies that differ in one parameter of which one has the paper's, and have a cell in common."""
    for one in kept:
        for base in kept:
            changed = _changed(one, base)
            if len(changed) == 1:
                ((parameter, (value, usual, of_the_paper)),) = changed.items()
                if usual == of_the_paper:
                    yield Comparison(one, base, parameter, value, usual)


def _changed(one: Kept, base: Kept) -> dict[str, tuple[object, object, object]]:
    """What differs in the cells that both have, with both values and the paper's; nothing if there is none."""
    common = [cell for cell in one.study.list_cells() if cell in base.study.list_cells()]
    found: dict[str, tuple[object, object, object]] = {}
    for cell in common:
        mine, its = one.study.recipe(cell), base.study.recipe(cell)
        for name in paper.differing(mine, its, IDENTITY):
            found[name] = (getattr(mine, name), getattr(its, name), getattr(paper.recipe(cell), name))
    for name, value, usual, of_the_paper in (
        ("precision", *(listed(sorted(set(kept.results["precision"]))) for kept in (one, base)), "fp32"),
        ("validation", *(kept.study.data.validation for kept in (one, base)), 0),
    ):
        if common and value != usual:
            found[name] = (value, usual, of_the_paper)
    return found


def _read(folder: Path) -> Kept:
    try:
        results = pd.read_csv(folder / "results.csv", usecols=COLUMNS)
    except (OSError, ValueError):
        raise InputError(
            f"{folder} is not a kept study (its results.csv cannot be read): `git checkout` restores it, or delete it."
        ) from None
    return Kept(folder.name, params.load(folder / "params.yaml"), results)


def _table(kept: list[Kept]) -> str:
    return markdown(
        [
            {
                "Study": f"[{each.name}]({each.name}/metrics.md)",
                "Networks": listed(list(each.results["network"].unique())),
                "Not the paper's": listed(_differences(each)) or "nothing",
                "Runs of each": str(each.results["seed"].nunique()),
                "Iterations": f"{each.study.train.iterations:,}",
            }
            for each in kept
        ],
        words=3,
    )


def _differences(kept: Kept) -> list[str]:
    names = paper.differences(kept.study, set(kept.results["precision"]))
    if kept.study.model.shortcut != paper.RECIPE.shortcut:  # the paper has both, and reports no CIFAR-10 network of B
        names.append("shortcut")
    return [f"`{name}`" for name in names]


def _comparison_table(comparisons: list[Comparison]) -> str:
    return markdown(
        [
            {
                "Study": f"{each.one.name}, beside {each.base.name}",
                "Changed": _said(each, rows),
                "Network": network,
                "Seeds": str(summary.runs),
                "Test error, %": number(rows["test_error"].mean()),
                "Beside it": number(rows["test_error_base"].mean()),
                "Difference, points": number(summary.mean, "+"),
                "95% interval": interval(summary.interval),
            }
            for each in comparisons
            for network, rows, summary in each.differences()
        ],
        words=3,
    )


def _said(comparison: Comparison, rows: pd.DataFrame) -> str:
    """The parameter with both values; and the engines, if they are two."""
    engines = [listed(sorted(set(rows[column]))) for column in ("engine", "engine_base")]
    engine = f"; {engines[0]} engine instead of {engines[1]}" if engines[0] != engines[1] else ""
    return f"`{comparison.parameter}` {comparison.value} instead of {comparison.usual}{engine}"


def _article(comparisons: list[Comparison]) -> str:
    """Whether PyTorch's initialisation explains by how much the article's errors are not the paper's."""
    published = pd.read_csv(PUBLISHED).pivot_table(index="network", columns="source", values="error")
    gaps = (published["article"] - published["paper"]).dropna()
    lines = [
        f"- {network}: after {paper.RECIPE.iterations:,} iterations the article's error is "
        f"{number(gaps[network], '+')} points from the paper's. "
        f"PyTorch's initialisation moves ours, after {each.one.study.train.iterations:,}, by "
        f"{number(summary.mean, '+')}{_verdict(summary, gaps[network])}."
        for each in comparisons
        if (each.parameter, each.value) == ("initialization", "pytorch")
        for network, _, summary in each.differences()
        if network in gaps
    ]
    if not lines:
        return ""
    return "\n".join(["Whether initialisation explains the article's errors:\n", *lines, ""])


def _verdict(summary: Summary, gap: float) -> str:
    if summary.interval is None:
        return f", in {summary.runs} pair{'s' * (summary.runs != 1)} of runs, too few for an interval"
    low, high = summary.interval
    if low <= 0 <= high:
        says = "which shows no effect"
    elif summary.mean * gap > 0:
        says = "the same way"
    else:
        says = "the other way"
    return f" (95% interval {interval(summary.interval)}), {says}"
