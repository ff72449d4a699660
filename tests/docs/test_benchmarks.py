"""Compare benchmarks/README.md with the benchmarks, and test rows and command line."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks.rows import Missing, Row, at_least, at_most, within

PAGE = Path(command.__file__).with_name("README.md").read_text()


def test_page_lists_all_benchmarks() -> None:
    table = PAGE[PAGE.index("## The rows") :]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(command.NAMES)
    files = {path.stem for path in Path(command.__file__).parent.glob("*.py")}
    assert files - {"__init__", "__main__", "rows", "mlx_twin", "writers"} == set(command.NAMES)
    for name in command.NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").rows)


def test_row_reports_missed_target() -> None:
    met, missed = at_most("a", 2.0, 4.0, 0.6, "s"), at_least("b", 2.0, 4.0, 0.6, "s")
    assert (met.met, missed.met, within("c", 3.0, 2.0, "MB").met) == (True, False, False)
    assert str(met) == "| a | 2 s | 4 s | 0.50 | ≤ 0.6 | yes |"
    assert str(missed) == "| b | 2 s | 4 s | 0.50 | ≥ 0.6 | NO |"


def test_missing_requirement_is_reported_and_others_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def half() -> Iterator[Row]:
        yield at_most("a", 1.0, 2.0, 1.0, "s")
        raise Missing("model missing: fetch one")

    other = SimpleNamespace(rows=lambda: [at_least("b", 1.0, 2.0, 1.0, "s")])
    monkeypatch.setattr(importlib, "import_module", {"benchmarks.http": SimpleNamespace(rows=half), "benchmarks.engine": other}.get)
    assert command.main(["http"]) == 0
    assert "| http | not measured: model missing: fetch one |" in capsys.readouterr().out
    assert command.main(["http", "engine"]) == 1
    assert command.main(["htpp"]) == 2
    assert "htpp" in capsys.readouterr().err
