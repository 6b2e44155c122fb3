"""The report as a whole: all of it in place, or the previous one untouched."""

import shutil
from pathlib import Path

from resnet_cifar.errors import InputError
from resnet_cifar.params import Study
from resnet_cifar.report import outcome, speed, tables
from resnet_cifar.report.figures import FOLDER, figures_of


def write(study: Study, runs: Path, results: Path, throughput: Path, out: Path) -> None:
    """Write the report of a study.

    Parameters
    ----------
    study : Study
        The parameters.
    runs, results : Path
        Where training and evaluation leave the cells' files.
    throughput : Path
        The table of benchmarks/throughput.py; without the file the section on speed is left out.
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
    new = out / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        new.mkdir()
        texts = {
            "metrics.md": tables.metrics_md(study, found, measured),
            "metrics.json": tables.metrics_json(found),
            "results.csv": tables.csv(found.cells),
            "curves.csv": tables.csv(found.curves),
        }
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
        (new / FOLDER).mkdir()
        for name, drawing in figures_of(found).items():
            drawing.draw(study, found, new / FOLDER / name)
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        for path in sorted(new.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
