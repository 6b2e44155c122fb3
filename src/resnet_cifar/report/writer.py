"""The report as a whole: all of it in place, or the previous one untouched."""

import shutil
import tempfile
from pathlib import Path

from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.report import figures, outcome, speed, tables


def write(study: Params, runs: Path, results: Path, throughput: Path, out: Path) -> None:
    """Write the report of a study.

    Parameters
    ----------
    study : Params
        The parameters.
    runs, results : Path
        Where training and evaluation leave the cells' files.
    throughput : Path
        The table of benchmarks/throughput.py.
    out : Path
        The folder of the report; what else lies there stays.

    Raises
    ------
    InputError
        If a cell is missing or does not match the parameters, ``throughput`` is not what it should be, or ``out`` is
        not a folder. Nothing is written then.
    """
    found, measured = outcome.load(study, runs, results), speed.load(throughput)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: --out is the folder of the report.")
    out.mkdir(parents=True, exist_ok=True)
    # On the same file system as the target, so that moving into place cannot fail halfway for lack of space.
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as folder:
        new = Path(folder)
        texts = {
            "metrics.md": tables.metrics_md(study, found, measured),
            "metrics.json": tables.metrics_json(found),
            "results.csv": tables.csv(found.cells),
            "curves.csv": tables.csv(found.curves),
        }
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
        (new / "figures").mkdir()
        figures.error_vs_depth(found, new / "figures" / "error_vs_depth.png")
        figures.training(study, found, new / "figures" / "training.png")
        figures.confusion(found, new / "figures" / "confusion.png")
        shutil.rmtree(out / "figures", ignore_errors=True)
        for path in sorted(new.iterdir()):
            path.replace(out / path.name)
