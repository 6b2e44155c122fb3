"""What benchmarks/throughput.py measured, the newest of each device."""

from pathlib import Path

import pandas as pd

from resnet_cifar.errors import InputError

MEASURED = {
    "device": str,
    "threads": int,
    "torch": str,
    "network": str,
    "way": str,
    "precision": str,
    "networks_at_once": int,
}
"""The columns that say what was measured."""
LOOP = "usual loop, fp32"
"""The way that comes first in each measurement, and to which the others of that measurement are compared."""
FOUND = {
    "images_per_second": float,
    "seconds_per_64k_iterations": float,
    "times_the_usual_loop": float,
    "percent_of_copy_bandwidth": float,
    "percent_of_matrix_rate": float,
}
"""Those that say what came out."""


def load(path: Path) -> pd.DataFrame | None:
    """Read the measurements; of what was measured again on the same kind of device only the last row stays.

    So do the loops to which the rows that stay are compared. Each device's and network's stand together.

    Returns
    -------
    DataFrame or None
        None if there is no such file.

    Raises
    ------
    InputError
        If it is not the benchmark's table.
    """
    kinds = MEASURED | FOUND
    try:
        table = pd.read_csv(path, dtype=kinds)[list(kinds)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        table = pd.DataFrame()
    if table.empty or table.isna().any(axis=None):
        raise InputError(f"{path} is not the table of benchmarks/throughput.py: restore it with `git checkout`.")
    newest = table.groupby(list(MEASURED)).tail(1).index
    loop = table["way"] == LOOP
    measurement = loop.cumsum()
    stays = table.index.isin(newest) | (loop & measurement.isin(measurement[newest]))
    place = table.groupby(["device", "network"], sort=False).ngroup()
    return table.loc[place[stays].sort_values(kind="stable").index].reset_index(drop=True)
