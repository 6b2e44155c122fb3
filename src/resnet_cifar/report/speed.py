"""What benchmarks/throughput.py measured, the newest of each device."""

from pathlib import Path

import pandas as pd

from resnet_cifar.errors import InputError

MEASURED = ["device", "threads", "torch", "network", "way", "precision", "networks_at_once"]
COLUMNS = ["date", *MEASURED, "images_per_second", "seconds_per_64k_iterations", "times_the_usual_loop"]


def load(path: Path) -> pd.DataFrame:
    """Read the measurements; of what was measured again on the same kind of device only the last row stays.

    Raises
    ------
    InputError
        If the file is missing or is not the benchmark's table.
    """
    try:
        table = pd.read_csv(path)[COLUMNS].drop_duplicates(MEASURED, keep="last")
    except (OSError, ValueError, KeyError):
        table = pd.DataFrame()
    if table.empty:
        raise InputError(
            f"{path} is missing or not the table of benchmarks/throughput.py: make it with "
            "`python benchmarks/throughput.py`, or restore it with `git checkout`."
        )
    return table
