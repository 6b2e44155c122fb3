"""What the seeds of one network say: mean, standard deviation and the two 95% intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

Interval = tuple[float, float]
LEAST = 3
"""Fewer runs have no interval: that of two, whose t is 12.7, says nothing, or, of equal values, too much."""


@dataclass(frozen=True)
class Summary:
    """The runs of one network, in the unit of the values.

    Attributes
    ----------
    runs : int
        How many runs there are.
    mean : float
    std : float or None
        Standard deviation with n-1 in the denominator; None for one run.
    interval : (float, float) or None
        95% Student-t interval of the mean; None for fewer than three runs.
    prediction : (float, float) or None
        Where one further run lies with 95% probability, if runs are normally distributed; None for fewer than three.
    """

    runs: int
    mean: float
    std: float | None = None
    interval: Interval | None = None
    prediction: Interval | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Summarise the runs of one network.

    The interval of the mean is mean ± t·s/√n, that of one further run mean ± t·s·√(1 + 1/n), where t is the 97.5%
    quantile of Student's t with n-1 degrees of freedom.

    Parameters
    ----------
    values : sequence of float, shape (n,)
        One value a run, n at least 1.

    References
    ----------
    G. J. Hahn and W. Q. Meeker, Statistical Intervals, 1991, sections 4.2 and 4.7.

    >>> found = summarize([8.0, 9.0, 10.0])
    >>> found.mean, found.std, [round(end, 2) for end in found.interval]
    (9.0, 1.0, [6.52, 11.48])
    """
    runs, mean = len(values), float(np.mean(values))
    if runs == 1:
        return Summary(runs, mean)
    std = float(np.std(values, ddof=1))
    if runs < LEAST:
        return Summary(runs, mean, std)
    t = float(special.stdtrit(runs - 1, 0.975))
    of_mean, of_run = t * std * np.sqrt(1 / runs), t * std * np.sqrt(1 + 1 / runs)
    return Summary(
        runs,
        mean,
        std,
        (float(mean - of_mean), float(mean + of_mean)),
        (float(mean - of_run), float(mean + of_run)),
    )
