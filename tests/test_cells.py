"""Cells, their names and their selection."""

import pytest

from resnet_cifar.cells import Cell, select
from resnet_cifar.errors import InputError

KNOWN = [Cell("resnet", n, seed) for n in (3, 9) for seed in (0, 1)]


def test_name_round_trip():
    cell = Cell.parse("plain-18-12")
    assert cell == Cell("plain", 18, 12)
    assert cell.name == "plain-18-12"
    assert cell.network == "Plain-110"  # 6 * 18 + 2
    assert Cell.parse("resnet-3-4294967295").seed == 2**32 - 1


NOT_CELLS = ["resnet-0-0", "resnet-3", "vgg-3-0", "resnet-3-0-1", "resnet-03-0", "resnet-3-4294967296", "resnet-3-١"]


@pytest.mark.parametrize("name", [*NOT_CELLS, "", "resnet-3-" + "9" * 5000, "resnet-" + "9" * 5000 + "-0"])
def test_what_is_not_a_cell_is_refused(name):
    with pytest.raises(InputError, match="NET-N-SEED"):
        Cell.parse(name)


def test_select_takes_names_and_patterns_each_cell_once():
    chosen = select(["resnet-9-*", "resnet-9-1", "plain-5-7"], KNOWN)
    assert [cell.name for cell in chosen] == ["resnet-9-0", "resnet-9-1", "plain-5-7"]


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(InputError, match=r"plain-\*.*resnet-3-0"):
        select(["plain-*"], KNOWN)
