"""The tests that docs/reliability.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


DEFINITION = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)


def test_tests_named_by_reliability_page_exist() -> None:
    promises = (ROOT / "docs" / "reliability.md").read_text().partition("## Not promised")[0]
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINITION.findall(path.read_text())}
    assert set(re.findall(r"`(test_\w+)`", promises)) - defined == set()
    rows = [line for line in promises.splitlines() if line.startswith("| ") and line not in ("| promise | tests |", "| --- | --- |")]
    assert [row for row in rows if "`test_" not in row] == []
