"""Numbers and lists in the words of the report, and tables in Markdown."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from tabulate import tabulate

DASH = "–"


def markdown(rows: Sequence[dict[str, str]], words: int = 1) -> str:
    """Rows, each from heading to cell, as a Markdown table; its first columns hold words, the others numbers."""
    alignment = ["left"] * words + ["right"] * (len(rows[0]) - words)
    return tabulate(rows, headers="keys", tablefmt="pipe", colalign=alignment, disable_numparse=True)


def number(value: float, sign: str = "") -> str:
    """Two places, of the decimal meant and not of a double below it: 0.475 is 0.48, and 7.99499… for 7.995 is 8.00.

    Halves go to the even digit, as everywhere in Python, and no zero is negative.

    With "+" as ``sign``, a number above 0 has its sign, too.
    """
    return DASH if np.isnan(value) else f"{Decimal(str(round(value, 9))):{sign}z.2f}"


def spread(mean: float, std: float | None) -> str:
    return f"{number(mean)} ± {DASH if std is None else number(std)}"


def interval(ends: tuple[float, float] | None) -> str:
    return DASH if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
