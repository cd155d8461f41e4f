"""What docs/reliability.md promises is tested: every test it names exists."""

import re

from tests.runs import ROOT


def test_every_test_that_the_fault_table_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    defined = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 40 and named <= defined, named - defined
