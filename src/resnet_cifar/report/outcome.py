"""The cells' results, read and checked: all of the study, or an error that names what is missing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnet_cifar.cells import NETS, Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.params import Params
from resnet_cifar.training.protocol import recipe

PUBLISHED = Path(__file__).with_name("published.csv")
PROTOCOL = {
    "iterations": 64_000,
    "batch_size": 128,
    "lr": 0.1,
    "milestones": (32_000, 48_000),
    "gamma": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "normalize": "pixel_mean",
}
"""The paper's values (section 4.2) of what a :class:`~resnet_cifar.training.protocol.Recipe` holds."""
WARMUP = {"warmup_iterations": 400, "warmup_lr": 0.01}
"""Of networks with n of 18 or more; the others have none."""
HELD_OUT = (0, 5_000)


@dataclass(frozen=True)
class Outcome:
    """The results of a study, sorted by net, depth and seed. Errors are in percent, losses in nats.

    Attributes
    ----------
    cells : DataFrame
        One row a cell: what it is, its errors and losses, its seconds, its machine, the SHA-256 of its weights.
    curves : DataFrame
        One row a cell and evaluated iteration.
    class_errors : ndarray of float, shape (cells, 10)
        Test error of each class; NaN for a class without a test image.
    confusion : ndarray of float, shape (cells, 10, 10)
        Test images by true (row) and predicted (column) class.
    published : DataFrame
        What others report for the same networks, one row a source and network: ``error``, ``std`` and ``kind``, which
        is ``single`` (one run), ``mean`` (of five) or ``figure`` (one run, read off a figure). Empty if the study
        compares with nothing.
    """

    cells: pd.DataFrame
    curves: pd.DataFrame
    class_errors: np.ndarray
    confusion: np.ndarray
    published: pd.DataFrame

    @property
    def networks(self) -> list[str]:
        """The names of the networks, in the order of the table."""
        return list(self.cells["network"].unique())


def load(study: Params, runs: Path, results: Path) -> Outcome:
    """Read every cell of the study.

    Parameters
    ----------
    study : Params
        The parameters, which say which cells there are.
    runs, results : Path
        Where training and evaluation leave their files.

    Raises
    ------
    InputError
        If a cell's files are missing, or are not of this cell, of these parameters or of the same weights; the
        sentence names every such cell.
    """
    cells = sorted(study.list_cells(), key=lambda cell: (list(NETS).index(cell.net), cell.n, cell.seed))
    rows, curves, class_errors, confusion, problems = [], [], [], [], []
    for cell in cells:
        try:
            record, metrics, history = _read(cell, study, runs, results)
            rows.append(_row(cell, record, metrics))
            class_errors.append(np.array(metrics["test"]["class_errors"], dtype=float).reshape(10))
            confusion.append(np.array(metrics["test"]["confusion"], dtype=float).reshape(10, 10))
        except FileNotFoundError as error:
            problems.append(f"{cell} ({error.filename} is missing)")
        except KeyError as error:
            problems.append(f"{cell} (its files lack {error})")
        except (OSError, TypeError, ValueError) as error:
            problems.append(f"{cell} ({error})")
        else:
            identity = {"network": cell.network, "net": cell.net, "n": cell.n, "seed": cell.seed}
            curves.append(pd.DataFrame(identity, index=history.index).join(history))
    if problems:
        raise InputError(
            f"{len(problems)} of {len(cells)} cells cannot be reported: {', '.join(problems)}; "
            "make them with `dvc repro`."
        )
    return Outcome(
        pd.DataFrame(rows),
        pd.concat(curves, ignore_index=True),
        np.stack(class_errors),
        np.stack(confusion),
        _published(study, cells),
    )


def _read(cell: Cell, study: Params, runs: Path, results: Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
    """One cell's record, metrics and history, which belong together; ValueError says which do not."""
    files = run_files(runs, cell)
    record = _json(files.record)
    history = _csv(files.history)
    metrics = _json(results / cell.name / "metrics.json")
    identity = {"cell": cell.name, "net": cell.net, "n": cell.n, "seed": cell.seed}
    for name, content in (("run.json", record), ("metrics.json", metrics)):
        if {key: content[key] for key in identity} != identity:
            raise ValueError(f"its {name} is of {content['cell']}")
    if metrics["weights_sha256"] != record["weights_sha256"]:
        raise ValueError("its metrics.json and run.json are of different weights")
    iterations = {"run.json": record["iterations"], "history.csv": int(history["iteration"].iloc[-1])}
    for name, ended in iterations.items():
        if ended != study.train.iterations:
            raise ValueError(f"its {name} ends at iteration {ended}, not at {study.train.iterations}")
    if record["digests"]["parameters"] != recipe(study, cell, record["precision"]).digest:
        raise ValueError("its run.json is of other parameters")
    if record["eval_every"] != study.train.eval_every:
        raise ValueError(f"its run.json has train.eval_every {record['eval_every']}, not {study.train.eval_every}")
    held_out = study.data.validation > 0
    if ("validation_error" in history) != held_out or bool(metrics["validation"]) != held_out:
        raise ValueError(f"its files are not of data.validation {study.data.validation}")
    columns = ["iteration", "lr"]
    for split in ("train", "test", "validation")[: 3 if held_out else 2]:
        columns += [f"{split}_loss", f"{split}_error"]
    return record, metrics, history[columns]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None


def _csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except ValueError:
        raise ValueError(f"{path} is not a table") from None
    if table.empty:
        raise ValueError(f"{path} has no rows")
    return table


def _row(cell: Cell, record: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    row = {
        "cell": cell.name,
        "network": cell.network,
        "net": cell.net,
        "n": cell.n,
        "depth": 6 * cell.n + 2,
        "seed": cell.seed,
        "parameters": metrics["parameters"],
    }
    for split in ("test", "validation"):
        if metrics[split]:
            row |= {f"{split}_{key}": metrics[split][key] for key in ("error", "loss", "calibration_error")}
    kept = ("iterations", "seconds", "images_per_second", "device", "threads", "torch", "precision", "weights_sha256")
    return row | {key: record[key] for key in kept}


def follows_the_paper(study: Params) -> bool:
    """Whether the study's protocol is the paper's (section 4.2), so that its errors may stand beside the paper's.

    The paper's 5,000 held-out images are part of it; shortcuts and precision are not asked for.
    """
    if study.data.validation not in HELD_OUT:
        return False
    for cell in study.list_cells():
        run = asdict(recipe(study, cell, study.train.precision))
        warmup = WARMUP if cell.n >= 18 else {"warmup_iterations": 0}
        if any(run[key] != value for key, value in (PROTOCOL | warmup).items()):
            return False
    return True


def _published(study: Params, cells: list[Cell]) -> pd.DataFrame:
    """The rows of published.csv that are of the same networks, if they were trained with the same protocol."""
    table = pd.read_csv(PUBLISHED)
    # Only parameter-free shortcuts were published; a plain network has none, so the parameter does not touch it.
    same = [cell.network for cell in cells if study.model.shortcut == "A" or cell.net == "plain"]
    return table[table["network"].isin(same if follows_the_paper(study) else [])]
