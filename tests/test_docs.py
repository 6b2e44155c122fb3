"""What the documentation says that can be checked."""

import re

from conftest import ROOT


def test_every_situation_is_shown_by_a_test_that_exists_or_was_tried():
    text = (ROOT / "docs/reliability.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (?!:--|Situation)", line)]
    assert len(rows) > 40
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= there
    assert all(len(row) == 3 and re.search(r"`test_\w+`|tried|the same", row[2]) for row in rows)
