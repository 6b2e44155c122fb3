"""The report as a whole: all of it in place, or the previous one untouched."""

import shutil
import tempfile
from pathlib import Path

from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.report import figures, tables
from resnet_cifar.report.outcome import Outcome, load


def write(study: Params, runs: Path, results: Path, out: Path) -> None:
    """Write the report of a study.

    Parameters
    ----------
    study : Params
        The parameters.
    runs, results : Path
        Where training and evaluation leave the cells' files.
    out : Path
        The folder of the report; what else lies there stays.

    Raises
    ------
    InputError
        If a cell is missing or does not match the parameters, or ``out`` is not a folder. Nothing is written then.
    """
    outcome = load(study, runs, results)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: --out is the folder of the report.")
    out.mkdir(parents=True, exist_ok=True)
    # On the same file system as the target, so that moving into place cannot fail halfway for lack of space.
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as folder:
        new = Path(folder)
        _render(study, outcome, new)
        shutil.rmtree(out / "figures", ignore_errors=True)
        for path in sorted(new.iterdir()):
            path.replace(out / path.name)


def _render(study: Params, outcome: Outcome, folder: Path) -> None:
    texts = {
        "metrics.md": tables.metrics_md(study, outcome),
        "metrics.json": tables.metrics_json(outcome),
        "results.csv": tables.csv(outcome.cells),
        "curves.csv": tables.csv(outcome.curves),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "figures").mkdir()
    figures.error_vs_depth(outcome, folder / "figures" / "error_vs_depth.png")
    figures.training(study, outcome, folder / "figures" / "training.png")
    figures.confusion(outcome, folder / "figures" / "confusion.png")
